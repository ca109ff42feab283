"""Pictures from recorded activations: Lopes, Fenu & Starner 2017, arXiv 1710.07535.

``kdcli probe --statistics`` records, for each class, the mean and the covariance of a teacher's activations
over its training pictures. For a picture of class c activations a* are drawn once, with those moments, and

    x* = argmin Σ_l mean( (relu(a*_l) − relu(a_l(x)))² ) / size_l

(one layer: without its size). The mean of a few pictures tells much about them, so a class of few is not
recorded, and is refused here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from kdcli.artifacts import manifest as manifests
from kdcli.artifacts.model import find, read_tensors
from kdcli.artifacts.store import write_tensors
from kdcli.errors import InputError
from kdcli.losses.datafree import sampled_activations, top_layer
from kdcli.synthesis.settings import InversionSection
from kdcli.words import Call, Derive, Phase, Term, Turn

FILE = "statistics.safetensors"


@dataclass(frozen=True)
class Records:
    """Moments of activations by class.

    Attributes:
        classes: numbers of the K classes that are recorded, [K].
        counts: pictures of each, [K].
        means: by tap, [K, D].
        spreads: by tap, covariances [K, D, D] or standard deviations [K, D].
        hash: sha256 of the file that they were read from.
    """

    classes: Tensor
    counts: Tensor
    means: dict[str, Tensor]
    spreads: dict[str, Tensor]
    hash: str = ""

    def write(self, path: Path) -> None:
        """Write as a safetensors file."""
        tensors = {"classes": self.classes, "counts": self.counts}
        for tap, mean in self.means.items():
            kind = "covariance" if self.spreads[tap].ndim == 3 else "deviation"
            tensors |= {f"{tap}/mean": mean, f"{tap}/{kind}": self.spreads[tap]}
        write_tensors(path, tensors)

    def sampled(self, seed: int, targets: Tensor) -> dict[str, Tensor]:
        """Activations drawn for pictures of the classes ``targets`` [B]: a0, a1, … of the taps, [B, D]."""
        random = torch.Generator().manual_seed(seed)
        found = {}
        for i, (tap, means) in enumerate(self.means.items()):
            noise = torch.randn((len(targets), means.shape[1]), generator=random)
            drawn = torch.empty_like(noise)
            for k, number in enumerate(self.classes.tolist()):
                if (rows := targets == number).any():
                    drawn[rows] = sampled_activations(noise[rows], means[k], self.spreads[tap][k])
            found[f"a{i}"] = drawn
        return found


def read_records(teacher: str) -> Records:
    """What probe recorded of a model artifact.

    Raises:
        InputError: no artifact, or one without a record, or a damaged one.
    """
    root = find(teacher)
    manifest = manifests.read(root) if root is not None else None
    if root is None or manifest is None or FILE not in manifest.files:
        raise InputError(
            f"{teacher} has no record of its activations. Record it where its training pictures are: kdcli "
            "probe --statistics."
        )
    manifests.verify(root, manifest, [FILE])
    tensors = read_tensors(root / FILE)
    classes, counts = tensors.pop("classes"), tensors.pop("counts")
    kinds = {name.rpartition("/")[::2]: tensor for name, tensor in tensors.items()}
    means = {tap: tensor for (tap, kind), tensor in kinds.items() if kind == "mean"}
    spreads = {tap: tensor for (tap, kind), tensor in kinds.items() if kind != "mean"}
    return Records(classes, counts, means, spreads, manifest.files[FILE]["sha256"])


def allowed(records: Records, classes: Sequence[str], section: InversionSection) -> list[int]:
    """Numbers of the classes that pictures are made of.

    Args:
        records: of the teacher.
        classes: names of all its classes.
        section: ``min_count``, and what is done about smaller ones.

    Raises:
        InputError: classes that are not recorded or of too few pictures, unless they are to be skipped.
    """
    least = section.min_count or 0
    kept = [c for c, n in zip(records.classes.tolist(), records.counts.tolist()) if n >= least]
    refused = [name for number, name in enumerate(classes) if number not in kept]
    if refused and (section.small_classes == "refuse" or not kept):
        more = f" and {len(refused) - 3} more" if len(refused) > 3 else ""
        way = "--set inversion.small_classes=skip makes pictures of the others."
        raise InputError(
            f"fewer than {least} pictures were recorded of {', '.join(refused[:3])}{more}: their mean would "
            f"give away too much of them. {way if kept else 'No class is left: record more of each.'}"
        )
    return kept


def lopes(records: Records, section: InversionSection) -> tuple[Phase, ...]:
    """The one phase; party ``pictures`` is trained, columns a0, a1, … are the sampled activations.

    Args:
        records: whose taps are matched.
        section: resolved.
    """
    derives, terms = [], []
    for i, (tap, means) in enumerate(records.means.items()):
        weight = 1.0 if len(records.means) == 1 else 1 / means.shape[1]
        derives.append(Derive(f"f{i}", torch.flatten, (f"t.{tap}",), {"start_dim": 1}))
        terms.append(Term(f"activations/{tap}", top_layer, (f"f{i}", f"a{i}"), weight))
    calls = (Call("x", "pictures", ("view",)), Call("t", "teacher", ("x.out",)))
    return (Phase((Turn("pictures", ("pictures",), calls, tuple(terms), tuple(derives)),), "pictures"),)
