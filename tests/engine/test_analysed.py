"""Occluded pictures, and blocks of networks: what one cell decides, batches, several as one, minibatches."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from kdcli.artifacts.model import InputSpec
from kdcli.config import resolve
from kdcli.data.samples import Samples
from kdcli.engine import inference, similarity
from kdcli.engine.inference import Measuring
from kdcli.engine.occlusion import HIDDEN, hide, occluded
from kdcli.engine.runtime import open_runtime
from kdcli.metrics.cka import cka, gram, hsic_parts
from kdcli.metrics.occlusion import hidden_cells, hidden_pixels, hiding_order
from kdcli.models.ensemble import Ensemble
from kdcli.models.timm import TimmModel
from kdcli.sections import DataSection
from kdcli.stages import evaluate
from kdcli.tasks import open_task_data

GRID, SEED, EACH = 4, 5, 12


class OneCell(nn.Module):
    """Tells dark from bright pictures by cell (1, 2) of 4 x 4; of the mean colour it says a third class."""

    def __init__(self, sees: int) -> None:
        super().__init__()
        self.sees = sees
        self.scale = nn.Parameter(torch.ones(()))
        self.answered = 0

    def forward(self, x: Tensor) -> Tensor:
        self.answered += len(x)
        step = self.sees // GRID
        value = self.scale * x[:, :, step : 2 * step, 2 * step : 3 * step].mean((1, 2, 3))
        return torch.stack([value, -value, torch.full_like(value, 0.01)], dim=1)


def network(sees: int) -> TimmModel:
    spec = InputSpec((sees, sees), (0.5,) * 3, (0.2,) * 3)
    return TimmModel(OneCell(sees), spec, ["a", "b", "c"], name="one")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Samples:
    """Bright and dark pictures of one colour each."""
    folder = tmp_path_factory.mktemp("bright and dark")
    for name, start in (("a bright", 200), ("b dark", 0)):
        (folder / "test" / name).mkdir(parents=True)
        for i in range(EACH):
            Image.new("RGB", (16, 16), (start + i,) * 3).save(folder / "test" / name / f"{i}.png")
    return open_task_data(DataSection(source=str(folder)), "test").split("test")


@pytest.fixture
def measuring(samples: Samples) -> Any:
    runtime = open_runtime(resolve(evaluate.Config, options={"device": "cpu"}))
    reading = {"max_pixels": 10**6, "workers": 0, "timeout": 9}
    return lambda batch_size=7: Measuring(samples, runtime, batch_size, reading)


def right(samples: Samples) -> Any:
    y = torch.from_numpy(samples.labels)
    return lambda logits, rows: (logits.argmax(1) == y[rows])[:, None]


def test_a_network_that_reads_one_cell_loses_the_pictures_whose_cell_is_hidden(
    samples: Samples, measuring: Any
) -> None:
    one = network(16)
    plain = inference.outputs(one, measuring()).argmax(1) == torch.from_numpy(samples.labels)
    assert plain.all()
    found = occluded(one, GRID, SEED, right(samples), measuring())[:, :, 0].bool()
    order = hiding_order(SEED, [int(i) for i in samples.ids], GRID)
    place = order[:, 1 * GRID + 2]
    for ratio, answers in zip(HIDDEN, found.T):
        assert torch.equal(answers, place >= hidden_cells(ratio, GRID)), ratio
    assert 0 < found.float().mean() < 1


def test_neither_batches_nor_the_networks_size_nor_other_pictures_change_the_masks(
    samples: Samples, measuring: Any
) -> None:
    wanted = occluded(network(16), GRID, SEED, right(samples), measuring())
    assert torch.equal(occluded(network(16), GRID, SEED, right(samples), measuring(24)), wanted)
    assert torch.equal(occluded(network(32), GRID, SEED, right(samples), measuring()), wanted)
    assert not torch.equal(occluded(network(16), GRID, SEED + 1, right(samples), measuring()), wanted)
    rows = np.arange(3, 20)
    part = samples.take(rows)
    some = Measuring(part, measuring().runtime, 7, measuring().reading)
    assert torch.equal(occluded(network(16), GRID, SEED, right(part), some), wanted[rows])


def test_pictures_are_read_once(samples: Samples, measuring: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    real = Samples.picture

    def picture(self: Samples, index: int, most: int) -> Any:
        read.append(index)
        return real(self, index, most)

    monkeypatch.setattr(Samples, "picture", picture)
    one, bars = network(16), list[int]()
    occluded(one, GRID, SEED, right(samples), measuring(), bars.append)
    assert sorted(read) == list(range(2 * EACH))
    assert one.body.answered == len(HIDDEN) * 2 * EACH
    assert bars[-1] == 2 * EACH


@torch.no_grad()
def test_nothing_hidden_is_the_plain_answer_and_the_rest_has_the_mean_colour() -> None:
    one = network(16)
    x = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    order = hiding_order(0, [1, 2, 3], GRID)
    ready = one.prepare(x)
    assert torch.equal(one(hide(ready, hidden_pixels(order, 0, (16, 16)), one)), one(x))
    hidden = hidden_pixels(order, 0.5, (16, 16))
    found = hide(ready, hidden, one)
    assert torch.equal(found == 0, hidden.expand_as(found) | (ready == 0))
    assert torch.equal(found[~hidden.expand_as(found)], ready[~hidden.expand_as(found)])
    # several as one take views, which get the colour of what the largest of them wants
    both = Ensemble([one, network(16)], "logits")
    views = hide(both.prepare(x), hidden, both)
    assert views.dtype == torch.uint8
    assert set(views[hidden.expand_as(views)].tolist()) == {128}
    assert torch.equal(views[~hidden.expand_as(views)], x[~hidden.expand_as(x)])


# -- blocks --------------------------------------------------------------------------------------------------


class Two(nn.Module):
    """Two blocks, the second of which changes its input in place; a classifier."""

    feature_info = ({"module": "first"}, {"module": "second"}, {"module": "gone"})

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True)
        self.last = nn.Linear(4, 3)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))

    def forward_head(self, x: Tensor) -> Tensor:
        return self.last(x.mean((2, 3)))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "MINIBATCH", 9)
    monkeypatch.setattr(similarity, "MOST", 20)


def test_minibatches_are_drawn_by_seed_and_id(samples: Samples, small: None) -> None:
    parts = similarity.minibatches(samples.ids, 0)
    assert [len(part) for part in parts] == [9, 9]  # of 20: a rest of two is left out
    assert len({i for part in parts for i in part}) == 18
    assert all(0 < sum(i < EACH for i in part) < 9 for part in parts)  # of both classes
    assert similarity.minibatches(samples.ids, 1) != parts
    turned = similarity.minibatches(samples.ids[::-1], 0)
    last = len(samples.ids) - 1
    assert [[last - i for i in part] for part in turned] == parts


def test_blocks_of_minibatches_whatever_the_batch_size(samples: Samples, measuring: Any, small: None) -> None:
    model = TimmModel(Two(), InputSpec((16, 16), (0.5,) * 3, (0.2,) * 3), ["a", "b", "c"], name="two").eval()
    assert model.block_taps() == ["block1", "block2"]
    parts = similarity.minibatches(samples.ids, 0)
    bars: list[int] = []
    found = similarity.run(model, parts, measuring(4), bars.append)
    assert found.taps == ["block1", "block2"]
    assert bars == [4, 8, 9, 13, 17, 18]
    whole = next(iter(loader(samples, model)))["x"]
    with torch.no_grad():
        body: Any = model.body
        maps = body.first(model.prepare(whole))
    wanted = [torch.stack([gram(maps[part]), gram(maps[part].relu())]) for part in parts]
    for own, other in zip(found.grams, wanted):
        torch.testing.assert_close(own, other, rtol=1e-5, atol=1e-4)
    values = similarity.alike(found, found, measuring().runtime)
    sums = hsic_parts(wanted[0], wanted[0]) + hsic_parts(wanted[1], wanted[1])
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), cka(sums), rtol=1e-4, atol=1e-5)
    large = similarity.run(model, parts, measuring(20))
    again = similarity.alike(large, large, measuring().runtime)
    torch.testing.assert_close(torch.tensor(again), torch.tensor(values))


def loader(samples: Samples, model: TimmModel) -> Any:
    from kdcli.data.batches import evaluation_loader

    made = evaluation_loader(samples, model.spec, max_pixels=10**6, workers=0, timeout=9)
    return made([[(i, 0) for i in range(len(samples))]])


def test_a_block_that_says_nothing_has_no_value(measuring: Any) -> None:
    flat = similarity.Blocks(["block1"], [torch.zeros(1, 5, 5, dtype=torch.float64)])
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    other = similarity.Blocks(["block1"], [gram(x)[None]])
    assert similarity.alike(flat, other, measuring().runtime) == [[None]]
    assert similarity.alike(other, other, measuring().runtime) == [[pytest.approx(1)]]
