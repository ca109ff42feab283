"""What is measured of networks that compare pictures with texts; see :class:`kdcli.report.figures.Figure`."""

from __future__ import annotations

from kdcli.report.figures import Figure
from kdcli.report.forms import number, percent
from kdcli.tasks.classification.figures import FIGURES as OF_CLASSES

_NEIGHBOURS, _ORDERS = (3, 5, 10), (2, 3, 5)  # those of kdcli.metrics.spaces, without torch
_TAUGHT = (
    "it takes --task zeroshot, --teacher, and a network that embeds pictures in the teacher's space of texts"
)


def _figure(name: str, label: str, says: str, *, fraction: bool = True, column: bool = False) -> Figure:
    form = percent if fraction else number
    return Figure(
        f"spaces.{name}",
        label,
        ("spaces", name),
        form,
        fraction=fraction,
        column=column,
        takes=_TAUGHT,
        says=says,
    )


FIGURES = (
    *(figure for figure in OF_CLASSES if not figure.name.startswith("exits.")),
    _figure(
        "relative_retrieval",
        "own picture",
        "Own picture (M_rel) is the part of pictures whose embedding is nearest to the teacher's of the same "
        "picture, among all that are measured: figures of unlike numbers of pictures do not compare.",
        column=True,
    ),
    *(
        _figure(f"shared_neighbours{k}", f"neighbours of {k}", "", column=k == _NEIGHBOURS[0])
        for k in _NEIGHBOURS
    ),
    *(_figure(f"text_order{k}", f"texts of {k} inverted", "", fraction=False) for k in _ORDERS),
    Figure(
        "memory.mean_per_class",
        "per class, memory",
        ("memory", "mean_per_class"),
        percent,
        fraction=True,
        takes="it takes data.open_classes with data.shots, whose pictures are the memory",
        says="Memory is the same without a training, by texts and by likeness to the few-shot pictures, each "
        "in ten views (Tip-Adapter, arXiv 2111.03930).",
    ),
    _figure("squared_distance", "distance to the teacher", "", fraction=False),
    _figure("degrees", "degrees to the teacher", "", fraction=False, column=True),
)
