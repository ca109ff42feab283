"""What a report shows of networks that were made smaller: what went, what that cost, and how it came about.

A model's part then has::

    "compression": {"widths": {site: [before, after]}, "removed", "flops": [before, after],
                    "parameters": [before, after],
                    "metrics": {"with_compactors"?, "rows_zeroed"?, "folded": {the task's figures}}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdcli.report import plots
from kdcli.report.figures import Figure
from kdcli.report.forms import MISSING
from kdcli.report.panels import Block, Drawing, Panel, Table, Text

STAGES = {
    "with_compactors": "with compactors",
    "rows_zeroed": "small rows at zero",
    "folded": "folded",
}
_SHOWN = 6  # networks whose widths are drawn


def panel(report: Mapping[str, Any], figures: Sequence[Figure]) -> Panel | None:
    """The panel, where some model was made smaller.

    Args:
        report: see :mod:`kdcli.report.page`.
        figures: that it may have; by the first that has an axis its task chooses.
    """
    smaller = [model for model in report["models"] if model.get("compression")]
    if not smaller:
        return None
    quality = next((figure for figure in figures if figure.axis), None)
    stages = {} if quality is None else STAGES
    header = ["model", "channels removed", "FLOPs left", "parameters left"]
    header += [f"{quality.label}, {said}" for said in stages.values()] if quality else []
    rows = []
    for model in smaller:
        found = model["compression"]
        measured = [found["metrics"].get(stage, {}).get(quality.keys[-1]) for stage in stages if quality]
        rows.append(
            [
                str(model["name"]),
                f"{found['removed']:,}",
                *(f"{found[cost][1] / found[cost][0]:.1%}" for cost in ("flops", "parameters")),
                *(MISSING if value is None or quality is None else quality.form(value) for value in measured),
            ]
        )
    blocks: list[Block] = [
        Table(header, rows, wide=True),
        Text(
            "Figures of this table are those of validation pictures at the end of the training: what the "
            "removal itself changed.",
            faint=True,
        ),
        Drawing(plots.widths(report["models"], _SHOWN), panels=True),
    ]
    if quality is not None and any(plots.has_course(model, quality) for model in report["models"]):
        blocks.append(Drawing(plots.along(report["models"], quality)))
    return Panel("Made smaller", blocks)
