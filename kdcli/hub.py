"""Whether the model hub answers. Left to itself its client retries every file for half a minute."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reachable_hub() -> Iterator[bool]:
    """Yield whether the hub answers; where it does not, its clients work from their cache alone in the block.

    ``HF_HUB_OFFLINE`` and ``HF_HUB_ETAG_TIMEOUT`` are honoured.
    """
    import datasets
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    before = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    if not any(before):
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception:  # no name server, no route, refused, silent, a proxy's fault: all the same here
            constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before
