"""Pixels of a split: windows and their averages, figures against a naive count, division of a batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from kdcli.config import resolve
from kdcli.engine.runtime import open_runtime
from kdcli.engine.turn import TurnModule
from kdcli.losses.pixels import pixel_cross_entropy, pixel_kl_divergence
from kdcli.metrics.segmentation import FOLLOWS, segmentation_metrics
from kdcli.models.build import build
from kdcli.sections import DataSection, RunSection
from kdcli.tasks import open_task_data
from kdcli.tasks.segmentation.pixels import Reading, pixel_logits, slid, tallies
from kdcli.words import Call, Term, Turn

RUNTIME = {"device": "cpu"}


# -- windows -------------------------------------------------------------------------------------------------


def brightness(x: torch.Tensor) -> torch.Tensor:
    """Two logits a pixel that depend on that pixel alone."""
    grey = x.float().mean(1, keepdim=True)
    return torch.cat([grey, 255 - grey], dim=1)


def picture(height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 40), (37, 23), (33, 64)])
@pytest.mark.parametrize("stride", [16, 10, 7])
@pytest.mark.parametrize("batch", [1, 3, 100])
def test_windows_of_a_function_of_pixels_are_that_function(
    height: int, width: int, stride: int, batch: int
) -> None:
    x = picture(height, width)
    torch.testing.assert_close(slid(brightness, x, 16, stride, batch), brightness(x[None])[0])


def test_logits_are_averaged_where_windows_overlap() -> None:
    seen: list[torch.Tensor] = []

    def numbered(x: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return torch.full((1, 1, 8, 8), float(len(seen)))

    found = slid(numbered, picture(8, 12), 8, 4, 1)
    assert len(seen) == 2
    assert found[0, 0].tolist() == [1.0] * 4 + [1.5] * 4 + [2.0] * 4
    seen.clear()
    assert slid(numbered, picture(8, 13), 8, 4, 1)[0, 0].tolist() == [1.0] * 4 + [1.5] + [2] * 3 + [
        2.5
    ] * 4 + [3]


def test_a_picture_below_the_window_is_enlarged_and_brought_back() -> None:
    sizes = []

    def sized(x: torch.Tensor) -> torch.Tensor:
        sizes.append(tuple(x.shape))
        return brightness(x)

    assert slid(sized, picture(10, 24), 20, 20, 9).shape == (2, 10, 24)
    assert sizes == [(3, 3, 20, 20)]  # 20 x 48


# -- a split -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def split(masks_data: Path):
    return open_task_data(DataSection(source=str(masks_data)), "test").split("test")


@pytest.fixture(scope="module")
def networks():
    classes = ["0", "1", "2", "3"]
    names = {"a": "test_vit", "b": "test_resnet"}
    return {
        key: build(name, classes=classes, task="segmentation", head="grid4", pretrained=False, size=32).eval()
        for key, name in names.items()
    }


def test_figures_are_those_of_a_naive_count(split, networks) -> None:
    from torchmetrics.classification import MulticlassJaccardIndex

    runtime = open_runtime(resolve(RunSection, options=RUNTIME))
    found = tallies(networks, "b", 4, split, runtime, Reading(5, 10_000), shown=2)
    jaccard = MulticlassJaccardIndex(4, average="macro", ignore_index=255)
    same = pixels = 0
    for i in range(len(split)):
        predictions = []
        for net in networks.values():
            way = Image.Resampling[net.spec.interpolation.upper()]
            image = np.array(split.picture(i, 10_000).resize((32, 32), way))
            with torch.no_grad():
                logits = net(torch.from_numpy(image).permute(2, 0, 1)[None])
            grown = F.interpolate(logits, (64, 64), mode="bilinear", align_corners=False)
            predictions.append(grown.argmax(1)[0])
        mask = split.beside(i, (64, 64), 10_000).as_subclass(torch.Tensor).long()
        jaccard.update(predictions[0][None], mask[None])
        keep = mask != 255
        same += int((predictions[0] == predictions[1])[keep].sum())
        pixels += int(keep.sum())
    assert segmentation_metrics(found["a"].confusion)["miou"] == pytest.approx(
        float(jaccard.compute()), abs=1e-6
    )
    means = dict(zip(FOLLOWS, (found["a"].follows / pixels).tolist()))
    assert means["agreement"] == pytest.approx(same / pixels, abs=1e-4)
    own = dict(zip(FOLLOWS, (found["b"].follows / pixels).tolist()))
    assert (own["agreement"], own["kl"]) == (1.0, pytest.approx(0, abs=1e-6))
    assert list(found["a"].shown) == [0, 1]
    assert found["a"].shown[1].shape == (64, 64)


def test_batches_and_a_window_as_large_as_the_picture_change_nothing(split, networks) -> None:
    runtime = open_runtime(resolve(RunSection, options=RUNTIME))
    some = split.take(torch.arange(5).numpy())
    runs = [
        list(pixel_logits(networks["b"], some, runtime, Reading(batch, 10_000, window=window)))
        for batch, window in ((5, None), (2, None), (2, 64))
    ]
    for first, second, whole in zip(*runs):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
        # squashed by Pillow, or by the network itself
        assert (first.argmax(0) == whole.argmax(0)).float().mean() > 0.9


# -- micro-batches -------------------------------------------------------------------------------------------


class Table(nn.Module):
    """Grids of logits as parameters; x selects them."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.rows = nn.Parameter(torch.randn(8, 3, 4, 4, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.rows[x]


