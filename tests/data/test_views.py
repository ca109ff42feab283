"""A view is a function of (seed, view number, sample id), and of nothing else."""

from __future__ import annotations

import hashlib
import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from kdcli.artifacts.manifest import digest
from kdcli.artifacts.model import InputSpec
from kdcli.data.views import EvaluationCut, TrainingView, evaluation_view
from kdcli.errors import UsageError
from kdcli.sections import ViewSection
from kdcli.seeds import seed_of, seeded

PLAIN = {"scale": (1.0, 1.0), "hflip": 0.0}
# Of the default recipe, as the first caches have it.
FIRST = "05baa2a0a5573da7fddbc0aab9e0ff62d0d83b2471ca5357f05de8a7336cce96"
EVERYTHING = {
    "auto_augment": "rand-m9-mstd0.5-inc1",
    "erase": 0.5,
    "color_jitter": 0.4,
    "vflip": 0.5,
    "interpolation": "random",
}


@pytest.fixture(scope="module")
def photographs() -> list[Image.Image]:
    """Two real photographs, 640 x 427, from scikit-learn's package folder."""
    spec = importlib.util.find_spec("sklearn")
    assert spec is not None
    assert spec.origin is not None
    files = sorted((Path(spec.origin).parent / "datasets" / "images").glob("*.jpg"))
    return [Image.open(f).convert("RGB") for f in files]


@pytest.fixture(scope="module")
def photograph(photographs: list[Image.Image]) -> Image.Image:
    return photographs[0].resize((80, 60))


def view(size: int = 32, seed: int = 0, **fields: object) -> TrainingView:
    return TrainingView(ViewSection(**fields), size, seed)  # type: ignore[arg-type]


def states() -> list[object]:
    numpy = np.random.get_state()
    return [torch.get_rng_state().tolist(), numpy[1].tolist(), numpy[2], random.getstate()]  # type: ignore[index, union-attr]


def test_mix_is_a_fixed_hash() -> None:
    assert seed_of(1, 2, 3) == seed_of(1, 2, 3)
    assert len({seed_of(a, b, c) for a in range(8) for b in range(8) for c in range(8)}) == 512
    assert seed_of(0, 2**64 - 1) != seed_of(0, 2**63 - 1)
    assert all(0 <= seed_of(i) < 2**64 for i in range(-5, 100))
    bits = np.array([[seed_of(7, i) >> b & 1 for b in range(64)] for i in range(4000)])
    assert abs(bits.mean(axis=0) - 0.5).max() < 0.05


def test_seeding_leaves_no_trace() -> None:
    before = states()
    with seeded(5):
        drawn = torch.rand(1).item(), np.random.rand(), random.random()
    assert states() == before
    with pytest.raises(ZeroDivisionError), seeded(5):
        torch.rand(3), np.random.rand(), random.random() / 0
    assert states() == before
    with seeded(5):
        assert drawn == (torch.rand(1).item(), np.random.rand(), random.random())


def test_a_view_depends_on_its_numbers_alone(photograph: Image.Image) -> None:
    first = view(**EVERYTHING)(photograph, 3, 99)
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    before = states()
    again = view(**EVERYTHING)
    again(photograph, 1, 5)
    assert torch.equal(again(photograph, 3, 99), first)
    assert states() == before
    assert (first.dtype, first.shape) == (torch.uint8, (3, 32, 32))
    others = [(4, 99, 0), (3, 98, 0), (3, 99, 1), (3, 2**64 - 1, 0)]
    for number, sample, seed in others:
        assert not torch.equal(view(seed=seed, **EVERYTHING)(photograph, number, sample), first)


@pytest.mark.long  # imports torch and timm anew; test_batches covers forked processes
def test_another_process_cuts_the_same_view(photograph: Image.Image, tmp_path: Path) -> None:
    photograph.save(tmp_path / "p.png")
    code = (
        "import sys, hashlib; from PIL import Image; from kdcli.sections import ViewSection\n"
        "from kdcli.data.views import TrainingView\n"
        f"v = TrainingView(ViewSection(**{EVERYTHING!r}), 32, 0)\n"
        "p = Image.open(sys.argv[1]).convert('RGB')\n"
        "print(hashlib.sha256(b''.join(v(p, i, 7).numpy().tobytes() for i in range(20))).hexdigest())"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "p.png")], capture_output=True, text=True, check=True
    )
    cut = view(**EVERYTHING)
    here = hashlib.sha256(b"".join(cut(photograph, i, 7).numpy().tobytes() for i in range(20))).hexdigest()
    assert run.stdout.strip() == here


