"""Channel-wise distillation of detectors: Shu et al. 2021, arXiv 2011.13256, on the maps of the neck.

L = ce·(losses of the labels) + weight·Σ_levels τ²·mean_{n,d} KL(softmax_hw(F_t/τ) ‖ softmax_hw(A(F_s)/τ))
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from kdcli.losses.channels import channel_kl_divergence
from kdcli.methods.matching import on_one_grid
from kdcli.methods.parts import Few, Part, Positive, labels, one_turn
from kdcli.methods.trainings import keys, published, sgd
from kdcli.models import feature_adapters as adapters
from kdcli.tasks import Task
from kdcli.words import Call, Derive, Method, Party, Recipe, Term


def part(
    weight: float = 5.0, *, levels: Few = 3, temperature: Positive = 1.0, name: str = "channels"
) -> Part:
    """The KL of each channel over the places of a map, level by level of the neck."""
    build: Callable[..., Any] = partial(adapters.convolution, kernel=1, always=False)
    terms, parties, calls = [], [], []
    derives: list[Derive] = []
    for level in range(1, levels + 1):
        mine, its = f"s.neck{level}", f"t.neck{level}"
        party = Party(f"{name}-adapter{level}", "trained", build=build, reads=(mine, its))
        call = Call(party.name, party.name, (mine,))
        maps, aligned = on_one_grid(f"{name}{level}", f"{call.name}.out", f"~{its}", "student")
        keywords = {"temperature": temperature}
        terms.append(Term(f"{name}{level}", channel_kl_divergence, maps, weight, keywords))
        parties.append(party)
        calls.append(call)
        derives += aligned
    return Part(tuple(terms), tuple(parties), tuple(calls), tuple(derives))


def features(task: Task, taught: Part, *, ce: float = 1.0) -> Method:
    """Where in a picture each channel of the teacher's neck is active, by a softmax over places.

    ``levels`` maps are compared, the finest first, the student's through a convolution of 1x1 where widths
    differ, on the student's grid. Weight 5 and τ 1 are those of the authors' configuration of RetinaNet;
    MMRazor's has 10. Its cross-entropy has the KL's gradient. Unlabelled pictures enter all but the labels'
    terms. Maps of logits are compared by ``cwd``, for segmentation.
    """
    return one_turn("cwd-features", Part(labels(task, ce)), taught, recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The released training of RetinaNet on COCO."""
    steps = sgd(lr=0.01, weight_decay=1e-4, epochs=24, batch=16, drops=(16, 22))
    views = keys("views", count="live", scale=[1.0, 1.0], hflip=0.5, interpolation="bilinear")
    warm = keys("optim", warmup=0.0028, warmup_from=0.001)
    notes = {
        "optim.batch_size": "2 a process; 8 of them, says MMDetection of this rate",
        "optim.milestones": "MMDetection's schedule 2x",
        "optim.warmup": "500 of some 176,000 steps",
        "method.weight": "10 in MMRazor's configurations",
    }
    left_out = (
        "views of 1333 by 800 pixels",
        "four levels of RetinaNet's neck, where a detection transformer has three",
    )
    settings = {**steps, **warm, **views, **keys("method", ce=1.0, weight=5.0, temperature=1.0)}
    source = "the authors' configuration of RetinaNet"
    return published("coco", settings, source, notes, left_out)
