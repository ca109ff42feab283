"""Every mode to exact pixels; every damaged, hostile or oversized file to BadImageError and nothing else."""

from __future__ import annotations

import io
import pickle
import random
import struct
import subprocess
import sys
import textwrap
import warnings
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageFile
from toolbox import Payload, encode, png, sample_photographs

from kdcli import errors
from kdcli.data import images

WHITE = [255, 255, 255]
pytestmark = pytest.mark.filterwarnings("ignore")  # damaged metadata make Pillow warn


def pixels(data: bytes) -> list[list[list[int]]]:
    image = images.decode(data)
    assert (type(image), image.mode, image.info) == (Image.Image, "RGB", {})
    assert images.upright_size(data) == image.size
    return np.asarray(image).tolist()


def row(values: Iterable[object], dtype: object = np.uint8, mode: str | None = None) -> Image.Image:
    """A picture of one row."""
    array = np.array([list(values)], dtype=dtype)
    image = Image.fromarray(array)
    assert mode is None or image.mode == mode
    return image


def solid(mode: str, colour: object, size: tuple[int, int] = (8, 8)) -> Image.Image:
    return Image.new(mode, size, colour)  # type: ignore[arg-type]


def palette(entries: list[int], indices: list[int]) -> Image.Image:
    image = Image.new("P", (len(indices), 1))
    image.putpalette(entries)
    image.putdata(indices)
    return image


def photograph(side: int = 64) -> Image.Image:
    return sample_photographs()["china.jpg"].crop((200, 100, 200 + side, 100 + side))