TURN = Turn(
    "student",
    ("student",),
    (Call("s", "student"), Call("t", "teacher")),
    (
        Term("ce", pixel_cross_entropy, ("s.out", "mask"), weight=0.5, rows="labelled"),
        Term("kl", pixel_kl_divergence, ("s.out", "~t.out", "mask"), weight=0.5),
    ),
)


def gradient(parts: list[list[int]], labelled: torch.Tensor) -> torch.Tensor:
    parties = {"student": Table(0), "teacher": Table(1).requires_grad_(False)}
    module = TurnModule(TURN, parties)
    generator = torch.Generator().manual_seed(2)
    masks = torch.randint(0, 3, (8, 12, 12), generator=generator)
    for row in range(8):  # each has another share of void
        masks[row, :row] = 255
    masks[~labelled] = 0
    for rows in parts:
        index = torch.tensor(rows)
        batch = {"x": index, "mask": masks[index].byte(), "labelled": labelled[index]}
        count = max(int(labelled.sum()), 1)
        share = torch.tensor([len(rows) / 8, float(labelled[index].sum()) / count])
        module(batch, share, 0.0)["loss"].backward()
    grad = parties["student"].rows.grad
    assert grad is not None
    return grad


@pytest.mark.parametrize("labelled", [[1] * 8, [1, 1, 0, 0, 0, 1, 0, 1]])
def test_any_division_of_the_batch_gives_the_same_gradient(labelled: list[int]) -> None:
    known = torch.tensor(labelled, dtype=torch.bool)
    whole = gradient([list(range(8))], known)
    for parts in ([[0, 1, 2, 3], [4, 5, 6, 7]], [[i] for i in range(8)], [[0, 1, 2], [3], [4, 5, 6, 7]]):
        torch.testing.assert_close(gradient(parts, known), whole)


def test_an_unlabelled_picture_has_no_part_of_the_labels() -> None:
    known = torch.tensor([True] * 6 + [False] * 2)
    found = gradient([list(range(8))], known)[6:]
    student, teacher = Table(0).rows[6:].detach().requires_grad_(), Table(1).rows[6:].detach()
    mask = torch.zeros(2, 12, 12, dtype=torch.uint8)
    (0.5 * pixel_kl_divergence(student, teacher, mask) * 2 / 8).backward()
    torch.testing.assert_close(found, student.grad)
