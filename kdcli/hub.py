"""Whether the model hub answers, and its cache can be written to.

Left to itself the hub's client retries every file for half a minute.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from kdcli.errors import DISK_FAULTS, EnvironmentFault


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


def cache_fault(error: BaseException | None, what: str = "weights") -> EnvironmentFault | None:
    """What to say of an error if its cause is that a cache of weights cannot be written to, else None.

    Args:
        error: that a library raised.
        what: is cached.
    """
    from huggingface_hub import constants

    torch_home = os.environ.get("TORCH_HOME") or os.path.join(os.path.expanduser("~"), ".cache", "torch")
    caches = {"HF_HOME": (constants.HF_HOME, constants.HF_HUB_CACHE), "TORCH_HOME": (torch_home,)}
    if (datasets := sys.modules.get("datasets")) is not None:
        caches["HF_DATASETS_CACHE"] = (str(datasets.config.HF_DATASETS_CACHE),)
    while error is not None:
        if isinstance(error, OSError) and (error.errno in DISK_FAULTS or isinstance(error, FileExistsError)):
            place = os.path.abspath(os.fsdecode(error.filename or ""))
            for variable, folders in caches.items():
                if any(f"{place}{os.sep}".startswith(f"{folder}{os.sep}") for folder in folders):
                    return EnvironmentFault(
                        f"cannot write to the cache of {what} ({variable}): {place}: {error.strerror}. Mend "
                        f"its rights or free some space, or set {variable} to a folder of yours."
                    )
        error = error.__cause__ or error.__context__
    return None
