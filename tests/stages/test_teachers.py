"""Teacher policies of distill: several teachers, a chain of assistants; extra pictures at a ratio."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from toolbox import QUIET, facts

from kdcli.config import resolve
from kdcli.console import Console
from kdcli.errors import InputError, UsageError
from kdcli.models.build import build
from kdcli.runs import Result
from kdcli.stages import distill

Options = dict[str, Any]


@pytest.fixture(scope="module")
def base(pictures: Path) -> Options:
    return {
        "student": "test_resnet",
        "from_scratch": True,
        "image_size": 32,
        "data.source": str(pictures),
        "optim.max_steps": 4,
        "optim.batch_size": 8,
    }


@pytest.fixture(scope="module")
def teachers(base: Options, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Two toys of different families, trained on the same validation split."""
    folder = tmp_path_factory.mktemp("teachers")
    found = []
    for student in ("test_vit", "test_resnet"):
        more = {"method.name": "supervised", "student": student, "out": str(folder / student)}
        made = distill.plan(resolve(distill.Config, options=base | more), QUIET)
        found.append(str(distill.run(made, QUIET).path))
    return found


@pytest.fixture
def plan(base: Options, tmp_path: Path) -> Any:
    def make(unless_complete: bool = False, **more: Any) -> Any:
        options = base | {"out": str(tmp_path / "out"), "cache": str(tmp_path / "cache")} | more
        return distill.plan(resolve(distill.Config, options=options), QUIET, unless_complete=unless_complete)

    return make


@pytest.mark.parametrize("views", ["2", "live"])
def test_two_teachers_are_their_mean(views: str, plan: Any, teachers: list[str], tmp_path: Path) -> None:
    """A mean of the teachers' logits as one teacher gives the same student, cached or live."""
    fp32 = {"views.count": views, "method.alpha": 1.0}
    fp32 |= {"views.store": "fp32"} if views == "2" else {}
    out = distill.run(plan(teacher=teachers, **fp32), QUIET).path
    assert [p["role"] for p in facts(out)["parents"]] == ["student", "teacher1", "teacher2"]
    assert [p["path"] for p in facts(out)["parents"][1:]] == teachers

    class Both(torch.nn.Module):
        """The two, one after the other."""

        def __init__(self) -> None:
            super().__init__()
            self.networks = torch.nn.ModuleList(build(name).eval() for name in teachers)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return sum(network(x) for network in self.networks) / 2

    made = plan(teacher=teachers[0], out=str(tmp_path / "naive"), **fp32)
    first = made.material.networks["teacher"]
    first.body, first.prepare, first.source = Both(), lambda x: x, "both"
    naive = distill.run(made, QUIET).path
    for name, tensor in load_file(out / "last" / "model.safetensors").items():
        torch.testing.assert_close(tensor, load_file(naive / "last" / "model.safetensors")[name])


def test_how_teachers_are_averaged_is_recorded(plan: Any, teachers: list[str]) -> None:
    made = plan(teacher=teachers, teacher_mean="probabilities")
    assert made.material.networks["teacher"].body.mean == "probabilities"
    assert made.target.identity["config"]["teacher_mean"] == "probabilities"
    assert {"teacher1", "teacher2"} <= set(made.target.identity["parents"])


def test_one_teacher_is_no_list_in_yaml(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    for text, names in (("teacher: a", ["a"]), ("teacher: [a, b]", ["a", "b"]), ("teacher:", [])):
        file.write_text(text)
        assert resolve(distill.Config, file=file).teacher == names


def test_a_chain_of_assistants(plan: Any, teachers: list[str], tmp_path: Path) -> None:
    chain = plan(teacher=teachers[0], via=["test_vit2", "test_efficientnet"])
    assert chain.to_json()["chain"] == ["test_vit2", "test_efficientnet", "test_resnet"]
    out = distill.run(chain, QUIET).path
    assert out == tmp_path / "out"
    links = [tmp_path / "out-via-1", tmp_path / "out-via-2", out]
    parents = [{p["role"]: p["path"] for p in facts(link)["parents"]} for link in links]
    assert [p["student"] for p in parents] == ["test_vit2", "test_efficientnet", "test_resnet"]
    assert [p["teacher"] for p in parents] == [teachers[0], *map(str, links[:2])]
    before = [(link / "kdcli.json").stat().st_mtime_ns for link in links]
    again = plan(unless_complete=True, teacher=teachers[0], via=["test_vit2", "test_efficientnet"])
    assert isinstance(again, Result)
    assert again.path == out
    assert [(link / "kdcli.json").stat().st_mtime_ns for link in links] == before


def test_a_chain_goes_on_where_it_stopped(plan: Any, teachers: list[str], tmp_path: Path) -> None:
    first = plan(teacher=teachers[0], via=["test_vit2"])
    distill.run(first.first, QUIET)  # and killed
    again = plan(unless_complete=True, teacher=teachers[0], via=["test_vit2"])
    assert again.index == 1
    assert again.first.config.teacher == [str(tmp_path / "out-via-1")]
    assert distill.run(again, QUIET).path == tmp_path / "out"


def test_a_chain_says_what_it_does(
    plan: Any, teachers: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plan(teacher=teachers[0], via=["test_vit2"]).describe(Console(stream=sys.stderr))
    shown = capsys.readouterr().err
    assert f"chain    {teachers[0]} → test_vit2 → test_resnet; next is test_vit2" in shown
    assert "out-via-1" in shown


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        ({"via": ["test_vitt"]}, InputError, "test_vitt"),
        ({"via": ["test_vit"], "student": "test_resnett"}, InputError, "test_resnett"),
        ({"via": ["test_vit"], "method.alpha": 0.0}, UsageError, "--via passes on what a teacher knows"),
        ({"data.extra_ratio": 1.0}, UsageError, "--extra-ratio needs --extra"),
        ({"data.extra_ratio": 1.0, "data.labelled_fraction": 0.5}, UsageError, "both fill batches: give one"),
    ],
)
def test_refusals(
    more: Options, error: type[Exception], message: str, plan: Any, teachers: list[str]
) -> None:
    with pytest.raises(error, match=message):
        plan(teacher=teachers[0], **more)


@pytest.fixture(scope="module")
def extra(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    import datasets

    folder = tmp_path_factory.mktemp("extra") / "more"
    datasets.load_from_disk(str(pictures))["test"].remove_columns("label").save_to_disk(str(folder))
    return str(folder)


@pytest.mark.parametrize(("ratio", "share"), [(0.0, 0.0), (1.0, 0.5), (3.0, 0.75), (0.25, 0.2)])
def test_extra_ratio_is_exact_over_time(
    ratio: float, share: float, plan: Any, teachers: list[str], extra: str
) -> None:
    made = plan(teacher=teachers[0], **{"data.extra": [extra], "data.extra_ratio": ratio})
    real = len(made.data.split("train"))
    batches = [sum(index >= real for index, _ in made.material.order.keys(step)) for step in range(100)]
    assert sum(batches) / 800 == pytest.approx(share, abs=1 / 800)
    assert max(batches) - min(batches) <= 1  # every batch holds its share


def test_without_a_ratio_all_are_drawn_alike(plan: Any, teachers: list[str], extra: str) -> None:
    made = plan(teacher=teachers[0], **{"data.extra": [extra, extra]})
    real, pool = len(made.data.split("train")), len(made.material.pool)
    assert pool == real + 48
    seen = [index for step in range(pool) for index, _ in made.material.order.keys(step)]
    assert set(Counter(seen).values()) == {8}  # as many steps of 8 as pictures: eight passes
