"""Retrieval: pictures of one identity lie close together, also of identities that no training has seen.

Training learns identities by cross-entropy and batch-hard triplets (Hermans et al. 2017, arXiv 1703.07737); a
search compares embeddings by their cosine. What a teacher answers is how alike it finds the pictures of a
batch, which any two embeddings can be compared by, whatever their widths and identities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from kdcli.errors import UsageError
from kdcli.sections import ViewSection
from kdcli.tasks.matching import bring_into_order
from kdcli.tasks.whole import WholePicture
from kdcli.words import Term

if TYPE_CHECKING:
    from torch import Tensor

    from kdcli.data.samples import Data
    from kdcli.data.targets import TargetColumns
    from kdcli.engine.grid import HeadResult, HeadSpec
    from kdcli.engine.inference import Measuring
    from kdcli.models.protocol import Model
    from kdcli.sections import DataSection, OptimSection
    from kdcli.tasks import Evaluation
    from kdcli.tasks.settings import EvalOptions, ProbeOptions, Probing, Validation

MARGIN = 0.35  # of the triplet loss, in the units of the features: Lin et al. 2023, arXiv 2303.09230
_CUT = dict(ViewSection(count="1"))
SHRINKAGES = (1.0, 0.1, 0.01)  # of the whitened embeddings that a probe tries


@dataclass(frozen=True)
class Retrieval(WholePicture):
    """The task of finding pictures of the same identity.

    Attributes:
        classes: names of the identities of the training pictures; none where nothing is trained.
        numbers: of these identities in the data, where they stand among all others.
        group: pictures of each identity in a batch.
    """

    name: str = "retrieval"
    selection: str = "mAP"
    numbers: tuple[int, ...] = ()
    group: int = 1

    @classmethod
    def of(
        cls, data: Data, section: DataSection, optim: OptimSection | None, views: ViewSection | None
    ) -> Retrieval:
        """The task of some data; see :func:`kdcli.tasks.task_of`."""
        if section.class_balance != "none":
            raise UsageError(
                "--class-balance: batches of retrieval hold as many pictures of each of their identities "
                "already (data.per_identity)."
            )
        if section.labels_per_class is not None:
            raise UsageError("--labels-per-class: retrieval learns from pictures that belong together.")
        if views is not None and views.store.startswith("top"):
            raise UsageError("retrieval has no views.store=topK: its embeddings are no distribution.")
        if optim is not None and (optim.mixup or optim.cutmix):
            raise UsageError("retrieval has no mixup and no CutMix: a mixed picture is of no identity.")
        if "train" not in data.splits:
            return cls(())
        numbers = np.unique(data.splits["train"].labels)
        numbers = numbers[numbers >= 0]
        names = tuple((data.classes or [])[number] for number in numbers.tolist())
        smoothing = optim.label_smoothing if optim else 0.0
        return cls(names, smoothing, numbers=tuple(numbers.tolist()), group=section.per_identity)

    def wanted(self, kind: str | None) -> dict[str, Any]:
        """An embedding and a classifier of the training identities."""
        from kdcli.models.heads.embedding import is_embedding, neck_width

        if kind is not None and not (is_embedding(kind) and (kind == "plain" or neck_width(kind))):
            raise UsageError(f"head={kind}: retrieval has plain, bnneck, or bnneckN for N numbers.")
        return {"classes": self.answers, "task": self.name, "head": "bnneck", "kind": kind}

    def supervised(self, call: str) -> tuple[Term, ...]:
        """Cross-entropy of identities, and triplets of the features below the neck, of labelled rows."""
        from kdcli.losses.logits import cross_entropy
        from kdcli.losses.metric import batch_hard_triplet

        keywords = {"label_smoothing": self.label_smoothing} if self.label_smoothing else {}
        return (
            Term("ce", cross_entropy, (f"{call}.logits", "target"), keywords=keywords, rows="labelled"),
            Term(
                "triplet",
                batch_hard_triplet,
                (f"{call}.features", "target"),
                keywords={"margin": MARGIN},
                scope="batch",
                rows="labelled",
            ),
        )

    def taught(self, student: str, teacher: str, *, temperature: float, t_squared: bool) -> Term:
        """KL of how alike the pictures of a batch are found, on all rows."""
        from kdcli.losses.similarities import similarity_kl

        taps = (f"{student}.embedding", f"~{teacher}.embedding")
        keywords = {"temperature": temperature, "t_squared": t_squared}
        return Term("kl", similarity_kl, taps, keywords=keywords, scope="batch")

    def target_columns(self, labels: np.ndarray) -> TargetColumns:
        """Numbers of identities among those of training."""
        import torch

        from kdcli.tasks.retrieval.batches import IdentityColumns

        return IdentityColumns(torch.tensor(self.numbers, dtype=torch.int64))

    def example(self, rows: int, side: int) -> dict[str, Tensor]:
        """Pictures of identities in turn, two of each."""
        import torch

        return {"y": torch.tensor(self.numbers)[torch.arange(rows) // 2 % len(self.numbers)]}

    # -- fitting and measuring: see kdcli.tasks.Task
    def match(self, network: Model, order: Literal["names", "same"], who: str) -> None:
        """Bring identities into the order of the data's where they are the same; else do without them.

        A search needs none, and what a teacher answers is no identity.
        """
        if network.classes is None:
            return
        if self.classes and set(network.classes) == set(self.classes):
            bring_into_order(network, self.classes, order, who)
        else:
            network.forget_classes()

    def heads(self, options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
        """Features as they are, and whitened; with ``--head none`` what the backbone itself answers."""
        from kdcli.engine.grid import HeadSpec

        if options.statistics.record:
            raise UsageError("--statistics records pictures of one class each; these data are for retrieval.")
        if options.protocol != "cached":
            raise UsageError("--protocol dinov2 trains classifiers; retrieval fits embeddings on a cache.")
        cut = [key for key, value in options.views if value != _CUT[key]]
        if cut:
            raise UsageError(f"views.{cut[0]}: a probe of retrieval sees pictures as they are, once.")
        own = type(options.grid)()
        if given := [key for key, value in options.grid if value != getattr(own, key)]:
            raise UsageError(f"grid.{given[0]}: retrieval fits its embeddings in closed form.")
        plain = [HeadSpec(feature, 0.0, 0.0, "plain") for feature in features]
        if options.head == "none":
            return plain
        return plain + [HeadSpec(f, 0.0, shrinkage, "whitened") for f in features for shrinkage in SHRINKAGES]

    def fit(self, probing: Probing) -> list[HeadResult]:
        """Each of them measured on the validation pictures."""
        from kdcli.tasks.retrieval.probe import fit

        return fit(probing)

    def attach(self, network: Model, result: HeadResult) -> None:
        """Make an embedding the network's own."""
        network.attach_embedding(result.spec.feature, dict(result.tensors), self.name)

    def metrics(self, measuring: Measuring, network: Model) -> dict[str, float]:
        """Mean average precision, and how often the first answers hold a right one."""
        from kdcli.tasks.retrieval.evaluate import metrics

        return metrics(measuring, network)

    def evaluation(
        self, options: EvalOptions, models: Mapping[str, str], validation: Validation
    ) -> Evaluation:
        """Precision and ranks of queries, re-ranked where asked for, and what was found."""
        from kdcli.tasks.retrieval.evaluate import Evaluation

        return Evaluation.of(options)
