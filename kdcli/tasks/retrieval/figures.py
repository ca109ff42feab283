"""What is measured of an embedding: see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import percent

_PICTURES = "it takes pictures with an identity (data.task=retrieval)"
_CAMERAS = f"{_PICTURES} and a camera"

FIGURES = (
    Figure(
        "mAP",
        "mAP",
        ("metrics", "mAP"),
        percent,
        fraction=True,
        takes=_PICTURES,
        says="mAP is the mean over queries of average precision, the mean of precision at each right answer. "
        "A query's own picture is never an answer; where cameras are known, neither are pictures of its "
        "identity by its own camera. Queries without a right answer do not count.",
        axis="mean average precision (%)",
    ),
    *(
        Figure(
            f"cmc{k}",
            f"CMC@{k}",
            ("metrics", f"cmc{k}"),
            percent,
            fraction=True,
            column=k != 10,
            takes=_CAMERAS,
            says="CMC@K is the share of queries with a right answer among the first K, under the rule of "
            "cameras."
            if k == 1
            else "",
        )
        for k in (1, 5, 10)
    ),
    *(
        Figure(
            f"recall{k}",
            f"R@{k}",
            ("metrics", f"recall{k}"),
            percent,
            fraction=True,
            column=k != 10,
            takes=_PICTURES,
            says="R@K, recall at K, is the same without that rule." if k == 1 else "",
        )
        for k in (1, 5, 10)
    ),
)
