"""Boxes as users have them, beside pictures in a folder: COCO JSON, Pascal VOC XML, YOLO text."""

from __future__ import annotations

from kdcli.data.annotations import coco, voc, yolo
from kdcli.data.annotations.objects import Claim
from kdcli.data.files import Found
from kdcli.data.tables import Raw
from kdcli.errors import InputError

_KINDS = (coco, voc, yolo)


def read_annotations(found: Found) -> Raw | None:
    """Tables with ``image``, ``objects`` and, where declared, ``width`` and ``height``; None without any.

    Raises:
        InputError: annotations of two kinds, or what any of them refuses.
    """
    claims = _claims(found)
    if len(claims) > 1:
        one, other = claims[:2]
        raise InputError(
            f"{found.root} holds annotations of two kinds: {one.kind} ({found.short(one.first)}) and "
            f"{other.kind} ({found.short(other.first)}). Move one of them away."
        )
    return claims[0].read() if claims else None


def unread_annotations(found: Found) -> list[str]:
    """Notes of annotations that are not read, since a metadata file says what is known of the pictures."""
    return [
        f"{found.root}: annotations as {claim.kind} ({found.short(claim.first)}) are not read beside a "
        "metadata file"
        for claim in _claims(found)
    ]


def _claims(found: Found) -> list[Claim]:
    return [claim for kind in _KINDS if (claim := kind.claim(found))]
