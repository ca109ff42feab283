"""Normalised knowledge distillation: Yang et al. 2023, arXiv 2303.13005.

L = ce·CE(z_s, y) − t_y·log s_y + γ·T²·CE(N(s), N(t)), N the distribution over the classes but the true one
"""

from __future__ import annotations

from kdcli.losses import logits
from kdcli.methods.parts import Part, Positive, labels, one_turn
from kdcli.methods.trainings import IMAGENET, keys, published, sgd
from kdcli.tasks import Task
from kdcli.words import Method, Recipe, Term


def part(
    weight: float = 1.0, /, *, gamma: Positive = 1.5, temperature: Positive = 1.0, name: str = "nkd"
) -> Part:
    """Both terms on labelled rows, which know their true class."""
    keywords = {"gamma": gamma, "temperature": temperature}
    taps = ("s.logits", "~t.logits", "y")
    return Part((Term(name, logits.nkd, taps, weight, keywords, rows="labelled"),))


def nkd(task: Task, taught: Part, *, ce: float = 1.0) -> Method:
    """The teacher's certainty of the true class, and its view of the others as a distribution of its own.

    ``gamma`` 1.5 and T 1 beside labels at weight 1 are the authors' for ImageNet. Two classes leave no
    distribution over others and are refused. Unlabelled pictures teach nothing here.
    """
    return one_turn("nkd", Part((*labels(task, ce), *taught.terms)), recipes=(_recipe(),))


def _recipe() -> Recipe:
    """The authors' training of ResNet-18 by ResNet-34."""
    steps = sgd(lr=0.1, weight_decay=1e-4, epochs=100, batch=256, drops=(30, 60, 90))
    parameters = keys("method", ce=1.0, gamma=1.5, temperature=1.0)
    source = "the authors' res34_distill_res18_img.py"
    return published("imagenet", {**steps, **IMAGENET, **parameters}, source, None, ())
