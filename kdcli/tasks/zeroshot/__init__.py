"""Zero-shot classification: pictures compared with texts about classes, any class that there is a text of.

A network answers with scaled cosines between its embedding of a picture and the embeddings of texts (Radford
et al. 2021, arXiv 2103.00020). Its candidates are the classes of the data that it is asked about, and of
these alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

from kdcli.errors import InputError, UsageError
from kdcli.tasks.classification import Classification
from kdcli.tasks.matching import bring_into_order
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.engine.grid import HeadSpec
    from kdcli.models.banks import TextBank
    from kdcli.models.protocol import Model
    from kdcli.sections import DataSection, OptimSection, ViewSection
    from kdcli.tasks import Evaluation
    from kdcli.tasks.settings import EvalOptions, ProbeOptions, Validation

TEMPERATURE = 0.07
"""τ of cosines in training: :data:`kdcli.losses.texts.TEMPERATURE`, without torch."""


@dataclass(frozen=True)
class ZeroShot(Classification):
    """The task of classes that are told apart by texts.

    Attributes:
        bank: the texts of these classes; None where every network has its own.
        shots: few-shot pictures of each class that are set apart, if any.
    """

    name: str = "zeroshot"
    bank: TextBank | None = field(default=None, compare=False)
    shots: int = 0

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> ZeroShot:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        if section.class_balance == "loss":
            raise UsageError("--class-balance loss: zeroshot weighs no rows; take sampler.")
        if optim is not None and optim.label_smoothing:
            raise UsageError("optim.label_smoothing: zeroshot has none.")
        return cls(tuple(data.classes or ()), shots=section.shots or 0)

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """A projection into the space of the texts, and their bank."""
        if kind is not None:
            raise UsageError(f"head={kind}: zeroshot has one head only, a bank of texts.")
        return {"classes": self.answers, "task": self.name, "bank": self.bank}

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Cross-entropy over cosines with the texts of all classes, divided by τ, on labelled rows."""
        from kdcli.losses.texts import text_likelihood

        taps = (f"{call}.embedding", f"~{call}:classifier", "target")
        keywords = {"temperature": TEMPERATURE}
        return (Term("class", text_likelihood, taps, keywords=keywords, rows="labelled"),)

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """The classes in turn, and captions embedded at random."""
        import torch

        made = torch.Generator().manual_seed(0)
        width = 1 if self.bank is None else self.bank.width
        return {**super().example(rows, side), "caption": torch.randn(rows, width, generator=made)}

    # -- fitting and measuring: see kdcli.tasks.Task
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """The classes of the data are the candidates; each needs a text in the network's bank."""
        if network.bank is None and network.runs_in:  # an exported form has the candidates that it was given
            bring_into_order(network, self.answers, order, who)
            return
        if network.bank is None:
            raise InputError(
                f"{who} compares pictures with no texts. kdcli probe --task zeroshot makes a bank of them "
                "for a vision-language model."
            )
        try:
            network.select(self.classes)
        except InputError as error:
            raise InputError(f"{who}: {error}") from error

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Raises UsageError: texts are no head that is fitted."""
        raise UsageError(f"--head {options.head}: zeroshot answers by texts, and fits no head.")

    def wants_validation(self, models: Sequence[str]) -> bool:
        """Where pictures of each class are set apart: they are a memory (``Entry.beside`` has them)."""
        return self.shots > 0

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """What classification measures, and spaces of students beside their teacher's."""
        from kdcli.tasks.zeroshot.evaluate import Evaluation

        made = Evaluation.of(self.classes, options, models, validation)
        return replace(made, shots=validation.samples) if self.shots else made
