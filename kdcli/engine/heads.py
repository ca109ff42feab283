"""Many linear heads on cached features of a frozen backbone, trained together.

The protocol is DINOv2's linear evaluation (arXiv 2304.07193; `dinov2/eval/linear.py`): a grid of features ×
rates, SGD with momentum 0.9, the rate scaled by batch/256 and decayed to 0 by a cosine, heads drawn from
N(0, 0.01), the best chosen by accuracy on the *validation* part. Features are taken raw, as there, not
standardised. Weight decay is `torch.optim.SGD`'s: coupled, on weight and bias alike.

Heads that share a feature are one matrix W `[H*C, F]`. The gradient of softmax cross-entropy in the logits Z
is closed, (softmax(Z) - onehot(y)) / B: a step of H heads is two products, W X^T and G X, without autograd.
Heads do not mix: each is what it would be if trained alone, up to the rounding of a product (1e-5).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor

from kdcli.errors import Diverged, InputError, UsageError

if TYPE_CHECKING:
    from kdcli.models.timm import Network

# Heads share a product while weights and momentum fit in these bytes. On a CPU stacking pays up to 1 to 3 MB,
# is flat to 30 MB and costs beyond the last cache (100 MB, 13 heads of 1,024 × 1,000: a tenth slower than one
# by one). An accelerator wants few launches and has the memory.
CPU_STACK_BYTES, ACCELERATOR_STACK_BYTES = 8 * 2**20, 2**30
COPY_STEPS = 0.3  # copying a stack without its frozen heads takes 0.2 to 0.4 of a step of the whole stack


@dataclass(frozen=True)
class HeadSpec:
    """One head of the grid; for solver `lbfgs`, lr is 0 and weight_decay the L2 factor."""

    feature: str
    lr: float  # for a batch of 256; scaled linearly
    weight_decay: float
    solver: Literal["sgd", "lbfgs", "adamw"] = "sgd"  # adamw: of segmentation heads, rates as they are

    @property
    def name(self) -> str:
        """A label for tables: `cls4+avg lr=0.01 wd=0`, or `cls4+avg lbfgs l2=0.001`."""
        kind = f"lr={self.lr:g} wd" if self.solver != "lbfgs" else "lbfgs l2"
        return f"{self.feature} {kind}={self.weight_decay:g}"


@dataclass(frozen=True)
class HeadResult:
    """A trained head with the weights of its best epoch on the validation part; it takes raw features."""

    spec: HeadSpec
    weight: Tensor  # [C, F], fp32, on the CPU
    bias: Tensor  # [C]
    top1: float  # share of validation samples whose label has strictly the largest logit: a tie is a miss
    nll: float  # mean negative log-likelihood on the validation part, in nats; inf marks a head that diverged
    epoch: int  # the best epoch, counted from 1 (lbfgs: the last iteration)
    epochs: int  # epochs (lbfgs: iterations) run before the head was frozen

    @property
    def diverged(self) -> bool:
        """Whether the validation loss became NaN or Inf."""
        return not math.isfinite(self.nll)

    @property
    def rank(self) -> tuple[float, ...]:
        """The smallest is the best."""
        return (-self.top1, self.nll)

    @property
    def metrics(self) -> dict[str, float]:
        """On the validation part; the first one selects."""
        return {"top1": self.top1, "nll": self.nll}

    def attach(self, network: Network, classes: list[str]) -> None:
        """Make it the network's classifier."""
        network.attach_linear(self.spec.feature, self.weight, self.bias, classes)


class Part(NamedTuple):
    """Features `[N, F]`, labels `[N]`, indices of labelled rows."""

    x: Tensor
    y: Tensor
    rows: Tensor


def best(results: Sequence[Any]) -> Any:
    """Return the head of the smallest rank (highest top-1, then lowest NLL; highest mIoU), ties by order.

    Raises:
        Diverged: all are.
    """
    finite = [result for result in results if not result.diverged]
    if not finite:
        raise Diverged(f"all {len(results)} heads diverged (NaN or Inf): try smaller learning rates.")
    return min(finite, key=lambda result: result.rank)


