"""The working directory is the data: the default output and its caches lie there, and are no data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toolbox import QUIET, StopAfter, class_folders, facts

from kdcli.config import resolve
from kdcli.errors import Preempted
from kdcli.runs import Result
from kdcli.stages import distill, evaluate, synthesize


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = class_folders(tmp_path / "cars", {"audi": 10, "bmw": 10, "fiat": 10, "opel": 10})
    monkeypatch.chdir(folder)
    return folder


def planned(stage: Any, **more: Any) -> Any:
    options = {"data.source": ".", **more}
    return stage.plan(resolve(stage.Config, options=options), QUIET, unless_complete=True)


TRAIN = {
    "student": "test_resnet",
    "from_scratch": True,
    "image_size": 32,
    "views.count": "1",
    "optim.max_steps": 6,
    "optim.batch_size": 8,
}


def test_runs_again_and_again(here: Path, teacher: Path) -> None:
    """Stopped and continued, complete, another one beside it, started anew: always the same data."""
    renamed = {"data.class_order": "same", "teacher": str(teacher)}
    first = planned(distill, **TRAIN, **renamed)
    with pytest.raises(Preempted):
        distill.run(first, QUIET, stop=StopAfter(7))
    partial = Path(f"{first.target.path}.partial")
    assert (partial.is_dir(), Path("runs/cache").is_dir()) == (True, True)
    again = planned(distill, **TRAIN, **renamed)
    assert again.target == first.target
    assert distill.run(again, QUIET).path == first.target.path
    done = planned(distill, **TRAIN, **renamed)
    assert isinstance(done, Result)
    assert done.path == first.target.path
    other = planned(distill, **TRAIN, **renamed, seed=1)
    assert other.target.path != first.target.path
    anew = planned(distill, **TRAIN, **renamed, overwrite=True)
    assert anew.target == first.target
    splits = facts(here / first.target.path)["data"]["splits"]
    assert sum(split["samples"] for split in splits.values()) == 40
    Path("runs/notes.txt").write_text("the user's own")
    (here / "runs" / "segment-1.partial").mkdir()
    assert isinstance(planned(distill, **TRAIN, **renamed), Result)


def test_reports_and_new_pictures_are_no_data_either(here: Path, teacher: Path) -> None:
    for _ in range(2):
        made = planned(synthesize, mixer="mixup", per_image=1, resolution=32, **{"data.min_side": 8})
        pictures = made.path if isinstance(made, Result) else synthesize.run(made, QUIET).path
        assert facts(pictures)["images"] == 40
        judged = planned(
            evaluate, models=[str(teacher)], split="train", cost=False, **{"data.class_order": "same"}
        )
        if not isinstance(judged, Result):
            evaluate.run(judged, QUIET)
    assert len([path for path in Path("runs").iterdir() if path.name != "cache"]) == 2
