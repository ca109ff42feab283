"""The many-head solver against separate training with torch's own parts, and against scikit-learn."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdcli.engine import heads, lbfgs
from kdcli.engine.grid import Features, HeadResult, HeadSpec, Objective, Part, Training, best, logits_of
from kdcli.engine.heads import initial_weight, sample_order
from kdcli.engine.lbfgs import Descent
from kdcli.errors import Diverged, InputError, UsageError
from kdcli.tasks.classification.probe import rank, softmax

Data = tuple[dict[str, Tensor], Tensor, dict[str, Tensor], Tensor]
CLASSES = 5
GRID = [
    HeadSpec(feature, lr, decay)
    for feature in ("narrow", "wide")
    for lr in (1e-3, 0.03, 0.3, 1.0)
    for decay in (0.0, 0.05)
]


def make(n: int = 150, m: int = 80, seed: int = 0) -> Data:
    """Classes that overlap, features of two widths with an offset, a fifth of the labels hidden."""
    g = torch.Generator().manual_seed(seed)
    y = torch.randint(CLASSES, (n + m,), generator=g)
    features = {}
    for name, width in (("narrow", 12), ("wide", 33)):
        centres = torch.randn(CLASSES, width, generator=g) * 0.5
        features[name] = centres[y] + torch.randn(n + m, width, generator=g) + 0.3
    y = torch.where(torch.rand(n + m, generator=g) < 0.2, -1, y)
    return ({k: x[:n] for k, x in features.items()}, y[:n], {k: x[n:] for k, x in features.items()}, y[n:])


def train_heads(
    x: dict[str, Tensor], y: Tensor, val_x: dict[str, Tensor], val_y: Tensor,
    specs: list[HeadSpec], classes: int, device: str = "cpu", **settings: Any,
) -> list[HeadResult]:  # fmt: skip
    """The solver on the labels of two parts."""
    train, validation = Features(x, y), Features(val_x, val_y, training=False)
    return heads.train_heads(train, validation, specs, softmax(classes), Training(**settings), device)


def lbfgs_path(
    x: Tensor, y: Tensor, val_x: Tensor, val_y: Tensor, classes: int, *,
    l2: list[float], feature: str = "features", **descent: Any,
) -> list[HeadResult]:  # fmt: skip
    """The path on one feature."""
    train, validation = Features({feature: x}, y), Features({feature: val_x}, val_y, training=False)
    specs = [HeadSpec(feature, 0.0, factor, "lbfgs") for factor in l2]
    return lbfgs.lbfgs_path(train, validation, specs, softmax(classes), "cpu", Descent(**descent))


def head(
    spec: HeadSpec, weight: Tensor, bias: Tensor, top1: float, nll: float, epoch: int, epochs: int
) -> HeadResult:
    """A result as the solver gives it."""
    score = {"top1": top1, "nll": nll}
    return HeadResult(spec, {"weight": weight, "bias": bias}, score, rank(score), epoch, epochs)


def alone(
    data: Data, spec: HeadSpec, epochs: int, batch_size: int, seed: int, patience: int | None
) -> HeadResult:
    """One head with nn.Linear, autograd, torch.optim.SGD and CosineAnnealingLR."""
    features, y, val_features, val_y = data
    x, y = features[spec.feature].float()[y >= 0], y[y >= 0]
    val_x, val_y = val_features[spec.feature].float()[val_y >= 0], val_y[val_y >= 0]
    layer = nn.Linear(x.shape[1], CLASSES)
    with torch.no_grad():
        layer.weight.copy_(initial_weight(seed, spec.feature, CLASSES, x.shape[1]))
        layer.bias.zero_()
    lr = spec.lr * batch_size / 256
    sgd = torch.optim.SGD(layer.parameters(), lr, momentum=0.9, weight_decay=spec.weight_decay)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, epochs * math.ceil(len(y) / batch_size))
    found: HeadResult | None = None
    for epoch in range(1, epochs + 1):
        for rows in sample_order(seed, epoch, len(y)).split(batch_size):
            sgd.zero_grad()
            nn.functional.cross_entropy(layer(x[rows]), y[rows]).backward()
            sgd.step()
            cosine.step()
        with torch.no_grad():
            logits = layer(val_x)
            top1 = (logits.argmax(1) == val_y).double().mean().item()
            nll = nn.functional.cross_entropy(logits.double(), val_y).item()
        if found is None or (-top1, nll) < found.rank:
            weight, bias = layer.weight.detach().clone(), layer.bias.detach().clone()
            found = head(spec, weight, bias, top1, nll, epoch, epoch)
        if patience is not None and epoch - found.epoch >= patience:
            break
    assert found is not None
    return replace(found, epochs=epoch)


def same(a: HeadResult, b: HeadResult) -> None:
    """Equal to 1e-5 of the largest weight, with the same decisions."""
    assert (a.spec, a.epoch, a.epochs) == (b.spec, b.epoch, b.epochs)
    assert a.metrics["top1"] == pytest.approx(b.metrics["top1"], abs=1e-6)
    assert a.metrics["nll"] == pytest.approx(b.metrics["nll"], rel=1e-5)
    limit = 1e-5 * b.tensors["weight"].abs().max().item()
    for name, tensor in b.tensors.items():
        torch.testing.assert_close(a.tensors[name], tensor, rtol=1e-5, atol=limit)


@pytest.mark.parametrize("patience", [None, 1, 3])
@pytest.mark.parametrize("batch_size", [32, 1000])
def test_together_equals_separate_training(patience: int | None, batch_size: int) -> None:
    data = make()
    labelled = int((data[1] >= 0).sum())
    assert labelled < len(data[1])
    assert labelled % 32  # the last batch is a partial one
    settings = {"epochs": 12, "batch_size": batch_size, "seed": 3, "patience": patience}
    together = train_heads(*data, GRID, CLASSES, device="cpu", **settings)
    for result in together:
        same(result, alone(data, result.spec, **settings))
    if patience == 1 and batch_size == 32:
        assert len({result.epochs for result in together}) > 2, "heads should stop at different epochs"
        assert any(result.epoch < result.epochs for result in together), "best weights, not the last"


def test_frozen_heads_leave_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    step = heads._Stack.step

    def spy(self: heads._Stack, x: Tensor, y: Tensor, cosine: float) -> None:
        sizes.append(len(self.weight) // CLASSES)
        step(self, x, y, cosine)

    monkeypatch.setattr(heads._Stack, "step", spy)
    data, specs = make(), [spec for spec in GRID if spec.feature == "wide"]
    results = train_heads(*data, specs, CLASSES, epochs=60, batch_size=32, seed=3, patience=1, device="cpu")
    steps = math.ceil(int((data[1] >= 0).sum()) / 32)
    last = max(result.epochs for result in results)
    assert sizes == [
        sum(r.epochs >= epoch for r in results) for epoch in range(1, last + 1) for _ in range(steps)
    ]
    assert sizes[-1] < sizes[0]
    assert last < 60, "the group stops once all of its heads are frozen"


def test_frozen_heads_that_stay_in_the_product_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    data, settings = make(), {"epochs": 12, "batch_size": 32, "seed": 3, "patience": 1, "device": "cpu"}
    dropped = train_heads(*data, GRID, CLASSES, **settings)
    monkeypatch.setattr(heads, "COPY_STEPS", math.inf)
    for a, b in zip(dropped, train_heads(*data, GRID, CLASSES, **settings), strict=True):
        same(a, b)


@pytest.mark.parametrize("stack_heads", [1, 3])
def test_order_subset_and_stacks_of_the_grid_change_nothing(
    monkeypatch: pytest.MonkeyPatch, stack_heads: int
) -> None:
    data, settings = make(), {"epochs": 6, "batch_size": 32, "seed": 1, "patience": 2, "device": "cpu"}
    whole = {r.spec: r for r in train_heads(*data, GRID, CLASSES, **settings)}
    subset = GRID[::-3]
    monkeypatch.setattr(heads, "CPU_STACK_BYTES", stack_heads * 8 * CLASSES * 33)
    results = train_heads(*data, subset, CLASSES, **settings)
    assert [result.spec for result in results] == subset
    for result in results:
        same(result, whole[result.spec])


def test_unlabelled_rows_are_as_if_absent_even_with_nan() -> None:
    features, y, val_features, val_y = make()
    settings = {"epochs": 3, "batch_size": 32, "seed": 0, "patience": None, "device": "cpu"}
    kept = ({k: x[y >= 0] for k, x in features.items()}, y[y >= 0], val_features, val_y)
    spoiled = {k: torch.where(y[:, None] < 0, math.nan, x) for k, x in features.items()}
    a = train_heads(*kept, GRID, CLASSES, **settings)
    b = train_heads(spoiled, y, val_features, val_y, GRID, CLASSES, **settings)
    for p, q in zip(a, b, strict=True):
        assert torch.equal(p.tensors["weight"], q.tensors["weight"])
        assert p.metrics == q.metrics


def test_fp16_storage_is_computed_in_fp32() -> None:
    features, y, val_features, val_y = make()
    half = (
        {k: x.half() for k, x in features.items()},
        y,
        {k: x.half() for k, x in val_features.items()},
        val_y,
    )
    result = train_heads(
        *half, [GRID[2]], CLASSES, epochs=3, batch_size=32, seed=0, patience=None, device="cpu"
    )
    assert result[0].tensors["weight"].dtype == torch.float32
    same(result[0], alone(half, GRID[2], 3, 32, 0, None))


def test_another_objective_learns_labels_one_by_one() -> None:
    """Binary cross-entropy of each label, against autograd: targets are [N, C], -1 in rows without any."""

    def gradient(logits: Tensor, y: Tensor) -> Tensor:
        return logits.sigmoid() - y.t()

    def loss(logits: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        value = nn.functional.binary_cross_entropy_with_logits(logits, y, reduction="sum") / len(y)
        return value, logits.sigmoid() - y

    def scores(batches: Any) -> list[dict[str, float]]:
        parts = [(logits, y.t().expand_as(logits)) for logits, y in batches]
        z, y = (torch.cat(some, dim=2) for some in zip(*parts))
        value = nn.functional.binary_cross_entropy_with_logits(z, y, reduction="none").sum(1).mean(1)
        return [{"bce": each} for each in value.tolist()]

    def lowest(score: dict[str, float]) -> tuple[float, ...]:
        return (score["bce"],)

    objective = Objective(3, gradient, loss, scores, lowest, lambda y, training: "")
    g = torch.Generator().manual_seed(0)
    x, val_x = (torch.randn(count, 6, generator=g) for count in (90, 700))
    rule = torch.randn(6, 3, generator=g)
    y, val_y = ((part @ rule > 0.5).float() for part in (x, val_x))
    hidden = y.index_fill(0, torch.arange(0, 90, 7), -1)
    spec = HeadSpec("f", 0.5, 0.01)
    train, validation = Features({"f": x}, hidden), Features({"f": val_x}, val_y, training=False)
    training = Training(epochs=5, batch_size=32, seed=1)
    [found] = heads.train_heads(train, validation, [spec], objective, training, "cpu")
    kept = (hidden >= 0).all(1)
    layer = nn.Linear(6, 3)
    with torch.no_grad():
        layer.weight.copy_(initial_weight(1, "f", 3, 6))
        layer.bias.zero_()
    sgd = torch.optim.SGD(layer.parameters(), 0.5 * 32 / 256, momentum=0.9, weight_decay=0.01)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5 * math.ceil(int(kept.sum()) / 32))
    for epoch in range(1, 6):
        for rows in sample_order(1, epoch, int(kept.sum())).split(32):
            sgd.zero_grad()
            loss(layer(x[kept][rows]), y[kept][rows])[0].backward()
            sgd.step()
            cosine.step()
    assert found.epoch == 5
    torch.testing.assert_close(found.tensors["weight"], layer.weight.detach(), rtol=1e-5, atol=1e-5)
    assert found.metrics["bce"] == pytest.approx(loss(layer(val_x), val_y)[0].item(), rel=1e-4)
    path = lbfgs.lbfgs_path(train, validation, [HeadSpec("f", 0, 1e-3, "lbfgs")], objective, "cpu")
    assert path[0].metrics["bce"] < found.metrics["bce"]
    moved = path[0].tensors["weight"] * x[kept].std(0, correction=0)  # as the path sees standardised features
    standard = (x[kept] - x[kept].mean(0)) / x[kept].std(0, correction=0)
    logits = x[kept] @ path[0].tensors["weight"].t() + path[0].tensors["bias"]
    left = loss(logits, y[kept])[1].t() @ standard / int(kept.sum()) + 1e-3 * moved
    assert left.abs().max() < 1e-4  # no gradient is left at the optimum


def test_seed_decides_weights_and_order() -> None:
    assert torch.equal(sample_order(0, 2, 9), sample_order(0, 2, 9))
    assert not torch.equal(sample_order(0, 1, 99), sample_order(0, 2, 99))
    assert not torch.equal(sample_order(0, 1, 99), sample_order(1, 1, 99))
    weight = initial_weight(0, "a", 100, 400)
    assert not torch.equal(weight, initial_weight(0, "b", 100, 400))
    assert weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert weight.mean().item() == pytest.approx(0, abs=2e-4)


def test_a_head_that_diverges_is_marked_and_stops_no_other() -> None:
    data, settings = make(), {"epochs": 4, "batch_size": 32, "seed": 0, "patience": None, "device": "cpu"}
    wild = HeadSpec("wide", 1e38, 0.0)
    results = train_heads(*data, [wild, *GRID], CLASSES, **settings)
    assert results[0].diverged
    assert results[0].metrics["nll"] == math.inf
    for a, b in zip(results[1:], train_heads(*data, GRID, CLASSES, **settings), strict=True):
        same(a, b)
    assert best(results).spec != wild
    with pytest.raises(Diverged, match=r"all 1 heads diverged.*try smaller learning rates"):
        train_heads(*data, [wild], CLASSES, **settings)


def result(top1: float, nll: float, name: str = "") -> HeadResult:
    return head(HeadSpec(name, 0.1, 0), torch.zeros(2, 1), torch.zeros(2), top1, nll, 1, 1)


def test_best_is_top1_then_nll_then_order() -> None:
    first, second = result(0.9, 0.3, "first"), result(0.9, 0.3, "second")
    assert best([result(0.8, 0.1), first, second]) is first
    assert best([result(0.9, 0.4), second, first]) is second
    assert best([result(1.0, math.inf), first]) is first
    with pytest.raises(Diverged):
        best([result(1.0, math.inf)])


def test_a_tie_between_classes_is_a_miss() -> None:
    val = Part(torch.ones(4, 2), torch.zeros(4, dtype=torch.long), torch.arange(4))
    batches = logits_of(torch.zeros(3, 2), torch.zeros(3, 1), 3, val)
    [score] = softmax(3).scores(batches)
    assert score == {"top1": 0, "nll": pytest.approx(math.log(3))}


def test_names() -> None:
    assert HeadSpec("cls4+avg", 0.01, 0.0).name == "cls4+avg lr=0.01 wd=0"
    assert HeadSpec("cls1", 0.0, 1e-3, "lbfgs").name == "cls1 lbfgs l2=0.001"


def test_bad_input_is_refused_with_a_message() -> None:
    features, y, val_features, val_y = make()
    settings = {"seed": 0, "patience": None, "device": "cpu"}

    def train(x=features, y=y, val_x=val_features, val_y=val_y, specs=GRID, **more) -> None:  # type: ignore[no-untyped-def]
        train_heads(x, y, val_x, val_y, specs, CLASSES, **(settings | more))

    def spoil(x: dict[str, Tensor], row: int, value: float) -> dict[str, Tensor]:
        wide = x["wide"].clone()
        wide[row, 5] = value
        return {**x, "wide": wide}

    row, val_row = int((y >= 0).nonzero()[3]), int((val_y >= 0).nonzero()[0])
    with pytest.raises(InputError, match=r"training part has no labelled sample among 150.*label column"):
        train(y=torch.full_like(y, -1))
    with pytest.raises(InputError, match="validation part has no labelled sample"):
        train(val_y=torch.full_like(val_y, -1))
    with pytest.raises(
        InputError, match=r"training part has one class only, 2, in \d+ labels: a head needs two"
    ):
        train(y=torch.where(y >= 0, 2, -1))
    with pytest.raises(InputError, match="has the label 5, but 5 classes end at 4"):
        train(y=torch.where(y == 4, 5, y))
    with pytest.raises(
        InputError, match=rf"training features 'wide' hold NaN or Inf in 1 of \d+.*the first {row}:"
    ):
        train(x=spoil(features, row, math.nan))
    with pytest.raises(
        InputError, match=rf"validation features 'wide' hold NaN or Inf.*the first {val_row}:"
    ):
        train(val_x=spoil(val_features, val_row, -math.inf))
    with pytest.raises(InputError, match="no features 'wide', only narrow"):
        train(x={"narrow": features["narrow"]})
    with pytest.raises(
        InputError, match=r"validation part has features 'narrow' of shape \[80, 11\], not \[80, 12\]"
    ):
        train(val_x={**val_features, "narrow": val_features["narrow"][:, 1:]})
    for wrong in ({"specs": []}, {"epochs": 0}, {"batch_size": 0}, {"patience": 0}):
        with pytest.raises(UsageError, match="at least"):
            train(**wrong)


def test_large_finite_features_are_not_taken_for_inf() -> None:
    x, y = torch.full((40, 3), 3e37), torch.arange(40) % 2
    assert x.sum().isinf()
    assert Features({"large": x}, y).part("large", softmax(2), "cpu").x is x


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    features, labels = torch.tensor(x, dtype=torch.float32)[order], torch.tensor(y)[order]
    return features[:1200], labels[:1200], features[1200:], labels[1200:]


def test_lbfgs_has_the_optimum_of_scikit_learn(digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    x, y, val_x, val_y = digits
    hidden = torch.where(torch.arange(len(y)) % 3 == 0, -1, y)
    rows = hidden >= 0
    scaler = StandardScaler().fit(x[rows].double().numpy())
    factors = [1e-3, 0.1, 0.01]  # any order; some pixels of digits are constant
    scaled, val_scaled = (scaler.transform(part.double().numpy()) for part in (x[rows], val_x))
    wanted = {}
    for factor in factors:
        model = LogisticRegression(C=1 / (int(rows.sum()) * factor), tol=1e-7, max_iter=2000)
        wanted[factor] = torch.tensor(model.fit(scaled, y[rows].numpy()).decision_function(val_scaled))
    for dtype, tolerance, limit in ((torch.float64, 1e-8, 1e-4), (torch.float32, 1e-6, 5e-3)):
        found = lbfgs_path(x, hidden, val_x, val_y, 10, l2=factors, dtype=dtype, tolerance=tolerance)
        assert [r.spec for r in found] == [HeadSpec("features", 0.0, f, "lbfgs") for f in factors]
        for r, target in zip(found, wanted.values(), strict=True):
            logits = val_x.double() @ r.tensors["weight"].double().t() + r.tensors["bias"].double()
            gap = (logits - logits.mean(1, keepdim=True)) - (target - target.mean(1, keepdim=True))
            assert gap.abs().max() < limit * target.abs().max()
            assert r.metrics["top1"] == pytest.approx(
                (target.argmax(1) == val_y).double().mean().item(), abs=2e-3
            )
            assert r.metrics["nll"] == pytest.approx(
                nn.functional.cross_entropy(target, val_y).item(), rel=limit
            )
            assert 0 < r.epochs <= 500


def test_lbfgs_refuses_what_it_cannot_fit(digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, val_x, val_y = digits
    with pytest.raises(UsageError, match="none below 0"):
        lbfgs_path(x, y, val_x, val_y, 10, l2=[-1.0])
    with pytest.raises(InputError, match="'pixels' hold NaN"):
        lbfgs_path(x * math.nan, y, val_x, val_y, 10, l2=[0.1], feature="pixels")
    with pytest.raises(InputError, match="one class only"):
        lbfgs_path(x, y * 0, val_x, val_y, 10, l2=[0.1])


def test_digits_are_learned(digits: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
    x, y, held_x, held_y = digits
    val_x, val_y, test_x, test_y = held_x[:300], held_y[:300], held_x[300:], held_y[300:]
    specs = [HeadSpec("pixels", lr, 0.0) for lr in (1e-3, 2e-3, 5e-3, 1e-2)]
    grid = train_heads(
        {"pixels": x}, y, {"pixels": val_x}, val_y, specs, 10, epochs=30, seed=0, patience=5, device="cpu"
    )
    for winner in (best(grid), best(lbfgs_path(x, y, val_x, val_y, 10, l2=[0.1, 0.01, 0.001]))):
        predicted = (test_x @ winner.tensors["weight"].t() + winner.tensors["bias"]).argmax(1)
        assert (predicted == test_y).float().mean() > 0.93