PALETTE = [9, 8, 7, 200, 100, 50]
TRNS16 = struct.pack(">3H", 256, 256, 256)
LOSSLESS: dict[str, tuple[Callable[[], bytes], list[list[int]]]] = {
    "RGB": (lambda: encode(row([[1, 2, 3], [250, 0, 9]])), [[1, 2, 3], [250, 0, 9]]),
    "RGB BMP": (lambda: encode(row([[1, 2, 3]]), "BMP"), [[1, 2, 3]]),
    "RGB TIFF": (lambda: encode(row([[1, 2, 3]]), "TIFF", compression="tiff_lzw"), [[1, 2, 3]]),
    "RGB PPM": (lambda: encode(row([[1, 2, 3]]), "PPM"), [[1, 2, 3]]),
    "RGB WEBP": (lambda: encode(row([[1, 2, 3]]), "WEBP", lossless=True), [[1, 2, 3]]),
    "L": (lambda: encode(row([0, 77, 255], mode="L")), [[0] * 3, [77] * 3, WHITE]),
    "L WEBP": (lambda: encode(row([0, 77]), "WEBP", lossless=True), [[0] * 3, [77] * 3]),
    "1": (lambda: encode(row([0, 255]).convert("1")), [[0] * 3, WHITE]),
    "1 PBM": (lambda: b"P1\n2 1\n1 0\n", [[0] * 3, WHITE]),
    # v a / 255 + 255 (1 - a / 255), rounded
    "RGBA": (
        lambda: encode(row([[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]])),
        [[10, 20, 30], WHITE, [204, 224, 244]],
    ),
    "RGBA WEBP": (
        lambda: encode(row([[0, 100, 200, 51], [1, 2, 3, 255]]), "WEBP", lossless=True, exact=True),
        [[204, 224, 244], [1, 2, 3]],
    ),
    "LA": (lambda: encode(Image.merge("LA", [row([100, 100]), row([0, 51])])), [WHITE, [224] * 3]),
    "P": (lambda: encode(palette(PALETTE, [1, 0])), [[200, 100, 50], [9, 8, 7]]),
    "P, transparent index": (
        lambda: encode(palette(PALETTE, [1, 0]), transparency=0),
        [[200, 100, 50], WHITE],
    ),
    "P, alpha table": (
        lambda: encode(palette([9, 8, 7, 0, 100, 200], [1, 0]), transparency=b"\xff\x33"),
        [[204, 224, 244], [9, 8, 7]],
    ),
    "P GIF": (lambda: encode(palette(PALETTE, [1, 0]), "GIF"), [[200, 100, 50], [9, 8, 7]]),
    "P GIF transparent": (
        lambda: encode(palette(PALETTE, [1, 0]), "GIF", transparency=0),
        [[200, 100, 50], WHITE],
    ),
    "RGB colour key": (
        lambda: encode(row([[1, 2, 3], [3, 2, 1]]), transparency=(1, 2, 3)),
        [WHITE, [3, 2, 1]],
    ),
    "L colour key": (lambda: encode(row([5, 6]), transparency=5), [WHITE, [6] * 3]),
    "2-bit grey": (lambda: png(4, 1, 2, 0, b"\0\x1b"), [[0] * 3, [85] * 3, [170] * 3, WHITE]),
    "2-bit grey, key 1": (
        lambda: png(4, 1, 2, 0, b"\0\x1b", [(b"tRNS", b"\0\1")]),
        [[0] * 3, WHITE, [170] * 3, WHITE],
    ),
    "1-bit grey, key 0": (lambda: png(2, 1, 1, 0, b"\0\x40", [(b"tRNS", b"\0\0")]), [WHITE, WHITE]),
    # 16-bit: the high byte; clipping would make white of all but the first
    "I;16 PNG": (
        lambda: encode(row([0, 256, 32768, 65535], np.uint16, "I;16")),
        [[0] * 3, [1] * 3, [128] * 3, WHITE],
    ),
    "I;16 TIFF": (lambda: encode(row([255, 0x7FFF, 65535], np.uint16), "TIFF"), [[0] * 3, [127] * 3, WHITE]),
    "I;16B TIFF": (
        lambda: encode(Image.frombytes("I;16B", (2, 1), b"\x12\x34\xff\xff"), "TIFF"),
        [[0x12] * 3, WHITE],
    ),
    "16-bit grey, key": (
        lambda: png(2, 1, 16, 0, b"\0" + struct.pack(">2H", 300, 301), [(b"tRNS", struct.pack(">H", 300))]),
        [WHITE, [1] * 3],
    ),
    "16-bit RGB": (
        lambda: png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0x1234, 0xFFFF, 0, 255, 256, 511)),
        [[0x12, 255, 0], [0, 1, 1]],
    ),
    "16-bit RGB, key": (  # Pillow alone would make black transparent
        lambda: png(2, 1, 16, 2, b"\0" + struct.pack(">6H", 0, 0, 0, 256, 256, 256), [(b"tRNS", TRNS16)]),
        [[0] * 3, WHITE],
    ),
    "16-bit RGBA": (
        lambda: png(1, 1, 16, 6, b"\0" + struct.pack(">4H", 0, 100 << 8, 200 << 8, 51 << 8)),
        [[204, 224, 244]],
    ),
    "I PGM 16-bit": (
        lambda: b"P5\n3 1\n65535\n" + struct.pack(">3H", 0x1000, 0x8000, 0xFF00),
        [[16] * 3, [128] * 3, WHITE],
    ),
    # no known white: from the picture's own minimum to its maximum
    "I TIFF": (lambda: encode(row([-100, 0, 155], np.int32, "I"), "TIFF"), [[0] * 3, [100] * 3, WHITE]),
    "I TIFF, extremes": (
        lambda: encode(row([-(2**31), 0, 2**31 - 1], np.int32), "TIFF"),
        [[0] * 3, [128] * 3, WHITE],
    ),
    "F TIFF": (lambda: encode(row([-1.0, 0.0, 1.55], np.float32, "F"), "TIFF"), [[0] * 3, [100] * 3, WHITE]),
    "F TIFF, not finite": (
        lambda: encode(row([np.nan, -np.inf, np.inf, 0, 1], np.float32), "TIFF"),
        [[0] * 3, [0] * 3, WHITE, [0] * 3, WHITE],
    ),
    "F PFM, constant": (lambda: encode(row([3.5, 3.5], np.float32), "PPM"), [[0] * 3, [0] * 3]),
    # colour spaces
    "CMYK TIFF": (
        lambda: encode(Image.frombytes("CMYK", (2, 1), bytes([0, 255, 255, 0, 0, 0, 0, 51])), "TIFF"),
        [[255, 0, 0], [204] * 3],
    ),
    "YCbCr TIFF": (
        lambda: encode(solid("YCbCr", (76, 85, 255), (1, 1)), "TIFF", compression="tiff_lzw"),
        [[254, 0, 0]],
    ),
}


@pytest.mark.parametrize("case", LOSSLESS)
def test_each_mode_gives_exact_pixels(case: str) -> None:
    make, expected = LOSSLESS[case]
    assert pixels(make()) == [expected]