@pytest.mark.parametrize(
    ("base", "change"),
    [
        ({}, {"scale": (0.1, 0.2)}),
        ({}, {"ratio": (2.0, 3.0)}),
        ({}, {"hflip": 0.0}),
        ({}, {"vflip": 0.5}),
        ({}, {"color_jitter": 0.4}),
        ({}, {"auto_augment": "rand-m9-mstd0.5-inc1"}),
        ({}, {"auto_augment": "original-mstd0.5"}),
        ({}, {"erase": 1.0}),
        ({}, {"zoom_out": 0.5}),
        (PLAIN, {"fit": "squash"}),
        ({}, {"interpolation": "bilinear"}),
        ({}, {"interpolation": "random"}),
        (PLAIN, {"interpolation": "bilinear"}),
    ],
)
def test_every_field_has_an_effect(photograph: Image.Image, base: dict, change: dict) -> None:
    one, other = view(**base), view(**{**base, **change})
    assert one.recipe() != other.recipe()
    assert any(not torch.equal(one(photograph, i, 5), other(photograph, i, 5)) for i in range(8))


def test_recipes_name_what_decides_the_pixels() -> None:
    assert view().recipe() != view(size=33).recipe()
    assert view().recipe() != view(seed=1).recipe()
    assert view().recipe() == view(count="4", store="fp32").recipe()
    later = {"fit", "zoom_out", "iou_crop"}
    assert set(view().recipe()) == (set(ViewSection.model_fields) - {"count", "store"} - later) | {"seed"}
    assert digest(view().recipe()) == FIRST, "caches that were written before would not be found"
    assert {"fit", "zoom_out"} <= set(view(fit="squash", zoom_out=0.1).recipe())


def test_plain_views_are_the_picture(photograph: Image.Image) -> None:
    plain = view(**PLAIN)
    whole = plain(photograph, 0, 1)
    assert all(torch.equal(plain(photograph, i, i * 7), whole) for i in range(5))
    mirrored = view(**{**PLAIN, "hflip": 1.0})(photograph, 0, 1)
    assert torch.equal(mirrored, whole.flip(-1))
    assert torch.equal(view(vflip=1.0, **PLAIN)(photograph, 0, 1), whole.flip(-2))
    expected = evaluation_view(photograph, InputSpec((32, 32)))
    assert torch.equal(whole, expected)
    erased = view(erase=1.0, **PLAIN)(photograph, 0, 1)
    gone = (erased != whole).any(0)
    assert 0.01 < gone.float().mean() < 0.5
    assert erased[:, gone].eq(0).all()


def test_random_interpolation_uses_both(photograph: Image.Image) -> None:
    fields = {"scale": (0.5, 0.5), "ratio": (1.0, 1.0), "hflip": 0.0}
    found = {float(view(interpolation="random", **fields)(photograph, i, 5).float().std()) for i in range(6)}
    assert len(found) == 6


def test_strong_augmentation_always_runs(photograph: Image.Image) -> None:
    cut = view(size=24, **EVERYTHING)
    found = {cut(photograph, i, 11).numpy().tobytes() for i in range(200)}
    assert len(found) == 200


@pytest.mark.parametrize("size", [8, 13, 64, 224])
def test_sizes(photographs: list[Image.Image], size: int) -> None:
    pictures = [*photographs, Image.new("L", (1, 1)).convert("RGB"), Image.new("RGB", (300, 3))]
    for i, picture in enumerate(pictures):
        assert view(size=size)(picture, i, 1).shape == (3, size, size)
        assert view(size=size, **PLAIN)(picture, i, 1).shape == (3, size, size)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"scale": (0.9, 0.2)}, r"views\.scale: .*0 < low <= high <= 1, got \(0\.9, 0\.2\)"),
        ({"scale": (0.0, 1.0)}, r"views\.scale"),
        ({"ratio": (0.0, 1.0)}, r"views\.ratio"),
        ({"ratio": (2.0, 1.0)}, r"views\.ratio"),
        ({"auto_augment": "rondom"}, "timm knows no policy 'rondom'"),
    ],
)
def test_impossible_sections_are_refused_at_once(fields: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        view(**fields)


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize(("size", "crop"), [((96, 96), 0.875), ((160, 160), 1.0), ((64, 64), 0.95)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_evaluation_is_timms(
    photographs: list[Image.Image], mode: str, size: tuple[int, int], crop: float, interpolation: str
) -> None:
    from timm.data import create_transform

    spec = InputSpec(size, interpolation=interpolation, crop=crop, crop_mode=mode)
    theirs = create_transform(
        (3, *size), interpolation=interpolation, crop_pct=crop, crop_mode=mode, mean=spec.mean, std=spec.std
    )
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (spec.mean, spec.std))
    for photograph in photographs:
        cut = EvaluationCut(spec)
        ours = cut(photograph, 7, 3)
        assert ours.dtype == torch.uint8
        torch.testing.assert_close((ours / 255 - mean) / std, theirs(photograph), rtol=0, atol=1e-6)
    assert cut.recipe() == {"evaluation": spec.to_json()}
