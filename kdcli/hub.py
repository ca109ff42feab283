"""Whether the model hub answers. Left to itself its client retries every file for half a minute."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def reachable_hub() -> Iterator[bool]:
    """Yield whether the hub answers; where it does not, its clients work from their cache alone in the block.

    ``HF_HUB_OFFLINE`` and ``HF_HUB_ETAG_TIMEOUT`` are honoured.
    """
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    clients = [constants, *(m.config for m in (sys.modules.get("datasets"),) if m is not None)]
    before = [client.HF_HUB_OFFLINE for client in clients]
    if not constants.HF_HUB_OFFLINE:
        try:
            get_session().head(constants.ENDPOINT, timeout=constants.HF_HUB_ETAG_TIMEOUT)
        except Exception:  # no name server, no route, refused, silent, a proxy's fault: all the same here
            for client in clients:
                client.HF_HUB_OFFLINE = True
    try:
        yield not constants.HF_HUB_OFFLINE
    finally:
        for client, offline in zip(clients, before):
            client.HF_HUB_OFFLINE = offline
