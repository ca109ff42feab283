"""Be Your Own Teacher: Zhang et al. 2019, arXiv 1905.08094. Exits that learn from the deepest one.

L = CE(z_0, y) + Σ_i [(1 − α)·CE(z_i, y) + α·soft(z_i, z_0)] + λ·Σ_i ‖A_i f_i − f_0‖, z_0 and f_0 constant
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from kdcli.errors import UsageError
from kdcli.losses import exits
from kdcli.methods.parts import STUDENT, Fraction, S
from kdcli.methods.trainings import PADDED, SMALL_PICTURES, keys, published, sgd
from kdcli.models.adapters import embedding
from kdcli.models.exits import ExitHead, Kind
from kdcli.models.taps import as_map_tap
from kdcli.tasks import Task
from kdcli.words import Call, Method, Party, Phase, Recipe, Term, Turn


def build_exit(tap: str, classes: int, reading: exits.Reading, *shapes: tuple[int, ...]) -> ExitHead:
    """An exit on the map of ``shapes[0]``, for a network whose last map has ``shapes[1]``."""
    kind: Kind = "attention" if reading == "code" else "bottleneck"
    return ExitHead(shapes[0], shapes[1], classes, kind, tap=tap)


def build_adapter(features: tuple[int, ...], deepest: tuple[int, ...]) -> object:
    """A_i, linear, to the width of the deepest features."""
    return embedding(features, width=deepest[0])


def byot(
    task: Task,
    *,
    maps: tuple[str, ...] = ("stage1", "stage2", "stage3"),
    alpha: Fraction = 0.3,
    lam: float = 0.03,
    temperature: float = 3.0,
    reading: exits.Reading = "code",
) -> Method:
    """No teacher: exits on shallower maps learn from the network's own end, and it from labels.

    ``code`` is the authors' repository: attention and separable convolutions in the exits, soft cross-entropy
    without T², the norm of the whole batch's feature difference after a linear adapter, left out for the exit
    next to the end (its comment says "the shallowest"). ``paper`` is the conference text: bottlenecks,
    T²·KL, squared differences without adapter at every exit, for which 1e-6 to 1e-3 is a usual ``lam``.
    ``maps`` are the exits' inputs, the shallowest first: stages of a CNN, blocks of a ViT at a quarter, half
    and three quarters. The student is exported with its exits (``exits.safetensors``), which ``kdcli eval``
    measures; the adapters are dropped.
    """
    if not maps or "grid" in maps:
        raise UsageError("method.maps names the blocks that exits stand on: mapK, stageK or a module.")
    code = reading == "code"
    parties: list[Party] = []
    calls: list[Call] = []
    terms: list[Term] = []
    for i, name in enumerate(map(as_map_tap, maps), 1):
        build = partial(build_exit, name, len(task.classes), reading)
        parties.append(Party(f"exit{i}", "trained", build=build, reads=(f"s.{name}", "s.stage4")))
        calls.append(Call(f"e{i}", f"exit{i}", (f"s.{name}",)))
        hard = (replace(t, name=f"{t.name}-{i}", weight=1 - alpha) for t in task.supervised(f"e{i}"))
        keywords = {"temperature": temperature, "reading": reading}
        soft = Term(f"soft-{i}", exits.exit_logits, (f"e{i}.logits", "~s.logits"), alpha, keywords)
        terms += [*hard, soft]
        if code and i == len(maps):
            continue
        features = f"e{i}.features"
        if code:
            parties.append(Party(f"adapter{i}", "trained", build=build_adapter, reads=(features, "s.pooled")))
            calls.append(Call(f"a{i}", f"adapter{i}", (features,)))
            features = f"a{i}.out"
        scope: Literal["batch", "sample"] = "batch" if code else "sample"
        keywords = {"reading": reading}
        terms.append(
            Term(f"features-{i}", exits.exit_features, (features, "~s.pooled"), lam, keywords, scope)
        )
    everyone = (STUDENT, *parties)
    turn = Turn(
        "student",
        tuple(party.name for party in everyone),
        (S, *calls),
        (*task.supervised("s"), *terms),
    )
    saved = tuple(party.name for party in parties if party.name.startswith("exit"))
    return Method("byot", everyone, (Phase((turn,)),), beside=saved, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The training of the authors' repository, which is that of the journal version."""
    training = sgd(lr=0.1, weight_decay=5e-4, epochs=250, batch=128, drops=(83, 166, 240))
    parameters = keys("method", alpha=0.3, lam=0.03, temperature=3.0, reading="code")
    return published(
        "cifar-100",
        {**training, **SMALL_PICTURES, **parameters},
        "the authors' train.py",
        {"optim.milestones": "a third, two thirds, and 10 epochs before the end"},
        ("AutoAugment's policy for CIFAR-10", "Cutout of 16 pixels", PADDED),
        taught=False,
    )
