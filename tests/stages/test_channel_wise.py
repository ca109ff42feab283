"""Method cwd and its term, in process: on masks a run, and on anything else a refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, facts, rows, training_plan

from kdcli.errors import UsageError
from kdcli.losses.channels import channel_cross_entropy, channel_kl_divergence
from kdcli.losses.pixels import pixel_cross_entropy, pixel_kl_divergence
from kdcli.methods import addition
from kdcli.stages import distill

Plan = Callable[..., Any]


@pytest.fixture
def train(masks_data: Path, masked: Callable[[str], Path], tmp_path: Path) -> Plan:
    def make(out: str = "o", **more: Any) -> Any:
        usual = {"method.name": "cwd", "teacher": str(masked("test_resnet")), "optim.max_steps": 4}
        return training_plan(masks_data, tmp_path / out, tmp_path / "cache", **{**usual, **more})

    return make


def weighed(plan: Any) -> list[tuple[Any, float]]:
    return [(term.loss, term.weight) for term in plan.method.turns[0].terms]


@pytest.mark.parametrize("count", ["1", "live"])
def test_the_divergence_is_in_the_log_and_weighs_nothing(count: str, train: Plan) -> None:
    plan = train(**{"views.count": count})
    assert weighed(plan) == [
        (pixel_cross_entropy, 1),
        (channel_cross_entropy, 3),
        (channel_kl_divergence, 0),
    ]
    shown = {row["term"]: row["taps"] for row in plan.to_json()["objective"]}
    assert shown["cwd"] == "s.logits [4, 4, 4], ~t.logits [4, 4, 4], mask [32, 32]"
    logged = [row for row in rows(distill.run(plan, QUIET).path) if "loss" in row]
    assert [row["step"] for row in logged] == [1, 2, 3, 4]
    for row in logged:
        assert row["loss"] == pytest.approx(row["ce"] + 3 * row["cwd"], rel=1e-5)
        entropy = row["cwd"] - row["cwd-kl"]  # of the teacher's maps, of 16 positions
        assert 0 < row["cwd-kl"] < row["cwd"]
        assert 0 < entropy < 2.7726


def test_grids_of_other_sizes_meet(train: Plan) -> None:
    plan = train(student="test_vit")
    assert plan.material.assembly.shapes["s.logits"] == (4, 2, 2)
    logged = [row for row in rows(distill.run(plan, QUIET).path) if "loss" in row]
    assert all(row["cwd-kl"] > 0 for row in logged)


def test_pixels_instead_of_channels(train: Plan) -> None:
    plan = train(**{"method.weight": 0.0, "method.kd": 1.0, "method.temperature": 2.0})
    assert weighed(plan) == [(pixel_cross_entropy, 1), (pixel_kl_divergence, 1)]
    assert plan.method.turns[0].terms[1].keywords["temperature"] == 2.0
    assert {"kl", "ce"} <= set(rows(distill.run(plan, QUIET).path)[0])
    with pytest.raises(UsageError, match=r"method\.temperature=2\.0 is given, and changes nothing"):
        train(**{"method.weight": 0.0, "method.temperature": 2.0})


def test_pictures_without_masks_enter_its_term(pictures: Path, train: Plan) -> None:
    extra = {"data.extra": [str(pictures)], "data.labels_per_class": 20, "method.ce": 0.0}
    plan = train(**extra)
    terms = {term.name: term.rows for term in plan.method.turns[0].terms}
    assert terms == {"cwd": None, "cwd-kl": None}
    assert int((plan.material.pool.labels < 0).sum()) > 20
    out = distill.run(plan, QUIET).path
    assert all(torch.isfinite(t).all() for t in load_file(out / "head.safetensors").values())
    assert facts(out)["cost"]["teacher_forwards"] > 0


def test_its_term_stands_beside_another_method(train: Plan) -> None:
    plan = train(**{"method.name": "task-specific", "terms": ["cwd=3,temperature=4"]})
    assert [(term.name, term.weight) for term in plan.method.turns[0].terms] == [
        *(("ce", 0.5), ("kl", 0.5)),
        *(("cwd", 3), ("cwd-kl", 0)),
    ]
    assert plan.method.turns[0].terms[2].keywords == {"temperature": 4}
    assert [term.name for term in addition("cwd=1,as=maps").terms] == ["maps", "maps-kl"]


@pytest.mark.parametrize(
    ("more", "what"),
    [({"method.name": "cwd"}, "method cwd"), ({"method.name": "kd", "terms": ["cwd=3"]}, "--add cwd=3")],
)
def test_other_data_than_masks_are_refused(
    more: dict[str, Any], what: str, pictures: Path, probed: Callable[[str], Path], tmp_path: Path
) -> None:
    message = f"{what} is for segmentation, and these data are for classification"
    with pytest.raises(UsageError, match=message):
        training_plan(pictures, tmp_path / "o", tmp_path / "c", teacher=str(probed("test_resnet")), **more)


def test_terms_of_whole_pictures_are_refused_on_masks(train: Plan) -> None:
    with pytest.raises(UsageError, match=r"--add sp=1 is for .*, and these data are for segmentation"):
        train(terms=["sp=1"])
