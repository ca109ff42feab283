"""Columns of a micro-batch that losses read."""

from __future__ import annotations

import numpy as np
import torch

from kdcli.data.order import Order
from kdcli.engine.micro import MicroBatches
from kdcli.sections import OptimSection
from kdcli.tasks.classification.target import ClassColumns


class OneProcess:
    """Where a batch is on one device."""

    device, rank, world_size = torch.device("cpu"), 0, 1


def test_a_mixed_picture_weighs_as_much_as_the_classes_in_it() -> None:
    labels = np.array([0, 1, 1, 1])
    optim, weight = OptimSection(batch_size=4, mixup=1.0), torch.tensor([2.0, 0.5])
    make = MicroBatches(Order(labels, 4, 0, None), optim, ClassColumns(2, weight), 5)
    batch = {
        "x": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        "y": torch.from_numpy(labels),
    }
    ((columns, _),) = make(batch, 0, OneProcess())  # type: ignore[arg-type]
    part = columns["target"][0, 0]  # of the first picture, whose partner is of the other class
    assert 0.01 < part < 0.99
    expected = torch.stack([2 * part + 0.5 * (1 - part), torch.tensor(0.5), torch.tensor(0.5)])
    torch.testing.assert_close(columns["row_weight"][:3], expected)
    torch.testing.assert_close(columns["row_weight"][3], 2 * (1 - part) + 0.5 * part)