def test_12_bit_tiff_is_scaled_from_12_bits() -> None:
    tags = [
        (256, 4, 2),
        (257, 4, 1),
        (258, 3, 12),
        (259, 3, 1),
        (262, 3, 1),
        (273, 4, 0),
        (277, 3, 1),
        (279, 4, 3),
    ]
    start = 8 + 2 + 12 * len(tags) + 4
    tags[5] = (273, 4, start)
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4) + b"\xff\xf8\x00"
    assert pixels(data) == [[WHITE, [128] * 3]]


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("RGB", (200, 30, 60), (200, 30, 60)),
        ("L", 77, (77, 77, 77)),
        (
            "CMYK",
            (0, 255, 255, 0),
            (255, 0, 0),
        ),  # written as Adobe does: inverted
    ],
)
def test_jpeg_colour_spaces(mode: str, colour: object, expected: tuple[int, ...]) -> None:
    data = encode(solid(mode, colour), "JPEG", quality=100)
    assert (b"Adobe" in data) == (mode == "CMYK")
    assert np.abs(np.asarray(images.decode(data), int) - expected).max() <= 2


def test_lab_is_converted_by_its_definition() -> None:
    # under D50, to 8 bits: L* a* b* = (54.3, 80.8, 69.9) and (56.5, -4, -37)
    for lab, expected in (((138, 209, 198), [255, 0, 0]), ((144, 124, 91), [90, 140, 200])):
        assert np.abs(np.array(pixels(encode(solid("LAB", lab, (1, 1)), "TIFF"))) - expected).max() <= 5


def test_photographs_survive_every_lossless_format() -> None:
    for picture in sample_photographs().values():
        array = np.asarray(picture)
        for kind, options in (("PNG", {"compress_level": 1}), ("TIFF", {}), ("BMP", {}), ("PPM", {})):
            assert np.array_equal(images.decode(encode(picture, kind, **options)), array)
        lossy = np.asarray(images.decode(encode(picture, "JPEG", quality=90)), float)
        assert 20 * np.log10(255 / np.sqrt(np.mean((lossy - array) ** 2))) > 30


def test_16_bit_gradient_is_neither_clipped_nor_dimmed() -> None:
    gradient = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    for kind in ("PNG", "TIFF"):
        grey = np.asarray(images.decode(encode(Image.fromarray(gradient), kind)))
        assert np.array_equal(grey[..., 0], gradient // 256)
        assert len(np.unique(grey)) == 256


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_first_frame_of_many(kind: str) -> None:
    frames = [solid("RGB", colour, (4, 3)) for colour in ((255, 0, 0), (0, 0, 255))]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2
    assert pixels(data) == [[[255, 0, 0]] * 4] * 3


def test_icc_profile_is_not_applied_and_not_kept() -> None:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert pixels(encode(row([[1, 2, 3]]), icc_profile=profile)) == [[[1, 2, 3]]]


# --- orientation

UPRIGHT = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
STORED = {  # how a camera held as the number says would store UPRIGHT
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.T,
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).T,
    8: np.rot90(UPRIGHT, -1),
}


def exif(orientation: object) -> bytes:
    tags = Image.Exif()
    tags[274] = orientation
    return tags.tobytes()


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "TIFF lzw", "JPEG"])
def test_exif_orientation(kind: str, orientation: int) -> None:
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation])).convert("RGB")
    expected = np.repeat(UPRIGHT[..., None], 3, axis=2)
    options: dict[str, object] = {"WEBP": {"lossless": True}, "TIFF lzw": {"compression": "tiff_lzw"}}.get(
        kind, {}
    )
    if kind == "JPEG":  # blocks of 8 x 8 keep their mean
        stored = stored.resize((stored.width * 8, stored.height * 8), Image.Resampling.NEAREST)
        expected = expected.repeat(8, 0).repeat(8, 1)
        options = {"quality": 100}
    data = encode(stored, kind.split()[0], exif=exif(orientation), **options)
    assert np.abs(np.array(pixels(data)) - expected).max() <= (1 if kind == "JPEG" else 0)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "chunk",
    [
        (b"eXIf", exif(6)[6:]),
        (b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'),
        (b"tEXt", b"Raw profile type exif\0\nexif\n8\n" + exif(6).hex().encode()),
    ],
    ids=["eXIf", "XMP", "raw profile"],
)
def test_png_orientation_on_either_side_of_the_pixels(place: str, chunk: tuple[bytes, bytes]) -> None:
    data = png(2, 1, 8, 0, b"\0\1\2", **{place: [chunk]})
    assert pixels(data) == [[[1] * 3], [[2] * 3]]


