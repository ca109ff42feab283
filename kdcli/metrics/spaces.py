"""How a student's embeddings lie in a vision-language teacher's space: Li et al. 2023, arXiv 2307.03135.

S and T are embeddings of the same N pictures by student and teacher, X those of C texts, all at length 1, in
float64. The authors published equations and no code; of pictures and transforms they leave the choice open.
Memory does not grow with N²: rows are looked at a part at a time, on the students' device.

Squared distances are rounded to nine decimals, so that equal rows are equally far wherever they stand. What
ties count is said with each figure: a student that finds all alike gets about what guessing gives, or less.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from kdcli.errors import NotFinite

NEIGHBOURS = (3, 5, 10)
"""The paper's k of :func:`shared_neighbours`."""

ORDERS = (2, 3, 5)
"""The paper's k of :func:`text_order`."""

_ENTRIES = 2**22  # of distances that are looked at together: 32 MB in fp64, and copies
_DECIMALS = 9


def relative_retrieval(students: Tensor, teachers: Tensor) -> float:
    """M_rel: part of pictures whose student's embedding is nearest to the teacher's of the same picture.

    That is among the teacher's of all N pictures: figures of unlike N do not compare, and guessing gives 1/N.
    A tie with another picture is a miss.

    Args:
        students: [N, D].
        teachers: [N, D].

    Raises:
        ValueError: no pictures, two shapes, or embeddings that are not finite.
    """
    ours, theirs = _pair(students, teachers)
    hits = 0
    for rows, distances in _distances(ours, theirs):
        places = torch.arange(len(distances), device=ours.device)
        own = distances[places, rows]
        distances[places, rows] = torch.inf
        hits += int((own < distances.amin(dim=1)).sum())
    return hits / len(ours)


def shared_neighbours(students: Tensor, teachers: Tensor, k: int) -> float:
    """M_neigh: part of a picture's k nearest pictures in the student's space that are so in the teacher's.

    The picture itself is not its neighbour. Of pictures that tie the lower number is the nearer. The spaces
    may have different widths. Guessing gives k/(N − 1).

    Args:
        students: [N, D].
        teachers: [N, E].
        k: neighbours, 1 to N − 1.

    Raises:
        ValueError: no pictures, two numbers of them, embeddings that are not finite, or k outside its range.
    """
    return _shared(students, teachers, (k,))[0]


def text_order(students: Tensor, teachers: Tensor, bank: Tensor, k: int) -> float:
    """M_vlalign: how often the student inverts the order of the k texts nearest to the teacher's embedding.

    Mean over pictures of the number of pairs, of those k texts, of which the teacher's embedding is nearer to
    the one and the student's to the other. Lower is better; guessing gives k(k − 1)/4. A pair that the
    student finds equally far counts one half, and one that the teacher does, which has no order, nothing. Of
    texts that tie for the k-th place the lower number is taken.

    Args:
        students: [N, D].
        teachers: [N, D].
        bank: [C, D].
        k: texts, 2 to C.

    Raises:
        ValueError: no pictures or texts, shapes that do not fit, embeddings that are not finite, or k outside
            its range.
    """
    ours, theirs = _pair(students, teachers)
    texts = _units(bank.to(ours.device), "texts")
    _same_width(texts, theirs, "texts")
    if not 2 <= k <= len(texts):
        raise ValueError(f"k must be from 2 to {len(texts)}, the number of texts, not {k}")
    first, second = torch.triu_indices(k, k, offset=1, device=ours.device)
    total = 0.0
    both = zip(_distances(ours, texts, k * k), _distances(theirs, texts, k * k))
    for (_, distances), (_, wanted) in both:
        ascending, near = wanted.sort(dim=1, stable=True)
        ordered = ascending[:, first] < ascending[:, second]
        far = distances.gather(1, near[:, :k])
        inverted = 0.5 + 0.5 * (far[:, first] - far[:, second]).sign()
        total += float((inverted * ordered).sum())
    return total / len(ours)


