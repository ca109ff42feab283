"""Views beside the one that is trained on: the un-augmented cut, and other crops of the same picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.artifacts.model import InputSpec
from kdcli.data.batches import training_loader
from kdcli.data.order import Order, Pool
from kdcli.data.other_views import AnotherView, other_views, plain_cut
from kdcli.data.views import TrainingView, evaluation_view
from kdcli.sections import DataSection, ViewSection
from kdcli.tasks import open_task_data

PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 80, 3), dtype=np.uint8))


def view(**fields: object) -> TrainingView:
    return TrainingView(ViewSection(**fields), 24, 7)


def test_another_view_is_another_crop_and_a_function_of_its_numbers() -> None:
    cut = view()
    found = {number: AnotherView(cut, number)(PICTURE, 3, 99) for number in (1, 2)}
    assert torch.equal(found[1], AnotherView(view(), 1)(PICTURE, 3, 99))
    pictures = [
        cut(PICTURE, 3, 99),
        *found.values(),
        AnotherView(cut, 1)(PICTURE, 4, 99),
        cut(PICTURE, 1, 99),
    ]
    assert all(p.shape == (3, 24, 24) for p in pictures)
    assert all(not torch.equal(a, b) for i, a in enumerate(pictures) for b in pictures[:i])


def test_the_plain_cut_is_the_same_in_every_view() -> None:
    cut = plain_cut(view(interpolation="bilinear"))
    expected = evaluation_view(PICTURE, InputSpec((24, 24), interpolation="bilinear"))
    assert torch.equal(cut(PICTURE, 0, 1), expected)
    assert torch.equal(cut(PICTURE, 5, 1), expected)
    assert plain_cut(view(interpolation="random")).spec.interpolation == "bicubic"
    assert set(cut.recipe()) == {"evaluation"}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_carries_the_views_that_are_asked_for(pictures: Path, workers: int) -> None:
    train = open_task_data(DataSection(source=str(pictures)), "train").split("train")
    pool, cut = Pool((train,)), view()
    keys = Order(pool.labels, 4, 0, None).keys(3)
    others = other_views(cut, ["x@2", "x@plain"])
    (batch,) = training_loader(pool, cut, others=others, max_pixels=10**7, workers=workers)([keys])
    assert set(batch) == {"x", "y", "index", "x@2", "x@plain"}
    for row, (index, number) in enumerate(keys):
        picture, sample = train.picture(index, 10**7), int(train.ids[index])
        assert torch.equal(batch["x"][row], cut(picture, number, sample))
        assert torch.equal(batch["x@2"][row], AnotherView(cut, 2)(picture, number, sample))
        assert torch.equal(batch["x@plain"][row], plain_cut(cut)(picture, 0, sample))
    (plain,) = training_loader(pool, cut, max_pixels=10**7)([keys])
    assert set(plain) == {"x", "y", "index"}
    assert torch.equal(plain["x"], batch["x"])


def test_masks_stay_beside_other_views(masks_data: Path) -> None:
    train = open_task_data(DataSection(source=str(masks_data)), "train").split("train")
    cut = view()
    (batch,) = training_loader(
        Pool((train,)), cut, others=other_views(cut, ["x@1", "x@plain"]), max_pixels=10**7
    )([[(0, 0), (1, 0)]])
    assert batch["mask"].shape == (2, 24, 24)
    assert batch["x@1"].shape == batch["x@plain"].shape == (2, 3, 24, 24)
