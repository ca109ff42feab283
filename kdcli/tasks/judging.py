"""What a teacher's answers are worth on the very views that it teaches, and where labels teach better.

Training pictures have the labels that they have: a term that learns from them is never wrong about them, and
the teacher is, the more so as views are cropped harder. It is said to teach worse than the labels if it is
wrong on more than :data:`MOST_WRONG` of the labelled views (pixels of masks) of one epoch, and at least
:data:`LEAST_LABELLED` of the training pictures are labelled; of the others nothing but the teacher knows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

MOST_WRONG, LEAST_LABELLED = 0.1, 0.5
VIEWS = "views"


@dataclass(frozen=True)
class Judge:
    """What a task measures of a teacher's answers while it teaches.

    Attributes:
        sums: of logits as they are taught and the columns of a batch, scalars that add up over batches:
            ``views``, how many rows are labelled, and for each figure its sum over these rows; empty where
            the rows have no label that logits can be compared with.
        right: the figure that is the share of right answers.
        of: what it is a share of: ``labelled views``.
        cut: whether answers are compared with what is cut together with a picture, so that pictures have to
            be read.
    """

    sums: Callable[[Tensor, Mapping[str, Any]], dict[str, Tensor]]
    right: str
    of: str
    cut: bool = False

    def said(self, figures: Mapping[str, float], where: str = "first epoch") -> str:
        """The figures, means over ``views`` rows, as a sentence; ``where`` says of which."""
        others = [f"{k} {v:.3f}" for k, v in figures.items() if k not in (VIEWS, self.right)]
        return ", ".join(
            [
                f"the teacher is right on {figures[self.right]:.1%} of {self.of} ({where}, "
                f"{figures[VIEWS]:,.0f} views)",
                *others,
            ]
        )

    def warning(self, figures: Mapping[str, float], labelled: float) -> str:
        """Why labels teach better than these answers; empty where that is not so.

        Args:
            figures: means over ``views`` rows.
            labelled: share of the training pictures that have a label.
        """
        wrong = 1 - figures[self.right]
        if wrong <= MOST_WRONG or labelled < LEAST_LABELLED:
            return ""
        return (
            f"the teacher is wrong on {wrong:.1%} of {self.of} that it teaches, more than {MOST_WRONG:.0%}: "
            "there the labels, which this run has, teach better. Compare with --method supervised; a larger "
            "views.scale, a better teacher or less weight on its answers may help."
        )