def gap(students: Tensor, teachers: Tensor) -> tuple[float, float]:
    """Mean of ‖s − t‖² = 2 − 2·cos over pictures, and mean of the angle between s and t in degrees.

    To a row of zeros, which has no direction, the angle is 90 degrees.

    Args:
        students: [N, D].
        teachers: [N, D].

    Raises:
        ValueError: no pictures, two shapes, or embeddings that are not finite.
    """
    ours, theirs = _pair(students, teachers)
    apart, together = ((ours + sign * theirs).norm(dim=1) for sign in (-1, 1))
    angles = torch.rad2deg(2 * torch.atan2(apart, together))  # an arc cosine loses small angles
    return float(apart.square().mean()), float(angles.mean())


def spectrum(bank: Tensor, count: int = 10) -> Tensor:
    """Singular values of the texts less their mean, the largest first: [min(count, C, D)], float64.

    Texts at length 1, whose mean is then not. The flatter it is, the more the texts tell classes apart.

    Args:
        bank: [C, D].
        count: of values.

    Raises:
        ValueError: no texts, embeddings that are not finite, or count < 1.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    texts = _units(bank, "texts")
    return torch.linalg.svdvals(texts - texts.mean(dim=0))[:count]


def mean_cosine(bank: Tensor) -> float:
    """Mean cosine of two unlike texts of a bank [C, D]: the lower it is, the more unlike the texts are.

    Raises:
        ValueError: fewer than two texts, or embeddings that are not finite.
    """
    texts = _units(bank, "texts")
    if len(texts) < 2:
        raise ValueError("the mean cosine of two unlike texts needs at least two texts, got 1")
    own = texts.square().sum()
    return float((texts.sum(dim=0).square().sum() - own) / (len(texts) * (len(texts) - 1)))


def figures(
    students: Tensor,
    teachers: Tensor,
    bank: Tensor,
    *,
    neighbours: Sequence[int] = NEIGHBOURS,
    orders: Sequence[int] = ORDERS,
) -> dict[str, float]:
    """All of the above but the spectrum, by name. A k that does not fit N or C is left out.

    Args:
        students: [N, D].
        teachers: [N, D].
        bank: [C, D].
        neighbours: values of k of ``shared_neighbours{k}``.
        orders: values of k of ``text_order{k}``.

    Returns:
        ``relative_retrieval``, ``shared_neighbours{k}``, ``text_order{k}``, ``squared_distance``, ``degrees``
        and, of two texts or more, ``text_cosine``.

    Raises:
        ValueError: no pictures or texts, shapes that do not fit, or embeddings that are not finite.
    """
    found = {"relative_retrieval": relative_retrieval(students, teachers)}
    fitting = [k for k in neighbours if 1 <= k < len(students)]
    shared = _shared(students, teachers, fitting) if fitting else []
    found |= {f"shared_neighbours{k}": value for k, value in zip(fitting, shared)}
    fitting = [k for k in orders if 2 <= k <= len(bank)]
    found |= {f"text_order{k}": text_order(students, teachers, bank, k) for k in fitting}
    found["squared_distance"], found["degrees"] = gap(students, teachers)
    return found | ({"text_cosine": mean_cosine(bank)} if len(bank) > 1 else {})


def chance(
    pictures: int, texts: int, *, neighbours: Sequence[int] = NEIGHBOURS, orders: Sequence[int] = ORDERS
) -> dict[str, float]:
    """What a student that guesses gets of :func:`figures`, by the same names, where that is known.

    Args:
        pictures: N.
        texts: C.
        neighbours: values of k of ``shared_neighbours{k}``.
        orders: values of k of ``text_order{k}``.
    """
    found = {"relative_retrieval": 1 / pictures}
    found |= {f"shared_neighbours{k}": k / (pictures - 1) for k in neighbours if 1 <= k < pictures}
    return found | {f"text_order{k}": k * (k - 1) / 4 for k in orders if 2 <= k <= texts}


def _shared(students: Tensor, teachers: Tensor, ks: Sequence[int]) -> list[float]:
    """:func:`shared_neighbours` of several k in one pass."""
    ours, theirs = _units(students, "students"), _units(teachers.to(students.device), "teachers")
    _same_pictures(ours, theirs)
    for k in ks:
        if not 1 <= k < len(ours):
            raise ValueError(f"k must be from 1 to {len(ours) - 1}, the number of other pictures, not {k}")
    common = [0] * len(ks)
    for (rows, distances), (_, wanted) in zip(_distances(ours, ours), _distances(theirs, theirs)):
        places = torch.arange(len(distances), device=ours.device)
        for table in (distances, wanted):
            table[places, rows] = torch.inf
        for i, k in enumerate(ks):
            common[i] += int((_nearest(distances, k) & _nearest(wanted, k)).sum())
    return [count / (k * len(ours)) for count, k in zip(common, ks)]


def _nearest(distances: Tensor, k: int) -> Tensor:
    """The k smallest of each row [n, N], as booleans; of those that tie for the last place the first."""
    last = distances.topk(k, dim=1, largest=False).values[:, -1:]
    nearer, level = distances < last, distances == last
    room = k - nearer.sum(dim=1, keepdim=True)
    return nearer | (level & (level.cumsum(dim=1) <= room))


def _distances(a: Tensor, b: Tensor, columns: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
    """Numbers of rows [n] of ``a`` [N, D] and their squared distances [n, M] to ``b`` [M, D], part by part.

    Args:
        a: of length 1, or 0.
        b: of length 1, or 0.
        columns: that a row needs at least beside M, which makes parts smaller.
    """
    count = max(1, _ENTRIES // max(len(b), columns))
    lengths, others = a.square().sum(dim=1), b.square().sum(dim=1)
    for rows in torch.arange(len(a), device=a.device).split(count):
        squared = lengths[rows, None] + others - 2 * (a[rows] @ b.mT)
        yield rows, squared.round(decimals=_DECIMALS)


def _pair(students: Tensor, teachers: Tensor) -> tuple[Tensor, Tensor]:
    """Unit rows of both, of the same pictures and in one space."""
    ours, theirs = _units(students, "students"), _units(teachers.to(students.device), "teachers")
    _same_pictures(ours, theirs)
    _same_width(ours, theirs, "students")
    return ours, theirs


def _units(embeddings: Tensor, name: str) -> Tensor:
    """Rows [N, D] at length 1, in float64; a row of zeros stays one. What has none or NaN is refused."""
    if embeddings.ndim != 2 or not embeddings.shape[1]:
        raise ValueError(
            f"embeddings of the {name} must have the shape [rows, width], not {list(embeddings.shape)}"
        )
    if not len(embeddings):
        raise ValueError(f"there are no embeddings of the {name}: a figure of an empty set is undefined")
    rows = embeddings.detach().double()
    bad = int((~rows.isfinite().all(dim=1)).sum())
    if bad:
        raise NotFinite(f"{bad} of {len(rows)} embeddings of the {name} are not finite (NaN or Inf)")
    rows = rows / rows.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _same_pictures(ours: Tensor, theirs: Tensor) -> None:
    """Raise ValueError for two numbers of rows."""
    if len(ours) != len(theirs):
        raise ValueError(
            f"there are embeddings of {len(ours)} pictures by the student and of {len(theirs)} by the "
            "teacher: both must be of the same pictures, in one order"
        )


def _same_width(rows: Tensor, theirs: Tensor, name: str) -> None:
    """Raise ValueError for two widths."""
    if rows.shape[1] != theirs.shape[1]:
        raise ValueError(
            f"embeddings of the {name} are {rows.shape[1]} wide and those of the teachers {theirs.shape[1]}: "
            "all must be in the teacher's space"
        )