def test_tiff_orientation_from_xmp() -> None:
    data = encode(row([1, 2]), "TIFF", tiffinfo={700: b'<x tiff:Orientation="6"/>'})
    assert pixels(data) == [[[1] * 3], [[2] * 3]]


@pytest.mark.parametrize(
    "bad", [b"Exif\0\0", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", exif(9), exif(0)]
)
def test_unreadable_orientation_counts_as_upright(bad: bytes) -> None:
    assert pixels(encode(row([[1, 2, 3], [4, 5, 6]]), exif=bad)) == [[[1, 2, 3], [4, 5, 6]]]


# --- refusals

SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
NOT_A_PICTURE = "not a readable PNG, JPEG, WEBP, BMP, GIF, TIFF or PPM picture"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the picture is empty (0 bytes)"),
        (None, "expected the bytes of a picture, got NoneType"),
        ("/etc/passwd", "expected the bytes of a picture, got str"),
        (SVG, NOT_A_PICTURE),
        (EPS, NOT_A_PICTURE),
        (b"\xc5\xd0\xd3\xc6" + struct.pack("<II", 30, len(EPS)) + bytes(18) + EPS, NOT_A_PICTURE),
        (pickle.dumps(Payload(Path("run"))), NOT_A_PICTURE),
        (bytes(100), NOT_A_PICTURE),
        (encode(Image.new("RGB", (8, 8)), "ICO"), NOT_A_PICTURE),
        (encode(Image.new("RGB", (8, 8)), "PCX"), NOT_A_PICTURE),
        (b"P5\n0 0\n255\n", NOT_A_PICTURE),
    ],
    ids=["empty", "None", "str", "SVG", "EPS", "EPS binary", "pickle", "zeros", "ICO", "PCX", "0 x 0"],
)
def test_refused_input(data: Any, message: str) -> None:
    with pytest.raises(errors.BadImageError) as caught:
        images.decode(data)
    assert str(caught.value) == message
    assert caught.value.exit_code == 3


def test_no_finite_sample() -> None:
    with pytest.raises(errors.BadImageError, match=r"^damaged picture: no finite sample$"):
        images.decode(encode(row([np.nan, np.inf], np.float32), "TIFF"))


def test_more_pixels_than_allowed() -> None:
    data = encode(solid("RGB", 0, (40, 30)))
    assert images.decode(data, max_pixels=1200)
    with pytest.raises(errors.BadImageError) as caught:
        images.decode(data, max_pixels=1199)
    assert str(caught.value) == (
        "picture too large: 40 x 30 = 1,200 pixels, more than the 1,199 allowed (--set data.max_pixels=N)"
    )


@pytest.mark.parametrize("action", ["ignore", "default", "error"])
def test_pillow_bomb_warning_is_an_error_under_any_filter(action: str) -> None:
    data = png(10_000, 10_000, 8, 0, b"")  # 100 Mpx: between Pillow's warning and its error
    filters, limit = list(warnings.filters), Image.MAX_IMAGE_PIXELS
    with warnings.catch_warnings(record=True):
        warnings.simplefilter(action)  # type: ignore[arg-type]
        with pytest.raises(errors.BadImageError, match=r"^picture too large: .*100.?000.?000 pixels"):
            images.decode(data, max_pixels=10**9)
    assert (filters, limit) == (list(warnings.filters), Image.MAX_IMAGE_PIXELS)


def test_default_limit_is_that_of_pillow() -> None:
    assert images.DEFAULT_MAX_PIXELS == Image.MAX_IMAGE_PIXELS


def test_tiff_tile_larger_than_its_picture() -> None:
    tags = [
        (256, 10),
        (257, 10),
        (258, 8),
        (259, 8),
        (262, 1),
        (277, 1),
        (322, 60_000),
        (323, 60_000),
        (324, 8),
    ]
    directory = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    data = b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4)
    with pytest.raises(errors.BadImageError, match=r"^picture too large: a TIFF tile of 60000 x 60000 = 3"):
        images.decode(data)


