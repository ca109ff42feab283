"""Backbones of foundation models: what is compared with what, several teachers, grids, caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from toolbox import QUIET, StopAfter, method_options, rows

from kdcli.artifacts.model import InputSpec, read_tensors
from kdcli.config import resolve
from kdcli.errors import InputError, Preempted, UsageError
from kdcli.methods.backbones import some_hidden
from kdcli.models.timm import TimmModel
from kdcli.stages import distill


@pytest.fixture
def plan(pictures: Path, probed: Any, tmp_path: Path) -> Any:
    def make(name: str, out: str = "out", **more: Any) -> distill.Plan:
        options = method_options(name, pictures, probed, tmp_path, **{"out": str(tmp_path / out), **more})
        found = distill.plan(resolve(distill.Config, options=options), QUIET)
        assert isinstance(found, distill.Plan)
        return found

    return make


def objective(plan: distill.Plan) -> dict[str, str]:
    return {row["term"]: row["taps"] for row in plan.to_json()["objective"]}


def test_register_tokens_are_left_out_of_the_grid() -> None:
    body = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=28, depth=2, num_classes=0)
    network = TimmModel(body, InputSpec((28, 28)), None, name="dinov2").eval()
    x = torch.randint(256, (2, 3, 28, 28), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        found = network.call([x], ["grid", "tokens", "pooled"])
    assert found["tokens"].shape == (2, 1 + 4 + 4, 384)
    assert found["grid"].shape == (2, 384, 2, 2)
    torch.testing.assert_close(found["grid"].flatten(2).transpose(1, 2), found["tokens"][:, 5:])
    torch.testing.assert_close(found["pooled"], found["tokens"][:, 0])


def test_a_cnn_learns_from_a_vit_on_the_teacher_s_grid(plan: Any, probed: Any) -> None:
    made = plan("generic", teacher=str(probed("test_vit")))
    found = objective(made)
    assert set(found) == {"pooled", "patches"}
    assert "grid-on-teacher [64, 2, 2]" in found["patches"]
    student = plan("generic", teacher=str(probed("test_vit")), **{"method.align": "student"})
    assert "[64, 1, 1]" in objective(student)["patches"]


def test_the_plan_says_how_grids_meet(plan: Any, probed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    from kdcli.console import Console

    made = plan("generic", teacher=str(probed("test_vit")), **{"method.relations_weight": 1})
    made.describe(Console())
    shown = capsys.readouterr().err
    assert "aligns   grid-adapter.out: its 1x1 map is interpolated to 2x2" in shown
    assert "aligns   s.grid: its 1x1 map is interpolated to 2x2" in shown


def test_several_teachers_are_matched_each_by_itself(plan: Any, probed: Any) -> None:
    teachers = [str(probed("test_vit")), str(probed("test_resnet"))]
    made = plan("radio", teacher=teachers)
    assert set(objective(made)) == {"pooled", "patches", "pooled2", "patches2"}
    assert {"pooled-adapter", "pooled-adapter2", "grid-adapter", "grid-adapter2"} <= set(
        made.method.turns[0].trains
    )
    assert made.material.networks["teacher2"].name == teachers[1]
    assert made.material.teacher_forwards == 2 * 4 * 8
    distill.run(made, QUIET)
    parents = json.loads((made.target.path / "kdcli.json").read_text())["parents"]
    assert [parent["role"] for parent in parents] == ["student", "teacher1", "teacher2"]


def test_a_mean_of_teachers_is_refused(plan: Any, probed: Any) -> None:
    with pytest.raises(
        UsageError, match="teacher_mean is given, and method radio matches each teacher by itself"
    ):
        plan("radio", teacher=[str(probed("test_vit"))] * 2, teacher_mean="probabilities")


@pytest.mark.parametrize("name", ["generic", "radio", "seed"])
def test_features_are_read_from_a_cache_with_the_same_result(name: str, plan: Any) -> None:
    """Of fixed views; live, with the same views, the teacher says the same."""
    made = plan(name, **{"views.count": "2", "views.store": "fp32"})
    shapes = made.material.assembly.seen
    numbers = sum(torch.Size(shapes[tap]).numel() for tap in ("t.backbone", "t.grid") if tap in shapes)
    assert made.material.cached
    assert made.material.row_bytes == 12 + 4 * numbers
    distill.run(made, QUIET)
    again = plan(name, "again", **{"views.count": "2", "views.store": "fp32"})
    distill.run(again, QUIET)
    losses = [[row["loss"] for row in rows(p.target.path) if "loss" in row] for p in (made, again)]
    assert losses[0] == losses[1]
    live = plan(name, "live", **{"views.count": "live"})
    assert not live.material.cached


def test_half_precision_takes_half_of_the_room(plan: Any) -> None:
    rooms = {
        s: plan("generic", **{"views.count": "2", "views.store": s}).material.row_bytes
        for s in ("fp16", "fp32")
    }
    assert rooms["fp32"] > 1.9 * rooms["fp16"]


def test_a_cache_that_the_disk_has_no_room_for_is_said(
    plan: Any,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    pictures: Path,
    probed: Any,
) -> None:
    from kdcli.console import Console

    monkeypatch.setattr("kdcli.runs.material.affordable_views", lambda *given: 1)
    options = method_options("generic", pictures, probed, pictures.parent / "room", **{"views.count": "3"})
    distill.plan(resolve(distill.Config, options=options), Console())
    assert (
        "3 views of all pictures take 68.9 KB, more than 80 % of what is free"
        in capsys.readouterr().err.replace("\n", " ")
    )


def test_auto_keeps_features_live(plan: Any) -> None:
    assert not plan("generic", **{"views.count": "auto"}).material.cached


@pytest.mark.parametrize("name", ["generic", "seed", "proteus"])
def test_a_stopped_run_goes_on_bit_for_bit(name: str, plan: Any) -> None:
    whole = plan(name, "whole")
    distill.run(whole, QUIET)
    part = plan(name, "part")
    with pytest.raises(Preempted):
        distill.run(part, QUIET, stop=StopAfter(2))
    distill.run(plan(name, "part"), QUIET)
    weights = [read_tensors(p.target.path / "model.safetensors") for p in (whole, part)]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_nothing_but_the_backbone_is_written(plan: Any, tmp_path: Path) -> None:
    made = plan("generic")
    distill.run(made, QUIET)
    body = timm.create_model(f"local-dir:{made.target.path}", pretrained=True)
    assert body.num_classes == 0
    own = read_tensors(made.target.path / "model.safetensors")
    assert own.keys() == body.state_dict().keys()


def test_patches_that_are_hidden_need_patches(plan: Any) -> None:
    with pytest.raises(InputError, match=r"test_resnet .* has no patches that could be hidden from it"):
        plan("proteus", student="test_resnet")
    assert set(objective(plan("proteus", student="test_resnet", **{"method.patch": 0}))) == {
        "pooled",
        "features",
    }


def test_patches_are_hidden_of_some_pictures_only() -> None:
    torch.manual_seed(0)
    shown = some_hidden(torch.zeros(400, 1), torch.arange(16).view(4, 4), probability=0.25, ratio=0.5)
    counts = shown.sum(dim=1)
    assert set(counts.tolist()) == {8, 16}
    assert int((counts == 8).sum()) == 100, "the same number in every batch"


def test_terms_that_weigh_nothing_leave_their_adapters_out(plan: Any) -> None:
    made = plan("generic", **{"method.patches_weight": 0})
    assert set(objective(made)) == {"pooled"}
    assert "grid-adapter" not in made.material.assembly.parties


def test_standardised_maps_are_compared_by_squared_error_in_radio(plan: Any) -> None:
    made = plan("radio", **{"method.standard": "scale"})
    losses = {row["term"]: row["loss"] for row in made.to_json()["objective"]}
    assert losses == {"pooled": "cosine_distance", "patches": "hint"}
    with pytest.raises(
        UsageError, match=r"method\.cosine=0\.5 is given, and changes nothing in method radio"
    ):
        plan("radio", **{"method.standard": "scale", "method.cosine": 0.5})


def test_a_queue_longer_than_the_data_is_said(
    pictures: Path, probed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from kdcli.console import Console

    for length, said in ((64, True), (32, False)):
        options = method_options("seed", pictures, probed, tmp_path, **{"method.queue": length})
        distill.plan(resolve(distill.Config, options=options), Console())
        message = f"queue holds features of {length} pictures, and there are 58 to train on"
        assert (message in capsys.readouterr().err) is said
