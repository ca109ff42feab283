"""Many linear heads on cached features of a frozen backbone, trained together.

The protocol is DINOv2's linear evaluation (arXiv 2304.07193; `dinov2/eval/linear.py`): a grid of features ×
rates, SGD with momentum 0.9, the rate scaled by batch/256 and decayed to 0 by a cosine, heads drawn from
N(0, 0.01), the best chosen on the *validation* part. Features are taken raw, as there, not standardised.
Weight decay is `torch.optim.SGD`'s: coupled, on weight and bias alike.

Heads that share a feature are one matrix W `[H*C, F]`. What they learn is an objective
(:mod:`kdcli.engine.grid`) whose gradient in the logits Z is closed: of softmax cross-entropy it is
(softmax(Z) - onehot(y)) / B. So a step of H heads is two products, W X^T and G X, without autograd. Heads do
not mix: each is what it would be if trained alone, up to the rounding of a product (1e-5).

That is why this is no phase of the one loop (:mod:`kdcli.engine.loop`): 52 heads of 384 features and 10
classes train 6.9 times faster than one after another in this very solver, and 17.8 times faster than with
autograd and torch's optimiser (`examples/results/benchmark_heads.json`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from kdcli.engine.grid import Features, HeadResult, HeadSpec, Objective, Part, Training, best, logits_of
from kdcli.errors import UsageError

# Heads share a product while weights and momentum fit in these bytes. On a CPU stacking pays up to 1 to 3 MB,
# is flat to 30 MB and costs beyond the last cache (100 MB, 13 heads of 1,024 × 1,000: a tenth slower than one
# by one). An accelerator wants few launches and has the memory.
CPU_STACK_BYTES, ACCELERATOR_STACK_BYTES = 8 * 2**20, 2**30
COPY_STEPS = 0.3  # copying a stack without its frozen heads takes 0.2 to 0.4 of a step of the whole stack


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


def initial_weight(seed: int, feature: str, outputs: int, width: int) -> Tensor:
    """Draw the `[C, F]` weight that every head on `feature` starts from: N(0, 0.01), as DINOv2's."""
    return torch.randn(outputs, width, generator=_generator(seed, "head", feature)) * 0.01


def sample_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order `[N]` in which labelled samples are visited in an epoch, counted from 1."""
    return torch.randperm(count, generator=_generator(seed, "order", epoch))


def _generator(*key: int | str) -> torch.Generator:
    """A stream of random numbers that depends on `key` alone."""
    return torch.Generator().manual_seed(int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))
