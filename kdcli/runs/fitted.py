"""What a probe has found, and what its manifest says of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.job import Outcome
    from kdcli.metrics.calibration import Calibration
    from kdcli.models.protocol import Model

_SOLVERS = {
    "sgd": "by SGD",
    "lbfgs": "by L-BFGS",
    "adamw": "by AdamW",
    "plain": "as they are",
    "whitened": "whitened",
}


@dataclass(frozen=True)
class Fitted:
    """What a run has found.

    Attributes:
        results: of the heads that were tried on features; empty where one was kept, or learned by steps.
        outcome: of training step by step, a head alone or with its backbone.
        calibration: of what is written; None where the task has none, or a classifier was kept.
    """

    results: list[HeadResult]
    outcome: Outcome | None
    calibration: Calibration | None

    def facts(self, *, finetuned: bool) -> dict[str, Any]:
        """Figures, how what is written was chosen, and what else the manifest keeps of the training.

        Args:
            finetuned: whether the backbone learned too.
        """
        from kdcli.engine.grid import best

        found: dict[str, Any] = {}
        if self.results:
            winner = best(self.results)
            found = {
                "metrics": {f"validation/{name}": value for name, value in winner.metrics.items()},
                "selection": f"best of {len(self.results)} heads on validation: {winner.spec.name}",
                "grid": [{**asdict(r.spec), **r.metrics, "epoch": r.epoch} for r in self.results],
            }
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_json()
        if self.outcome is not None:
            if self.results:
                found["head"] = {key: found[key] for key in ("metrics", "selection")}
            how = "finetuned, " if finetuned else ""
            found |= {"metrics": self.outcome.metrics, "selection": f"{how}{self.outcome.selection}"}
            found |= {"clipping": self.outcome.clipping, "machines": self.outcome.progress.machines}
        return found

    def cost(self, forwards: int, batch_size: int) -> dict[str, int]:
        """Pictures that the backbone saw to fit heads, and steps in which it or its head was trained.

        Args:
            forwards: to fit heads on features.
            batch_size: of a step.
        """
        if self.outcome is None:
            return {"teacher_forwards": forwards}
        steps = self.outcome.progress.step
        own = forwards if self.results else steps * batch_size
        return {"teacher_forwards": own, "finetune_steps": steps}


def training(config: Any, specs: Sequence[HeadSpec], features: Sequence[str]) -> str:
    """What heads are trained on features, and how, for the plan."""
    counts = Counter(_SOLVERS[spec.solver] for spec in specs)
    how = ", ".join(f"{count} {solver}" for solver, count in counts.items())
    tune = f", then all of it for {config.optim.epochs:g} epochs" if config.finetune else ""
    return f"{len(specs)} heads ({how}) on {', '.join(features)}{tune}"


def training_by_steps(config: Any, network: Model) -> str:
    """The head that is trained step by step, for the plan."""
    optim = config.finetuning().optim
    what = "and its backbone" if config.finetune else "on the frozen backbone"
    length = f"{optim.max_steps:,} steps" if optim.max_steps else f"{optim.epochs:g} epochs"
    kind = network.head.kind if network.head is not None else f"the detector of {network.name}"
    return f"{kind} {what}: {length}, batches of {optim.batch_size}, learning rate {optim.lr:g}"
