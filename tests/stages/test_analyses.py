"""eval with occlusion and CKA, in process on real small pictures: report, page, plan, identity, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from toolbox import QUIET

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.errors import KdcliError, UsageError
from kdcli.metrics.cka import cka, gram, hsic_parts
from kdcli.models.build import build
from kdcli.stages import evaluate


@pytest.fixture(scope="module")
def models(probed: Callable[[str], Path]) -> list[str]:
    """Two probed toys of 32 px."""
    return [str(probed(name)) for name in ("test_vit", "test_resnet")]


@pytest.fixture
def planned(models: list[str], pictures: Path, tmp_path: Path) -> Callable[..., evaluate.Plan]:
    def make(**more: Any) -> evaluate.Plan:
        options = {
            **{"models": models, "data.source": str(pictures), "out": str(tmp_path / "r"), "cost": False},
            **more,
        }
        found = evaluate.plan(resolve(evaluate.Config, options=options), QUIET)
        assert isinstance(found, evaluate.Plan)
        return found

    return make


def report_of(plan: evaluate.Plan) -> tuple[dict[str, Any], str]:
    """What a run writes: the report, and its page with single spaces."""
    path = evaluate.run(plan, QUIET).path
    page = (path / "report.html").read_text()
    return json.loads((path / "report.json").read_text()), " ".join(page.split())


def test_occlusion_and_cka_of_two_models(planned: Any, models: list[str], tmp_path: Path) -> None:
    asked = {"occlusion": True, "occlusion_grid": 8, "cka": True, "teacher": models[0]}
    report, page = report_of(planned(**asked))
    assert report["occlusion"] == {"grid": 8, "value": "accuracy", "chance": 0.25}
    for model in report["models"]:
        rows = model["occlusion"]
        assert [row["ratio"] for row in rows] == [i / 10 for i in range(10)]
        assert rows[0]["accuracy"] == model["metrics"]["top1"]
        assert all(row["accuracy"] * 24 == pytest.approx(round(row["accuracy"] * 24)) for row in rows)
    assert len({row["accuracy"] for model in report["models"] for row in model["occlusion"]}) > 2
    own, other = (model["cka"] for model in report["models"])
    assert report["cka"] == {"pictures": 24, "minibatch": 256}
    depths = [len(build(name).block_taps()) for name in models]
    assert own["teacher"] == other["teacher"] == [f"block{i + 1}" for i in range(depths[0])]
    assert (len(own["values"]), len(own["values"][0])) == (depths[0], depths[0])
    assert (len(other["values"]), len(other["values"][0])) == (depths[1], depths[0])
    assert [own["values"][i][i] for i in range(depths[0])] == pytest.approx([1] * depths[0])
    assert all(-0.5 < value < 1 for row in other["values"] for value in row)
    for text in (
        "<h2>Occlusion</h2>", "of 8 × 8 cells", "chance, 25.0%", "hidden cells (%)", "top-1 accuracy (%)",
        "<h2>Blocks of student and teacher</h2>", "block of the teacher", "over 24 of 24 pictures;",
        "<h3>test_resnet compared with",
    ):  # fmt: skip
        assert text in page
    # other batches: the same
    again, _ = report_of(planned(**asked, batch_size=5, out=str(tmp_path / "again")))
    for one, two in zip(report["models"], again["models"]):
        assert one["occlusion"] == two["occlusion"]
        torch.testing.assert_close(torch.tensor(one["cka"]["values"]), torch.tensor(two["cka"]["values"]))


def test_cka_is_that_of_activations_which_hooks_see(planned: Any, models: list[str]) -> None:
    from kdcli.data.batches import evaluation_loader

    plan = planned(models=models[1:], cka=True, teacher=models[0])
    report, _ = report_of(plan)
    seen: list[list[torch.Tensor]] = []
    for name, layers in ((models[1], ["layer1", "layer4"]), (models[0], ["blocks.0", "blocks.5"])):
        network = build(name).eval()
        kept: list[torch.Tensor] = []
        for layer in layers:
            module = network.get_submodule(f"body.{layer}")
            module.register_forward_hook(lambda _m, _i, y, kept=kept: kept.append(gram(y)))
        loader = evaluation_loader(plan.samples, network.spec, max_pixels=10**6, workers=0, timeout=9)
        with torch.no_grad():
            network(next(iter(loader([[(i, 0) for i in range(24)]])))["x"])
        seen.append(kept)
    wanted = cka(hsic_parts(torch.stack(seen[0]), torch.stack(seen[1])))
    found = report["models"][0]["cka"]
    values = torch.tensor(found["values"], dtype=torch.float64)[[1, -1]][:, [0, -1]]
    assert (len(found["student"]), len(found["teacher"])) == (5, 6)
    torch.testing.assert_close(values, wanted, rtol=1e-5, atol=1e-6)


def test_pictures_that_cka_leaves_out_are_said(
    planned: Any, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("kdcli.engine.similarity.MINIBATCH", 11)
    report, page = report_of(planned(models=models[1:], cka=True, teacher=models[0]))
    assert report["cka"] == {"pictures": 22, "minibatch": 11}
    note = "CKA leaves out a last minibatch of 2: HSIC is estimated of 4 pictures or more."
    assert note in report["notes"]
    assert "over 22 of 24 pictures, drawn at random" in page


def test_a_report_without_them_says_nothing_of_them(planned: Any) -> None:
    report, page = report_of(planned())
    assert not {"occlusion", "cka"} & {*report, *report["models"][0]}
    assert "Occlusion" not in page
    assert "CKA" not in page


def test_the_seed_decides_which_cells_are_hidden(planned: Any, models: list[str], tmp_path: Path) -> None:
    found = [
        report_of(planned(models=models[:1], occlusion=True, seed=seed, out=str(tmp_path / str(seed))))[0]
        for seed in (0, 1)
    ]
    curves = [report["models"][0]["occlusion"] for report in found]
    assert curves[0][0] == curves[1][0]
    assert curves[0] != curves[1]


def test_a_plan_says_what_they_cost(planned: Any, models: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    console = Console(silent=True)
    monkeypatch.setattr(console, "note", said.append)
    planned(occlusion=True, cka=True, teacher=models[1]).describe(console)
    assert "occludes 10% to 90% of 14 x 14 cells at random: 9 more passes per model" in said
    assert (
        "compares blocks by CKA (test_vit 6, test_resnet 5, teacher 5): one more pass per network over 24 of "
        "24 pictures"
    ) in said


def test_they_are_part_of_what_a_report_is(planned: Any, models: list[str]) -> None:
    more: list[dict[str, Any]] = [{}, {"occlusion": True}, {"occlusion": True, "occlusion_grid": 7}]
    more += [{"cka": True}]
    found = [planned(teacher=models[1], **one).target.identity["config"] for one in more]
    assert all(one != two for i, one in enumerate(found) for two in found[:i])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"cka": True}, "cka: it compares blocks with those of a teacher; give --teacher"),
        ({"occlusion_grid": 7}, "occlusion_grid is given, and nothing is hidden without occlusion=true"),
        (
            {"occlusion": True, "occlusion_grid": 33},
            r"occlusion_grid: 33 cells along a side are more than .* what test_vit sees \(32 x 32\)",
        ),
        ({"occlusion": True, "occlusion_grid": 1}, "occlusion_grid"),
    ],
)
def test_refusals(planned: Any, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        planned(**more)


def test_blocks_without_names_are_refused(
    planned: Any, models: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdcli.models.timm import TimmModel

    monkeypatch.setattr(TimmModel, "block_taps", lambda self: [] if "resnet" in self.name else ["block1"])
    with pytest.raises(KdcliError, match=r"cka: the blocks of test_resnet \(test_resnet\) have no names"):
        planned(cka=True, teacher=models[0])
    with pytest.raises(KdcliError, match=r"cka: the blocks of teacher \(test_resnet\) have no names"):
        planned(models=models[:1], cka=True, teacher=models[1])
