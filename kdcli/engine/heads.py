"""Many linear heads on cached features of a frozen backbone, trained together.

The protocol is DINOv2's linear evaluation (arXiv 2304.07193; `dinov2/eval/linear.py`): a grid of features ×
rates, SGD with momentum 0.9, the rate scaled by batch/256 and decayed to 0 by a cosine, heads drawn from
N(0, 0.01), the best chosen on the *validation* part. Features are taken raw, as there, not standardised.
Weight decay is `torch.optim.SGD`'s: coupled, on weight and bias alike.

Heads that share a feature are one matrix W `[H*C, F]`. What they learn is an :class:`Objective`, whose
gradient in the logits Z is closed (of softmax cross-entropy, (softmax(Z) - onehot(y)) / B): a step of H heads
is two products, W X^T and G X, without autograd. Heads do not mix: each is what it would be if trained alone,
up to the rounding of a product (1e-5).

That is why this is no phase of the one loop (:mod:`kdcli.engine.loop`): 52 heads of 384 features and 10
classes train 6.9 times faster than one after another in this very solver, and 17.8 times faster than with
autograd and torch's optimiser (`examples/results/benchmark_heads.json`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from kdcli.errors import Diverged, InputError, UsageError

# Heads share a product while weights and momentum fit in these bytes. On a CPU stacking pays up to 1 to 3 MB,
# is flat to 30 MB and costs beyond the last cache (100 MB, 13 heads of 1,024 × 1,000: a tenth slower than one
# by one). An accelerator wants few launches and has the memory.
CPU_STACK_BYTES, ACCELERATOR_STACK_BYTES = 8 * 2**20, 2**30
COPY_STEPS = 0.3  # copying a stack without its frozen heads takes 0.2 to 0.4 of a step of the whole stack


@dataclass(frozen=True)
class HeadSpec:
    """One head of a grid; for solver `lbfgs`, lr is 0 and weight_decay the L2 factor."""

    feature: str
    lr: float  # for a batch of 256; scaled linearly
    weight_decay: float
    solver: Literal["sgd", "lbfgs", "adamw"] = "sgd"  # adamw takes rates as they are

    @property
    def name(self) -> str:
        """A label for tables: `cls4+avg lr=0.01 wd=0`, or `cls4+avg lbfgs l2=0.001`."""
        kind = f"lr={self.lr:g} wd" if self.solver != "lbfgs" else "lbfgs l2"
        return f"{self.feature} {kind}={self.weight_decay:g}"


@dataclass(frozen=True)
class HeadResult:
    """A trained head as it was at its best on the validation part.

    Attributes:
        spec: what was tried.
        tensors: of the head, on the CPU; of a linear one `weight` [C, F] and `bias` [C], for raw features.
        metrics: on the validation part; the first one names the head's quality.
        rank: the smallest is the best.
        epoch: the best one, counted from 1 (lbfgs: the last iteration).
        epochs: run before the head was frozen (lbfgs: iterations).
    """

    spec: HeadSpec
    tensors: Mapping[str, Tensor]
    metrics: Mapping[str, float]
    rank: tuple[float, ...]
    epoch: int
    epochs: int

    @property
    def diverged(self) -> bool:
        """Whether what was measured became NaN or Inf."""
        return not all(map(math.isfinite, self.metrics.values()))


@dataclass(frozen=True)
class Objective:
    """What linear heads learn and are chosen by. Targets are [B] or [B, …], as a task has them.

    Attributes:
        outputs: number of logits C of a sample.
        gradient: of the summed loss in logits [H, C, B], which it may overwrite, for targets of B samples.
        loss: mean over logits [N, C], and N times its gradient in them.
        scores: of each of H heads, by name, from the logits [H, C, B] and targets of all batches.
        rank: of such scores; the smallest is the best.
        fault: what is wrong with all targets of a part, and whether it is for training; "" if nothing.
    """

    outputs: int
    gradient: Callable[[Tensor, Tensor], Tensor]
    loss: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    scores: Callable[[Iterable[tuple[Tensor, Tensor]]], list[dict[str, float]]]
    rank: Callable[[dict[str, float]], tuple[float, ...]]
    fault: Callable[[Tensor, bool], str]


@dataclass(frozen=True)
class Training:
    """How the heads of a grid are trained.

    Attributes:
        epochs: passes over the labelled samples; the cosine spans all of their steps.
        batch_size: samples in a step, by which rates are scaled; a smaller last batch is used too.
        momentum: SGD's, not dampened.
        seed: of initial weights and sample order.
        patience: epochs without a better score after which a head is frozen; None for never.
    """

    epochs: int = 10
    batch_size: int = 128
    momentum: float = 0.9
    seed: int = 0
    patience: int | None = None


class Part(NamedTuple):
    """Features `[N, F]`, targets `[N, …]`, indices of labelled rows."""

    x: Tensor
    y: Tensor
    rows: Tensor


@dataclass(frozen=True)
class Features:
    """What heads read and are to answer.

    Attributes:
        features: name → `[N, F]` floats (stored in fp16, bf16 or fp32; the arithmetic is fp32).
        targets: `[N, …]`; -1 in the rows without a label, which are left out.
        training: whether heads learn on them, or are chosen.
    """

    features: Mapping[str, Tensor]
    targets: Tensor
    training: bool = True

    def part(
        self, name: str, objective: Objective, device: torch.device | str, width: int | None = None
    ) -> Part:
        """One feature on the device, its targets and shape checked, and its labelled rows for NaN and Inf.

        Raises:
            InputError: no labelled sample, targets that the objective cannot learn, NaN or Inf, wrong shapes.
        """
        y, part = self.targets, "training" if self.training else "validation"
        rows = (y >= 0).flatten(1).all(1).nonzero()[:, 0] if y.ndim > 1 else (y >= 0).nonzero()[:, 0]
        x = self.features.get(name, torch.empty(0))
        shape, wrong = [len(y), width or x.shape[-1]], ""
        if not len(rows):
            wrong = f"has no labelled sample among {len(y):,} (every label is -1): name the label column"
        elif fault := objective.fault(y[rows], self.training):
            wrong = fault
        elif name not in self.features:
            wrong = f"has no features {name!r}, only {', '.join(self.features) or 'none'}: check the grid"
        elif list(x.shape) != shape:
            wrong = f"has features {name!r} of shape {list(x.shape)}, not {shape}: check the cache"
        if wrong:
            raise InputError(f"the {part} part {wrong} and the split.")
        x, rows = x.to(device), rows.to(device)
        if not x.sum(dtype=torch.float32).isfinite():  # one cheap pass; only a suspect is looked at by row
            bad = torch.cat([some[~x[some].isfinite().all(1)] for some in rows.split(4096)])
            if len(bad):
                rows_hit = f"{len(bad):,} of {len(rows):,} labelled rows, the first {int(bad[0])}"
                advice = "see the pictures, extract in fp32, not fp16"
                raise InputError(f"{part} features {name!r} hold NaN or Inf in {rows_hit}: {advice}.")
        return Part(x, y.to(device), rows)


def best(results: Sequence[HeadResult]) -> HeadResult:
    """Return the head of the smallest rank, ties by order.

    Raises:
        Diverged: all are.
    """
    finite = [result for result in results if not result.diverged]
    if not finite:
        raise Diverged(f"all {len(results)} heads diverged (NaN or Inf): try smaller learning rates.")
    return min(finite, key=lambda result: result.rank)


@torch.no_grad()
def train_heads(
    train: Features, validation: Features, specs: Sequence[HeadSpec], objective: Objective,
    training: Training, device: torch.device | str,
) -> list[HeadResult]:  # fmt: skip
    """Train a grid of linear heads together; each result equals that of its own separate training.

    Initial weights depend on (seed, feature), the sample order on (seed, epoch): no head depends on others.

    Args:
        train: what they learn.
        validation: what chooses each head's best epoch.
        specs: the grid; results come in its order.
        objective: of all heads.
        training: how.
        device: where to compute; one feature at a time is moved there.

    Raises:
        InputError: features or targets that cannot be used, see :meth:`Features.part`.
        UsageError: an empty grid or a setting out of range.
        Diverged: every head ended with a score of NaN or Inf.
    """
    epochs, batch_size, patience = training.epochs, training.batch_size, training.patience
    if not specs or min(epochs, batch_size, 1 if patience is None else patience) < 1:
        raise UsageError("a grid needs at least one head, and epochs, batch_size and patience at least 1.")
    results: dict[int, HeadResult] = {}
    for feature in dict.fromkeys(spec.feature for spec in specs):
        data = train.part(feature, objective, device)
        val = validation.part(feature, objective, device, data.x.shape[1])
        members = torch.tensor([i for i, spec in enumerate(specs) if spec.feature == feature])
        bound = CPU_STACK_BYTES if data.x.device.type == "cpu" else ACCELERATOR_STACK_BYTES
        count = math.ceil(len(members) / max(1, bound // (2 * 4 * objective.outputs * data.x.shape[1])))
        for part in map(Tensor.tolist, members.tensor_split(count)):  # of even size: no small rest
            stack = _Stack([specs[i] for i in part], data.x, objective, training)
            results.update(zip(part, stack.train(data, val)))
    best(list(results.values()))  # raises Diverged if there is none
    return [results[i] for i in range(len(specs))]


class _Stack:
    """H heads on one feature: weight, its momentum `[H*C, F]`; bias, its momentum, rate, decay `[H*C, 1]`."""

    def __init__(self, specs: list[HeadSpec], x: Tensor, objective: Objective, training: Training) -> None:
        self.specs, self.objective, self.training = specs, objective, training
        self.outputs = outputs = objective.outputs
        self.heads = list(range(len(specs)))  # those that are still in the product
        start = initial_weight(training.seed, specs[0].feature, outputs, x.shape[1]).to(x.device)
        self.weight = start.repeat(len(specs), 1)
        self.bias = self.weight.new_zeros(len(self.weight), 1)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        rates = [[spec.lr * training.batch_size / 256, spec.weight_decay] for spec in specs]
        self.lr, self.decay = torch.tensor(rates, device=x.device).repeat_interleave(outputs, 0).split(1, 1)
        self.decays = any(spec.weight_decay for spec in specs)

    def train(self, data: Part, val: Part) -> list[HeadResult]:
        """Train to the end, or until all heads are frozen."""
        epochs, batch, seed = self.training.epochs, self.training.batch_size, self.training.seed
        steps = math.ceil(len(data.rows) / batch)
        found: dict[int, HeadResult] = {}
        frozen: set[int] = set()
        for epoch in range(1, epochs + 1):
            order = data.rows[sample_order(seed, epoch, len(data.rows)).to(data.rows.device)]
            for i, rows in enumerate(order.split(batch), (epoch - 1) * steps):
                x, y = data.x.index_select(0, rows).float(), data.y.index_select(0, rows)
                self.step(x, y, (1 + math.cos(math.pi * i / (epochs * steps))) / 2)
            for i, (head, score) in enumerate(zip(self.heads, self.scores(val))):
                if head not in frozen:
                    result = found[head] = self.keep_best(i, found.get(head), score, epoch)
                    if result.diverged or epoch - result.epoch >= (self.training.patience or epochs):
                        frozen.add(head)
            live = [i for i, head in enumerate(self.heads) if head not in frozen]
            if not live:
                break
            if (len(self.heads) - len(live)) * steps * (epochs - epoch) > COPY_STEPS * len(self.heads):
                self.keep(live)
        return [found[head] for head in range(len(self.specs))]

    def step(self, x: Tensor, y: Tensor, cosine: float) -> None:
        """One SGD step of all heads on a batch `[B, F]`, targets `[B, …]`, with the rates times `cosine`."""
        count, heads = len(x), len(self.heads)
        logits = torch.addmm(self.bias, self.weight, x.t()).view(heads, self.outputs, count)
        grad = self.objective.gradient(logits, y).view(-1, count)
        self.weight_velocity.addmm_(grad, x, beta=self.training.momentum, alpha=1 / count)
        self.bias_velocity.mul_(self.training.momentum).add_(grad.sum(1, keepdim=True), alpha=1 / count)
        for value, velocity in ((self.weight, self.weight_velocity), (self.bias, self.bias_velocity)):
            if self.decays:
                velocity.addcmul_(value, self.decay)
            value.addcmul_(velocity, self.lr, value=-cosine)

    def scores(self, val: Part) -> list[dict[str, float]]:
        """Of each head in the product, as it is now."""
        return self.objective.scores(logits_of(self.weight, self.bias, self.outputs, val))

    def keep_best(
        self, place: int, old: HeadResult | None, score: dict[str, float], epoch: int
    ) -> HeadResult:
        """The better of an earlier result and the head at `place` as it is now; a diverged one stays so."""
        rank = self.objective.rank(score)
        diverged = not all(map(math.isfinite, score.values()))
        if old is None or diverged or rank < old.rank:
            part = slice(place * self.outputs, (place + 1) * self.outputs)
            tensors = {"weight": self.weight[part], "bias": self.bias[part, 0]}
            kept = {name: tensor.to("cpu", copy=True) for name, tensor in tensors.items()}
            return HeadResult(self.specs[self.heads[place]], kept, score, rank, epoch, epoch)
        return replace(old, epochs=epoch)

    def keep(self, positions: list[int]) -> None:
        """Drop all heads but those at `positions` of the product."""
        self.heads = [self.heads[i] for i in positions]
        for name in ("weight", "bias", "weight_velocity", "bias_velocity", "lr", "decay"):
            value = getattr(self, name)
            setattr(self, name, value.view(-1, self.outputs, value.shape[1])[positions].flatten(0, 1))


@torch.no_grad()
def train_heads_live(
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], validation: Features, specs: Sequence[HeadSpec],
    objective: Objective, training: Training, device: torch.device | str, *, score_every: int,
) -> list[HeadResult]:  # fmt: skip
    """Train a grid on features that are made once and used once: DINOv2's published protocol.

    Args:
        batches: pairs of features (name → `[B, F]`) and targets `[B, …]`, `score_every` of them an epoch.
        validation: features of un-augmented views.
        specs: the grid; results come in its order.
        objective: of all heads.
        training: how; the cosine spans all steps, and no head is frozen.
        device: where to compute, on which the batches are.
        score_every: steps between scores on the validation part; the best of them counts (as "epoch").

    Raises:
        InputError, Diverged: as `train_heads`.
    """
    names = dict.fromkeys(spec.feature for spec in specs)
    members = {f: [i for i, spec in enumerate(specs) if spec.feature == f] for f in names}
    vals = {f: validation.part(f, objective, device) for f in members}
    stacks = {f: _Stack([specs[i] for i in m], vals[f].x, objective, training) for f, m in members.items()}
    steps = training.epochs * score_every
    found: dict[int, HeadResult] = {}
    for step, (features, y) in enumerate(batches):
        for name, stack in stacks.items():
            stack.step(features[name].float(), y, (1 + math.cos(math.pi * step / steps)) / 2)
        if (step + 1) % score_every and step + 1 < steps:
            continue
        turn = math.ceil((step + 1) / score_every)
        for name, stack in stacks.items():
            for place, (head, score) in enumerate(zip(members[name], stack.scores(vals[name]))):
                found[head] = stack.keep_best(place, found.get(head), score, turn)
    best(list(found.values()))
    return [found[i] for i in range(len(specs))]


def logits_of(weight: Tensor, bias: Tensor, outputs: int, part: Part) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits [H, C, B] of heads in `weight` `[H*C, F]`, `bias` `[H*C, 1]`, and targets, batch by batch."""
    for rows in part.rows.split(512):
        z = torch.addmm(bias, weight, part.x.index_select(0, rows).float().t())
        yield z.unflatten(0, (-1, outputs)), part.y[rows]


def initial_weight(seed: int, feature: str, outputs: int, width: int) -> Tensor:
    """Draw the `[C, F]` weight that every head on `feature` starts from: N(0, 0.01), as DINOv2's."""
    return torch.randn(outputs, width, generator=_generator(seed, "head", feature)) * 0.01


def sample_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order `[N]` in which labelled samples are visited in an epoch, counted from 1."""
    return torch.randperm(count, generator=_generator(seed, "order", epoch))


def _generator(*key: int | str) -> torch.Generator:
    """A stream of random numbers that depends on `key` alone."""
    return torch.Generator().manual_seed(int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))
