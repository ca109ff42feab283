"""How many fixed views a run makes, and what their cache costs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from kdcli.data.cache import Store
from kdcli.engine.budget import affordable_views, bytes_per_view, fixed_views
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
