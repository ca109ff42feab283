"""What is measured of embeddings: how early the pictures of a query's identity are found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from kdcli.console import Console
from kdcli.engine import inference
from kdcli.engine.inference import Measuring
from kdcli.errors import InputError
from kdcli.metrics.reranking import reranked
from kdcli.metrics.retrieval import Embedded, Retrieved, retrieval
from kdcli.models.protocol import Model
from kdcli.tasks import analyses
from kdcli.tasks.retrieval.target import GALLERY, QUERY, Identities
from kdcli.tasks.settings import EvalOptions, Measured, refuse_unheeded

if TYPE_CHECKING:
    from kdcli.data.samples import Samples
    from kdcli.report.panels import Panel

_REASONS = {
    **dict.fromkeys(("window", "stride"), "only masks are judged by sliding windows"),
    "exit_slack": "early exit stops at the largest probability of one class",
    "effects_mix": "the effects of a teacher are measured of classifiers with one class a picture",
    **analyses.OTHERS,
}
_MOST_RERANKED = 20_000  # pictures, of which all pairs are held: 1.6 GB
SHOWN, ANSWERS = 8, 5  # queries of a report, and answers to each


def metrics(measuring: Measuring, network: Model) -> dict[str, float]:
    """Figures of one network, by which the best step is selected."""
    return searched(measuring.samples, inference.outputs(network, measuring)).metrics


def searched(samples: Samples, embedded: Tensor, *, rerank: bool = False) -> Retrieved:
    """What a search finds among pictures for those of them that ask.

    Args:
        samples: N labelled pictures.
        embedded: [N, E] of them.
        rerank: rank answers again, see :func:`kdcli.metrics.reranking.reranked`.

    Raises:
        InputError: embeddings that are no numbers, or no query with a right answer.
    """
    asking, answering = parts(samples)
    query, gallery = _embedded(samples, embedded, asking), _embedded(samples, embedded, answering)
    try:
        distances = reranked(query.features, gallery.features) if rerank else None
        return retrieval(query, gallery, distances=distances)
    except ValueError as error:
        raise InputError(f"{samples.name}: {error}.") from error


def parts(samples: Samples) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pictures that ask, and of those that are searched."""
    roles = _targets(samples).roles
    return np.flatnonzero(roles != GALLERY), np.flatnonzero(roles != QUERY)


def _targets(samples: Samples) -> Identities:
    assert isinstance(samples.targets, Identities)
    return samples.targets


def _embedded(samples: Samples, embedded: Tensor, rows: np.ndarray) -> Embedded:
    cameras = _targets(samples).cameras
    known = torch.from_numpy(cameras[rows]) if (cameras >= 0).any() else None
    keys = torch.from_numpy(samples.pictures[rows].view(np.int64))
    return Embedded(embedded[rows], torch.from_numpy(samples.labels[rows]), known, keys)


@dataclass(frozen=True)
class Evaluation:
    """An evaluation of embeddings, its options checked.

    Attributes:
        rerank: whether answers are ranked again.
    """

    rerank: bool

    @classmethod
    def of(cls, options: EvalOptions) -> Evaluation:
        """Check the options; see :meth:`kdcli.tasks.Task.evaluation`."""
        refuse_unheeded(options, ("rerank",), "retrieval", _REASONS)
        return cls(options.rerank)

    def describe(self) -> list[str]:
        """Lines of the plan."""
        return ["ranks    answers again by the neighbours that they share"] if self.rerank else []

    def measure(
        self,
        measuring: Measuring,
        networks: Mapping[str, Model],
        teacher: Model | None,
        console: Console,
    ) -> Measured:
        """Run every network once, and measure it; see :class:`kdcli.tasks.Evaluation`."""
        samples = measuring.samples
        asking, answering = parts(samples)
        if self.rerank and len(asking) + len(answering) > _MOST_RERANKED:
            raise InputError(
                f"--rerank holds all pairs of pictures: {len(asking) + len(answering):,} are more than "
                f"{_MOST_RERANKED:,}."
            )
        found = {name: self._found(measuring, net, name, console) for name, net in networks.items()}
        taught = next((found[name] for name, net in networks.items() if net is teacher), None)
        if teacher is not None and taught is None:
            taught = self._found(measuring, teacher, "teacher", console)
        pieces: dict[str, dict[str, Any]] = {}
        for name, result in found.items():
            pieces[name] = {
                "metrics": result.metrics,
                "search": {
                    "queries": len(asking),
                    "skipped": result.skipped,
                    "gallery": len(answering),
                    "width": int(result.width),
                },
            }
            if teacher is not None and taught is not None:
                same = (result.top[:, 0] == taught.top[:, 0]).double().mean()
                pieces[name]["teacher"] = {"name": teacher.name, "agreement": float(same)}
        first = next(iter(found.values()))
        notes = []
        if first.skipped:
            notes.append(
                f"{first.skipped:,} of {len(asking):,} queries have no right answer to be found, and do not "
                "count."
            )
        if self.rerank:
            notes.append("Answers are ranked again by k-reciprocal neighbours (arXiv 1701.08398).")
        shown = strips(samples, found, measuring.reading)
        return Measured(pieces, notes=notes, shown=shown)

    def panels(self, report: Mapping[str, Any], shown: Any) -> list[Panel]:
        """The panels of the report."""
        from kdcli.tasks.retrieval.report import panels

        return panels(report, shown)

    def _found(self, measuring: Measuring, network: Model, name: str, console: Console) -> _Found:
        network = network.to(measuring.runtime.device)
        with console.progress(name, len(measuring.samples), "pictures") as bar:
            embedded = inference.outputs(network, measuring, bar.update)
        result = searched(measuring.samples, embedded, rerank=self.rerank)
        return _Found(**vars(result), width=embedded.shape[1])


@dataclass(frozen=True)
class _Found(Retrieved):
    """What a search found, and by how many numbers a picture."""

    width: int = 0


def strips(
    samples: Samples, found: Mapping[str, Retrieved], reading: Mapping[str, Any]
) -> list[tuple[str, list[tuple[str, str]]]]:
    """Queries with their first answers, as small pictures: those at even steps from the worst to the best.

    Args:
        samples: that were searched.
        found: by model; the first one says which queries are shown.
        reading: how pictures are read.

    Returns:
        For each query and model a name, and captions with addresses of pictures: the query, its answers.
    """
    from kdcli.report.thumbnails import address

    asking, answering = parts(samples)
    precision = next(iter(found.values())).average_precision.numpy()
    order = np.argsort(precision, kind="stable")
    order = order[~np.isnan(precision[order])]  # those that count
    chosen = order[np.unique(np.linspace(0, len(order) - 1, min(SHOWN, len(order))).astype(int))]

    def picture(index: int, caption: str) -> tuple[str, str]:
        return caption, address(samples.picture(index, reading["max_pixels"]), 96)

    rows = []
    for query in chosen.tolist():
        own = int(asking[query])
        for name, result in found.items():
            images = [picture(own, f"asks: AP {float(result.average_precision[query]):.0%}")]
            for rank, answer in enumerate(result.top[query, :ANSWERS].tolist(), 1):
                if answer < 0:
                    continue
                index = int(answering[answer])
                right = samples.labels[index] == samples.labels[own]
                images.append(picture(index, f"{rank}: {'right' if right else 'wrong'}"))
            rows.append((f"{name}, {samples.row(own)}", images))
    return rows