BOMB = """
    import resource, struct, zlib
    from kdcli import errors
    from kdcli.data import images

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    squeeze = zlib.compressobj(9)
    rows = b"".join(squeeze.compress(bytes(2501 * 100)) for _ in range(200)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", 20_000, 20_000, 1, 0, 0, 0, 0)
    data = b"\\x89PNG\\r\\n\\x1a\\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    assert len(data) < 64_000, len(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        images.decode(data)
    except errors.BadImageError as error:
        print(error)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_bomb_is_refused_in_little_memory() -> None:
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(BOMB)], capture_output=True, text=True, timeout=60, check=True
    )
    message, growth = result.stdout.splitlines()
    assert message == "picture too large: Image size (400000000 pixels) exceeds limit of 178956970 pixels"
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(growth) * unit < 300e6  # measured: about 0


def test_truncated_pictures_allowed_by_another_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(errors.EnvironmentFault, match=r"^PIL\.ImageFile\.LOAD_TRUNCATED_IMAGES is set"):
        images.decode(encode(photograph()))


def test_other_errors_of_ours_pass_through(monkeypatch: pytest.MonkeyPatch) -> None:
    def signalled(*_: object, **__: object) -> None:
        raise errors.Preempted("a signal handler ran inside the decoder")

    monkeypatch.setattr(Image, "open", signalled)
    with pytest.raises(errors.Preempted):
        images.decode(b"x")


@pytest.mark.parametrize("error", [MemoryError(), zlib.error("bad"), struct.error("bad"), KeyError("bad")])
def test_any_decoder_exception(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", fail)
    with pytest.raises(errors.BadImageError, match=r"^damaged picture: ('?bad'?|MemoryError)$"):
        images.decode(encode(row([1]), "PPM"))


# --- damage

DAMAGED: dict[str, Callable[[int], bytes]] = {
    "JPEG": lambda side: encode(photograph(side), "JPEG"),
    "JPEG progressive": lambda side: encode(photograph(side), "JPEG", progressive=True, exif=exif(6)),
    "PNG": lambda side: encode(photograph(side), "PNG"),
    "PNG palette": lambda side: encode(photograph(side).convert("P"), "PNG", transparency=3),
    "WEBP": lambda side: encode(photograph(side), "WEBP"),
    "WEBP lossless": lambda side: encode(photograph(side), "WEBP", lossless=True, exif=exif(6)),
    "GIF": lambda side: encode(photograph(side).convert("P"), "GIF"),
    "TIFF": lambda side: encode(photograph(side), "TIFF"),
    "TIFF deflate": lambda side: encode(photograph(side), "TIFF", compression="tiff_adobe_deflate"),
    "BMP": lambda side: encode(photograph(side), "BMP"),
    "PPM": lambda side: encode(photograph(side), "PPM"),
}
# Bytes at the end that carry nothing: a GIF's terminator and trailer, the checksum of a PNG's last chunk.
MAY_LACK = {"GIF": 2, "PNG": 4, "PNG palette": 4}


def decode_or_none(data: bytes) -> np.ndarray | None:
    """The pixels, or None for BadImageError, whose text must be sane. Anything else fails the test."""
    reason = ""
    try:
        image = images.decode(data, max_pixels=4_000_000)
    except errors.BadImageError as error:
        reason = str(error)
    if reason:
        assert len(reason) < 200
        assert "object at 0x" not in reason
        return None
    assert image.mode == "RGB"
    return np.asarray(image)


def check_prefixes(kind: str, data: bytes, lengths: Iterable[int]) -> None:
    whole = decode_or_none(data)
    assert whole is not None
    for length in lengths:
        prefix = decode_or_none(data[:length])
        if length < len(data) - MAY_LACK.get(kind, 0):
            assert prefix is None, f"{length} of {len(data)} bytes were taken for a picture"
        else:
            assert np.array_equal(prefix, whole)


def flip_bytes(data: bytes, count: int, seed: int) -> int:
    """Decode `count` copies of data, each with one to three changed bytes; return how many still decode."""
    generator = random.Random(seed)
    decoded = 0
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(generator.randint(1, 3)):
            # half of the hits in the first 200 bytes: headers are where parsers break
            end = len(data) if generator.random() < 0.5 else min(200, len(data))
            damaged[generator.randrange(end)] ^= generator.randint(1, 255)
        decoded += decode_or_none(bytes(damaged)) is not None
    return decoded


@pytest.mark.parametrize("kind", DAMAGED)
def test_truncated_files_are_refused(kind: str) -> None:
    data = DAMAGED[kind](64)
    spread = np.linspace(1, len(data) - 1, 30, dtype=int).tolist()
    check_prefixes(kind, data, {*spread, *range(len(data) - 12, len(data))})


@pytest.mark.long
@pytest.mark.parametrize("kind", DAMAGED)
def test_every_prefix_is_refused(kind: str) -> None:
    data = DAMAGED[kind](24)
    check_prefixes(kind, data, range(len(data)))


@pytest.mark.parametrize("kind", DAMAGED)
def test_flipped_bytes_decode_or_are_refused(kind: str) -> None:
    decoded = flip_bytes(DAMAGED[kind](32), 300, seed=0)
    assert decoded < 300
    assert decoded > 0 or kind == "PNG palette", "a PNG has checksums; the others let some pass"


@pytest.mark.long
@pytest.mark.parametrize("kind", DAMAGED)
def test_many_flipped_bytes(kind: str) -> None:
    assert 0 < flip_bytes(DAMAGED[kind](32), 20_000, seed=1) < 20_000


def test_threads_decode_the_same() -> None:
    files = [make(64) for make in DAMAGED.values()] * 4
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda data: images.decode(data).tobytes(), files))
    assert together == [images.decode(data).tobytes() for data in files]


# --- sizes


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
def test_the_size_needs_no_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encode(photograph(), kind)
    loads: list[object] = []
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda image: loads.append(image))
    assert images.upright_size(data) == (64, 64)
    if kind != "TIFF":  # whose directory may be at the end
        assert images.upright_size(data[: len(data) // 2]) == (64, 64)
    assert loads == []


def test_the_size_is_refused_as_pixels_are() -> None:
    with pytest.raises(errors.BadImageError, match=NOT_A_PICTURE):
        images.upright_size(SVG)
    with pytest.raises(errors.BadImageError, match="picture too large: 40 x 30 = 1,200 pixels"):
        images.upright_size(encode(solid("RGB", 0, (40, 30))), max_pixels=1199)


# -- masks ---------------------------------------------------------------------------------------------------

CLASSES = np.arange(6, dtype=np.uint8).reshape(2, 3)  # of each pixel of a picture of 3 x 2


def beside(kind: str, orientation: int | None) -> bytes:
    """A lossless picture whose red channel is ten times the class, as cameras store one."""
    picture = np.stack([CLASSES * 10] * 3, axis=-1)
    more = {"lossless": True} if kind == "WEBP" else {}
    return encode(picture, kind, **more, **({} if orientation is None else {"exif": exif(orientation)}))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [None, *range(1, 9)])
def test_a_mask_is_turned_as_its_picture_is(kind: str, orientation: int | None) -> None:
    picture = beside(kind, orientation)
    expected = np.asarray(images.decode(picture))[..., 0] // 10
    mask = encode(Image.fromarray(CLASSES), "PNG")
    assert images.decode_indices(mask, picture=picture).tolist() == expected.tolist()
    assert images.decode_indices(mask).tolist() == CLASSES.tolist()


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("own", range(1, 9))
def test_a_mask_is_turned_by_its_own_orientation_alone(kind: str, own: int) -> None:
    mask = encode(Image.fromarray(CLASSES), kind, exif=exif(own))
    expected = np.asarray(images.decode(beside("PNG", own)))[..., 0] // 10
    for of_picture in (None, 1, 3, 6):
        found = images.decode_indices(mask, picture=beside("PNG", of_picture))
        assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("orientation", range(5, 9))
def test_a_mask_of_the_turned_size_was_drawn_on_the_turned_picture(orientation: int) -> None:
    mask = encode(Image.fromarray(CLASSES.T.copy()), "PNG")
    assert images.decode_indices(mask, picture=beside("PNG", orientation)).tolist() == CLASSES.T.tolist()


def test_a_damaged_picture_leaves_its_mask_as_it_is() -> None:
    mask = encode(Image.fromarray(CLASSES), "PNG")
    assert images.decode_indices(mask, picture=b"nothing").tolist() == CLASSES.tolist()