@torch.no_grad()
def train_heads(
    features: Mapping[str, Tensor], y: Tensor, val_features: Mapping[str, Tensor], val_y: Tensor,
    specs: Sequence[HeadSpec], classes: int, *, epochs: int = 10, batch_size: int = 128,
    momentum: float = 0.9, seed: int, patience: int | None, device: torch.device | str,
) -> list[HeadResult]:  # fmt: skip
    """Train a grid of linear heads together; each result equals that of its own separate training.

    Initial weights depend on (seed, feature), the sample order on (seed, epoch): no head depends on others.

    Args:
        features: name → `[N, F]` floats (stored in fp16, bf16 or fp32; the arithmetic is fp32).
        y: `[N]` int64 labels in [0, classes), or -1 for unlabelled samples, which are left out.
        val_features: name → `[M, F]`.
        val_y: `[M]`, as `y`.
        specs: the grid; results come in its order.
        classes: number of classes C.
        epochs: passes over the labelled samples; the cosine spans all of their steps.
        batch_size: samples in a step; a smaller last batch is used too.
        momentum: SGD's, not dampened.
        seed: of initial weights and sample order.
        patience: epochs without a better (top-1, then NLL) score after which a head is frozen; None: never.
        device: where to compute; one feature at a time is moved there.

    Raises:
        InputError: no labelled sample, a single class, a label out of range, NaN or Inf, wrong shapes.
        UsageError: an empty grid or a setting out of range.
        Diverged: every head ended with a loss of NaN or Inf.
    """
    if not specs or min(epochs, batch_size, 1 if patience is None else patience) < 1:
        raise UsageError("a grid needs at least one head, and epochs, batch_size and patience at least 1.")
    results: dict[int, HeadResult] = {}
    for feature in dict.fromkeys(spec.feature for spec in specs):
        data = labelled_part(features, feature, y, classes, "training", device)
        val = labelled_part(val_features, feature, val_y, classes, "validation", device, data.x.shape[1])
        members = torch.tensor([i for i, spec in enumerate(specs) if spec.feature == feature])
        bound = CPU_STACK_BYTES if data.x.device.type == "cpu" else ACCELERATOR_STACK_BYTES
        count = math.ceil(len(members) / max(1, bound // (2 * 4 * classes * data.x.shape[1])))
        for part in map(Tensor.tolist, members.tensor_split(count)):  # of even size: no small rest
            stack = _Stack([specs[i] for i in part], classes, data.x, momentum, batch_size, seed)
            results.update(zip(part, stack.train(data, val, epochs, batch_size, seed, patience)))
    best(list(results.values()))  # raises Diverged if there is none
    return [results[i] for i in range(len(specs))]


class _Stack:
    """H heads on one feature: weight, its momentum `[H*C, F]`; bias, its momentum, rate, decay `[H*C, 1]`."""

    def __init__(self, specs: list[HeadSpec], classes: int, x: Tensor, momentum: float, batch: int, seed: int
    ) -> None:  # fmt: skip
        self.specs, self.classes, self.momentum = specs, classes, momentum
        self.heads = list(range(len(specs)))  # those that are still in the product
        start = initial_weight(seed, specs[0].feature, classes, x.shape[1]).to(x.device)
        self.weight = start.repeat(len(specs), 1)
        self.bias = self.weight.new_zeros(len(self.weight), 1)
        self.weight_velocity, self.bias_velocity = torch.zeros_like(self.weight), torch.zeros_like(self.bias)
        rates = [[spec.lr * batch / 256, spec.weight_decay] for spec in specs]
        self.lr, self.decay = torch.tensor(rates, device=x.device).repeat_interleave(classes, 0).split(1, 1)
        self.decays = any(spec.weight_decay for spec in specs)

    def train(self, data: Part, val: Part, epochs: int, batch: int, seed: int, patience: int | None
    ) -> list[HeadResult]:  # fmt: skip
        """Train to the end, or until all heads are frozen."""
        steps = math.ceil(len(data.rows) / batch)
        found: dict[int, HeadResult] = {}
        frozen: set[int] = set()
        for epoch in range(1, epochs + 1):
            order = data.rows[sample_order(seed, epoch, len(data.rows)).to(data.rows.device)]
            for i, rows in enumerate(order.split(batch), (epoch - 1) * steps):
                x, y = data.x.index_select(0, rows).float(), data.y.index_select(0, rows)
                self.step(x, y, (1 + math.cos(math.pi * i / (epochs * steps))) / 2)
            scores = head_scores(self.weight, self.bias, self.classes, val)
            for i, (head, score) in enumerate(zip(self.heads, scores)):
                if head not in frozen:
                    result = found[head] = self.keep_best(i, found.get(head), score, epoch)
                    if score[1] == math.inf or epoch - result.epoch >= (patience or epochs):
                        frozen.add(head)
            live = [i for i, head in enumerate(self.heads) if head not in frozen]
            if not live:
                break
            if (len(self.heads) - len(live)) * steps * (epochs - epoch) > COPY_STEPS * len(self.heads):
                self.keep(live)
        return [found[head] for head in range(len(self.specs))]

    def step(self, x: Tensor, y: Tensor, cosine: float) -> None:
        """One SGD step of all heads on a batch `[B, F]`, labels `[B]`, with the rates times `cosine`."""
        count, heads = len(x), len(self.heads)
        logits = torch.addmm(self.bias, self.weight, x.t()).view(heads, self.classes, count)
        grad = logits.softmax(1)  # over classes, with samples contiguous: vectorised for any C
        grad.scatter_add_(1, y.expand(heads, 1, count), grad.new_full((1, 1, 1), -1).expand(heads, 1, count))
        grad = grad.view(-1, count)
        self.weight_velocity.addmm_(grad, x, beta=self.momentum, alpha=1 / count)
        self.bias_velocity.mul_(self.momentum).add_(grad.sum(1, keepdim=True), alpha=1 / count)
        for value, velocity in ((self.weight, self.weight_velocity), (self.bias, self.bias_velocity)):
            if self.decays:
                velocity.addcmul_(value, self.decay)
            value.addcmul_(velocity, self.lr, value=-cosine)

    def keep_best(
        self, place: int, old: HeadResult | None, score: tuple[float, float], epoch: int
    ) -> HeadResult:
        """The better of an earlier result and the head at `place` as it is now; a diverged one stays so."""
        top1, nll = score
        if old is None or nll == math.inf or (-top1, nll) < (-old.top1, old.nll):
            part = slice(place * self.classes, (place + 1) * self.classes)
            weight, bias = (v[part].to("cpu", copy=True) for v in (self.weight, self.bias[:, 0]))
            return HeadResult(self.specs[self.heads[place]], weight, bias, top1, nll, epoch, epoch)
        return replace(old, epochs=epoch)

    def keep(self, positions: list[int]) -> None:
        """Drop all heads but those at `positions` of the product."""
        self.heads = [self.heads[i] for i in positions]
        for name in ("weight", "bias", "weight_velocity", "bias_velocity", "lr", "decay"):
            value = getattr(self, name)
            setattr(self, name, value.view(-1, self.classes, value.shape[1])[positions].flatten(0, 1))


@torch.no_grad()
def train_heads_live(
    batches: Iterable[tuple[Mapping[str, Tensor], Tensor]], val_features: Mapping[str, Tensor], val_y: Tensor,
    specs: Sequence[HeadSpec], classes: int, *, steps: int, score_every: int, batch_size: int,
    momentum: float = 0.9, seed: int, device: torch.device | str,
) -> list[HeadResult]:  # fmt: skip
    """Train a grid on features that are made once and used once: DINOv2's published protocol.

    Args:
        batches: `steps` pairs of features (name → `[B, F]`) and labels `[B]`.
        val_features: name → `[M, F]`, of un-augmented views.
        val_y: `[M]`, as in `train_heads`.
        specs: the grid; results come in its order.
        classes: number of classes C.
        steps: in all; the cosine spans them.
        score_every: steps between scores on the validation part; the best of them counts (as "epoch").
        batch_size: by which the rates are scaled.
        momentum: SGD's, not dampened.
        seed: of initial weights.
        device: where to compute.

    Raises:
        InputError, Diverged: as `train_heads`.
    """
    names = dict.fromkeys(spec.feature for spec in specs)
    members = {f: [i for i, spec in enumerate(specs) if spec.feature == f] for f in names}
    vals = {f: labelled_part(val_features, f, val_y, classes, "validation", device) for f in members}
    stacks = {
        f: _Stack([specs[i] for i in m], classes, vals[f].x, momentum, batch_size, seed)
        for f, m in members.items()
    }
    found: dict[int, HeadResult] = {}
    for step, (features, y) in enumerate(batches):
        for name, stack in stacks.items():
            stack.step(features[name].float(), y, (1 + math.cos(math.pi * step / steps)) / 2)
        if (step + 1) % score_every and step + 1 < steps:
            continue
        turn = math.ceil((step + 1) / score_every)
        for name, stack in stacks.items():
            scores = head_scores(stack.weight, stack.bias, classes, vals[name])
            for place, (head, score) in enumerate(zip(members[name], scores)):
                found[head] = stack.keep_best(place, found.get(head), score, turn)
    best(list(found.values()))
    return [found[i] for i in range(len(specs))]


def head_scores(weight: Tensor, bias: Tensor, classes: int, val: Part) -> list[tuple[float, float]]:
    """Return (top-1, mean NLL or inf) of each head in `weight` `[H*C, F]`, `bias` `[H*C, 1]`."""
    hits, losses = [], []
    for rows in val.rows.split(512):
        z = torch.addmm(bias, weight, val.x.index_select(0, rows).float().t()).unflatten(0, (-1, classes))
        margins = z - z.gather(1, val.y[rows].expand(len(z), 1, -1))  # of the logits; 0 at the label
        losses.append(margins.logsumexp(1).sum(1))
        hits.append(((margins >= 0).sum(1) == 1).sum(1))  # NaN compares as a miss
    top1, nll = (torch.stack(v).cpu().double().sum(0) / len(val.rows) for v in (hits, losses))
    return list(zip(top1.tolist(), nll.where(nll.isfinite(), math.inf).tolist()))


def initial_weight(seed: int, feature: str, classes: int, width: int) -> Tensor:
    """Draw the `[C, F]` weight that every head on `feature` starts from: N(0, 0.01), as DINOv2's."""
    return torch.randn(classes, width, generator=_generator(seed, "head", feature)) * 0.01


def sample_order(seed: int, epoch: int, count: int) -> Tensor:
    """Return the order `[N]` in which labelled samples are visited in an epoch, counted from 1."""
    return torch.randperm(count, generator=_generator(seed, "order", epoch))


def _generator(*key: int | str) -> torch.Generator:
    """A stream of random numbers that depends on `key` alone."""
    return torch.Generator().manual_seed(int(hashlib.sha256(repr(key).encode()).hexdigest()[:15], 16))


def labelled_part(
    features: Mapping[str, Tensor], name: str, y: Tensor, classes: int, part: str, device: torch.device | str,
    width: int | None = None,
) -> Part:  # fmt: skip
    """Check labels, shape and, on labelled rows, for NaN and Inf; move one part to the device."""
    rows = (y >= 0).nonzero()[:, 0]
    found = y[rows].unique().tolist()
    x = features.get(name, torch.empty(0))
    shape, wrong = [len(y), width or x.shape[-1]], ""
    if not found:
        wrong = f"has no labelled sample among {len(y):,} (every label is -1): name the label column"
    elif found[-1] >= classes:
        wrong = f"has the label {found[-1]}, but {classes} classes end at {classes - 1}: check the names"
    elif part == "training" and len(found) == 1:
        wrong = f"has one class only, {found[0]}, in {len(rows):,} labels: a head needs two; check the column"
    elif name not in features:
        wrong = f"has no features {name!r}, only {', '.join(features) or 'none'}: check the grid"
    elif list(x.shape) != shape:
        wrong = f"has features {name!r} of shape {list(x.shape)}, not {shape}: check the cache"
    if wrong:
        raise InputError(f"the {part} part {wrong} and the split.")
    x, rows = x.to(device), rows.to(device)
    if not x.sum(dtype=torch.float32).isfinite():  # one cheap pass; only a suspect is looked at row by row
        bad = torch.cat([some[~x[some].isfinite().all(1)] for some in rows.split(4096)])
        if len(bad):
            rows_hit = f"{len(bad):,} of {len(rows):,} labelled rows, the first {int(bad[0])}"
            advice = "see the pictures, extract in fp32, not fp16"
            raise InputError(f"{part} features {name!r} hold NaN or Inf in {rows_hit}: {advice}.")
    return Part(x, y.to(device), rows)
