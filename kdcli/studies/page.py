"""What a study has found, as ``report.json`` and ``report.html`` in its folder."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdcli.artifacts.files import write_bytes
from kdcli.engine.loop import LOG
from kdcli.report.page import to_json
from kdcli.studies.journal import TRIALS, values_of

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from kdcli.studies.search import Search

_FEW = 10  # trials with a value, below which nothing is said of importance


def write(plan: Search, trials: Sequence[FrozenTrial], chosen: FrozenTrial) -> None:
    """Write the page and what it shows."""
    from kdcli.report import study

    found = described(plan, trials, chosen)
    replace_file(plan.folder / "report.json", to_json(found))
    replace_file(plan.folder / "report.html", study.render(found))


def described(plan: Search, trials: Sequence[FrozenTrial], chosen: FrozenTrial) -> dict[str, Any]:
    """See :mod:`kdcli.report.study`."""
    from kdcli.studies.search import relevant

    source, selection = plan.config.data.source, plan.base.task.selection
    rows = []
    for trial in trials:
        facts = trial.user_attrs
        folder = plan.folder / TRIALS / f"{trial.number:04d}"
        rows.append(
            {
                "number": trial.number,
                "state": trial.state.name,
                "value": trial.value,
                "settings": relevant(values_of(trial), plan.base.method.name),
                "curve": _curve(folder / LOG, f"validation/{selection}"),
                **{str(key): facts[key] for key in ("steps", "seconds", "why") if key in facts},
            }
        )
    return {
        "title": f"Search over {len(trials)} trials",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "data": f"{source}, chosen on the validation split",
        "selection": selection,
        "study": str(plan.folder),
        "best": chosen.number,
        "trials": rows,
        "importance": importance(trials),
        "forwards": forwards(trials),
        "notes": [
            f"The same commands repeat the best run: kdcli distill --config {plan.folder}/best.yaml --out …",
            "A value chosen among many trials flatters: the best one's pictures of another split say what it "
            "is worth (kdcli eval --split test).",
        ],
    }


def forwards(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    """Answers of the teacher that trials read from caches, those that were made for it, and live forwards."""
    costs = [trial.user_attrs["cost"] for trial in trials if "cost" in trial.user_attrs]
    cached = [cost for cost in costs if "teacher_forwards_made" in cost]
    return {
        "asked": sum(cost["teacher_forwards"] for cost in cached),
        "made": sum(cost["teacher_forwards_made"] for cost in cached),
        "live": sum(cost["teacher_forwards"] for cost in costs if cost not in cached),
    }


def importance(trials: Sequence[FrozenTrial]) -> dict[str, float]:
    """How much each setting mattered; empty for too few trials, or where nothing differs."""
    import optuna

    done = [trial for trial in trials if trial.state.name == "COMPLETE"]
    if len(done) < _FEW or len({trial.value for trial in done}) < 2:
        return {}
    study = optuna.create_study(direction="maximize")
    study.add_trials(done)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}


def _curve(log: Path, name: str) -> list[list[float]]:
    if not log.is_file():
        return []
    rows = (json.loads(line) for line in log.read_text(encoding="utf-8").splitlines())
    return [[row["step"], row[name]] for row in rows if name in row]


def replace_file(path: Path, text: str) -> None:
    """Put a file in the place of an older one, whole or not at all."""
    draft = path.with_name(f"{path.name}.partial")
    write_bytes(draft, text.encode("utf-8"))
    draft.replace(path)
