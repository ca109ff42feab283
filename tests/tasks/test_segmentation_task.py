"""Segmentation as a task: its terms, and options that it has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from kdcli.data.samples import Data
from kdcli.errors import UsageError
from kdcli.losses.pixels import pixel_cross_entropy
from kdcli.sections import DataSection, OptimSection, ViewSection
from kdcli.tasks import task_of

DATA = Data("d", ["sky", "sea"], {}, task="segmentation")


def test_terms_and_names() -> None:
    task = task_of(DATA, DataSection(), OptimSection(label_smoothing=0.1), ViewSection())
    assert (task.name, task.classes, task.selection) == ("segmentation", ("sky", "sea"), "miou")
    (term,) = task.supervised("s")
    assert (term.loss, term.args, term.rows) == (pixel_cross_entropy, ("s.logits", "mask"), "labelled")
    assert term.keywords == {"label_smoothing": 0.1}
    columns = task.target_columns(np.zeros(3, np.int64)).plain({"y": torch.tensor([0, -1])})
    assert {name: column.tolist() for name, column in columns.items()} == {"labelled": [True, False]}


@pytest.mark.parametrize(
    ("data", "optim", "views", "message"),
    [
        ({"class_balance": "loss"}, {}, {}, "--class-balance evens out pictures"),
        ({}, {"mixup": 0.2}, {}, r"no optim\.mixup and optim\.cutmix: pixels would part"),
        ({}, {}, {"store": "top5"}, r"no views\.store=topK"),
        ({}, {}, {"auto_augment": "rand-m9"}, r"no views\.auto_augment"),
    ],
)
def test_options_it_has_not(data: Any, optim: Any, views: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        task_of(DATA, DataSection(**data), OptimSection(**optim), ViewSection(**views))
