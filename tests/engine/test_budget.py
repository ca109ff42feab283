"""How many fixed views a run makes, and what their cache costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcli.data.cache import Store
from kdcli.engine.budget import Stream, affordable_views, bytes_per_view, fixed_views, stream_views
from kdcli.errors import UsageError


@pytest.mark.parametrize(
    ("text", "more", "views"),
    [
        ("auto", {}, 3),
        ("auto", {"epochs": 0.1}, 1),
        ("auto", {"epochs": 300.0}, 8),
        ("auto", {"affordable": 2}, 2),
        ("auto", {"affordable": 0}, None),
        ("auto", {"teacher": False}, None),
        ("auto", {"cacheable": False}, None),
        ("live", {}, None),
        ("5", {}, 5),
        ("5", {"teacher": False, "cacheable": False}, 5),
    ],
)
def test_number_of_fixed_views(text: str, more: dict[str, Any], views: int | None) -> None:
    usual: dict[str, Any] = {"teacher": True, "cacheable": True, "epochs": 2.5, "affordable": 100}
    assert fixed_views(text, **usual | more) == views


@pytest.mark.parametrize(
    ("text", "cacheable", "message"),
    [
        ("0", True, "a number above 0, live or auto, got '0'"),
        ("many", True, "a number above 0, live or auto, got 'many'"),
        (
            "2",
            False,
            r"mixed pictures, crops that follow boxes \(views\.iou_crop\), and methods that read more",
        ),
    ],
)
def test_views_that_cannot_be(text: str, cacheable: bool, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        fixed_views(text, teacher=True, cacheable=cacheable, epochs=1, affordable=9)


def test_affordable_views_follow_the_free_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(0, 0, 100_000))
    assert affordable_views(tmp_path / "not" / "yet", 100, 32) == int(80_000 / (100 * 32))
    assert affordable_views(tmp_path, 10_000, 52) == 0


@pytest.mark.parametrize("store", ["fp16", "fp32", "top3", "top9"])
def test_bytes_of_a_view_are_those_that_are_stored(store: str) -> None:
    arrays = Store(store).pack("logits", torch.randn(2, 10))
    row = sum(a.nbytes for a in arrays.values()) // 2 + np.uint64().nbytes + np.int32().nbytes
    assert bytes_per_view(10, Store(store)) == row


@pytest.mark.parametrize(
    ("streams", "more", "wanted"),
    [
        ([Stream(100, 250)], {}, 3),
        ([Stream(10, 400), Stream(90, 400)], {}, (40, 5)),
        ([Stream(10, 4000), Stream(90, 4000)], {}, (64, 8)),  # of nine times as many pictures, as many rows
        ([Stream(40, 4000), Stream(60, 4000)], {}, (12, 8)),
        ([Stream(90, 400), Stream(10, 400)], {}, (5, 40)),
        ([Stream(10, 5), Stream(90, 5)], {}, (1, 1)),
        ([Stream(10, 400), Stream(90, 400)], {"affordable": 4}, (20, 2)),
        ([Stream(10, 400), Stream(90, 400)], {"text": "3"}, 3),
        ([Stream(10, 400), Stream(90, 400)], {"text": "live"}, None),
        ([Stream(10, 400), Stream(90, 400)], {"affordable": 0}, None),
        ([Stream(10, 400), Stream(90, 400)], {"teacher": False}, None),
    ],
)
def test_few_pictures_that_are_drawn_often_have_more_views(
    streams: list[Stream], more: dict[str, Any], wanted: Any
) -> None:
    usual: dict[str, Any] = {"text": "auto", "teacher": True, "cacheable": True, "affordable": 100}
    given = usual | more
    assert stream_views(given.pop("text"), streams, **given) == wanted
