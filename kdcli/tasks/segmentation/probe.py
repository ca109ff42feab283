"""Linear segmentation heads on the patch tokens of a frozen backbone, by AdamW, chosen by mIoU."""

from __future__ import annotations

from collections.abc import Sequence

from kdcli.data.cache import Store
from kdcli.data.views import WholeCut
from kdcli.engine.grid import HeadResult, HeadSpec
from kdcli.errors import UsageError
from kdcli.tasks.segmentation.solver import Part, Source, train_dense_heads
from kdcli.tasks.settings import ProbeOptions, Probing

RATES = [3e-4, 1e-3, 3e-3, 1e-2]  # of AdamW, around its usual 1e-3


def specs(options: ProbeOptions, features: Sequence[str]) -> list[HeadSpec]:
    """The heads that are tried.

    Raises:
        UsageError: options that these heads have not.
    """
    grid = options.grid
    if options.protocol != "cached" or grid.solver == "lbfgs":
        raise UsageError("segmentation has no --protocol dinov2 and no L-BFGS: its heads learn by AdamW.")
    if options.statistics.record:
        raise UsageError("--statistics records classes of pictures, and these data have masks.")
    rates = grid.lr or RATES
    return [HeadSpec(f, r, decay, "adamw") for f in features for r in rates for decay in grid.weight_decay]


def fit(probing: Probing, classes: int) -> list[HeadResult]:
    """Results of the grid; every process trains the same."""
    plain = WholeCut(probing.network.spec)
    cut = plain if probing.views == 1 else probing.view
    return train_dense_heads(
        Source(probing.network, probing.cache, probing.filling, Store(probing.options.views.store)),
        Part(probing.labelled("train"), cut, probing.views),
        Part(probing.labelled("validation"), plain, 1),
        probing.specs,
        classes,
        probing.training,
    )
