"""Knowledge distillation: Hinton, Vinyals & Dean 2015, arXiv 1503.02531.

L = ce·CE(z_s, y) + kd·T²·KL(softmax(z_t/T) ‖ softmax(z_s/T))
"""

from __future__ import annotations

from dataclasses import replace

from kdcli.losses.logits import kl_divergence
from kdcli.methods.parts import Part, Positive, labels, one_turn
from kdcli.methods.trainings import keys, tables_cifar_100, tables_imagenet
from kdcli.tasks import Task
from kdcli.words import Method, Term


def part(
    weight: float = 1.0, /, *, temperature: Positive = 4.0, t_squared: bool = True, name: str = "kd"
) -> Part:
    """KL to the teacher's softened logits."""
    keywords = {"temperature": temperature, "t_squared": t_squared}
    return Part((Term(name, kl_divergence, ("s.logits", "~t.logits"), weight, keywords),))


def kd(task: Task, taught: Part, *, ce: float = 0.1, kd: float = 0.9) -> Method:
    """Softened teacher logits beside labels.

    Defaults are those of RepDistiller and mdistiller (ce 0.1, kd 0.9, T 4); for retrieval, where answers are
    similarities and labels teach far more, ce 1 and kd 0.1. The paper gives no weights; it asks for T² so
    that the two gradients keep their relation when T changes. Unlabelled pictures enter the teacher term
    only.
    """
    own = task.taught("s", "t", **taught.terms[0].keywords)  # the task's own KL: of pixels, for masks
    terms = (*labels(task, ce), replace(own, weight=kd))
    recipes = (
        tables_cifar_100(keys("method", ce=0.1, kd=0.9, temperature=4.0)),
        tables_imagenet(
            keys("method", ce=0.5, kd=0.5, temperature=1.0),
            "mdistiller configs/imagenet/r34_r18/kd.yaml",
        ),
    )
    return one_turn("kd", Part(terms), recipes=recipes)
