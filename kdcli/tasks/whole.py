"""What tasks share whose networks answer a picture with one row of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from kdcli.errors import UsageError
from kdcli.tasks import entry
from kdcli.tasks.matching import bring_into_order

if TYPE_CHECKING:
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.metrics.calibration import Calibration
    from kdcli.models.protocol import Model
    from kdcli.tasks.judging import Judge
    from kdcli.tasks.settings import ProbeOptions


@dataclass(frozen=True)
class WholePicture:
    """Networks with their own pooled classifier, linear heads on pooled features, logits matched by name.

    The part of :class:`kdcli.tasks.Task` that follows from it.

    Attributes:
        classes: names by class number.
        label_smoothing: of the supervised loss.
        name: a key of ``TASKS``.
        selection: the metric that model selection goes by.
        leaves_unused: False: the network's own classifier is what learns.
        group: pictures of one label that stand together in a batch.
    """

    classes: tuple[str, ...]
    label_smoothing: float = 0.0
    name: str = ""
    selection: str = ""
    leaves_unused: bool = False
    group: int = 1

    @property
    def answers(self) -> list[str]:
        """Names of the logits: a class each."""
        return list(self.classes)

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """The network's own pooled classifier."""
        if kind is not None:
            raise UsageError(f"head={kind}: {self.name} has one head only, the student's own.")
        return {"classes": self.answers, "task": self.name}

    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Put a network's logits into the order of the answers, by their names."""
        bring_into_order(network, self.answers, order, who)

    def features(self, network: Model) -> list[str]:
        """DINOv2's four on a ViT, pooled stages on others."""
        return network.feature_names()

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Linear classifiers by SGD, and by L-BFGS where features are cached."""
        from kdcli.tasks.linear import specs

        if options.statistics.record and "class" not in entry(self.name).provides:
            raise UsageError(
                f"--statistics records pictures of one class each; these data are for {self.name}."
            )
        return specs(options, features)

    def attach(self, network: Model, result: HeadResult) -> None:
        """Make a linear classifier the network's."""
        weight, bias = result.tensors["weight"], result.tensors["bias"]
        network.attach_linear(result.spec.feature, weight, bias, self.answers, self.name)

    def judge(self) -> Judge | None:
        """None: what a teacher's answers are worth where it teaches is not measured."""
        return None

    def calibration(self, measuring: Measuring, network: Model) -> Calibration | None:
        """None: no temperature is fitted."""
        return None

    def wants_validation(self, models: Sequence[str]) -> bool:
        """False: nothing is chosen."""
        return False
