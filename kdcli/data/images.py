"""From the stored bytes of a picture to RGB pixels: safely, completely, the same on every machine.

Decoding is *safe*: a closed list of formats (no Ghostscript, no plugin that a file can ask for), the size is
checked before pixels are allocated, and whatever a decoder raises is a `BadImageError`. It is *complete*: a
file that ends before its last pixel is refused, never padded with grey. It is no integrity check: most
flipped bits of a JPEG decode.

What becomes of each kind of picture:

* transparency (RGBA, LA, PA, a palette's or a colour key's) is composited over white, in stored values;
* 16-bit samples keep their high byte (``value >> 8``: black stays 0, white stays 255, as Pillow does for
  16-bit RGB); a 12-bit TIFF is scaled from its 12 bits;
* 32-bit integer, signed 16-bit and float samples have no known white: each picture is stretched from its
  own finite minimum and maximum to 0..255 (a constant picture is black, NaN is black);
* CMYK is converted without a profile; CMYK JPEGs are read as Adobe writes them, inverted (as Pillow does);
* LAB is converted to sRGB by LittleCMS; YCbCr, grey, bilevel and palette as Pillow does;
* of an animation or a multi-page file, the first frame;
* the EXIF (or XMP) orientation is applied; unreadable EXIF counts as upright, since the pixels are whole;
  a mask without an orientation of its own is turned as its picture is (see `decode_indices`);
* an embedded ICC profile is *not* applied, and no metadata is kept: nothing can be applied twice.

Threads and processes: Pillow's global state is only read. `Image.MAX_IMAGE_PIXELS` is a second limit, and
warning filters are left alone: a picture large enough for Pillow's `DecompressionBombWarning` is refused by
its size, whether the warning was shown, hidden or turned into an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import numpy as np

# The plugins register themselves when imported. With all seven there, Image.open never looks for others.
from PIL import (
    BmpImagePlugin,  # noqa: F401
    GifImagePlugin,  # noqa: F401
    Image,
    ImageFile,
    JpegImagePlugin,  # noqa: F401
    PngImagePlugin,  # noqa: F401
    PpmImagePlugin,  # noqa: F401
    TiffImagePlugin,  # noqa: F401
    UnidentifiedImageError,
    WebPImagePlugin,  # noqa: F401
)

from kdcli.errors import BadImageError, EnvironmentFault, KdcliError

_EMPTY = "the picture is empty (0 bytes)"
_NO_END = "damaged picture: the PNG is truncated (no IEND)"
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_UNKNOWN = f"not a readable {', '.join(FORMATS[:-1])} or {FORMATS[-1]} picture"
DEFAULT_MAX_PIXELS = 89_478_485  # Pillow's own line between a picture and a suspect: 256 MiB of RGB

_BITS_PER_SAMPLE, _ORIENTATION, _TILE_WIDTH, _TILE_LENGTH = 258, 274, 322, 323  # TIFF and EXIF tag numbers
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_PHOTOMETRIC = 262  # TIFF tag: 0 where the value zero is white
# What to do with a mask of another mode; any other has colours.
_MENDING = {
    "I": "Save its numbers in 8 bits: classes end at 254.",
    "F": "Save its numbers in 8 bits: classes end at 254.",
    "LA": "Remove its transparency.",
    "PA": "Remove its transparency.",
    "RGB": "Give each colour a class number and save the numbers; where its channels are equal, save one.",
    "RGBA": "Give each colour a class number and save the numbers; where its channels are equal, save one.",
}
# Where a PNG keeps an orientation; the standard lets these chunks follow the pixels.
_PNG_ORIENTATION = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def decode(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> Image.Image:
    """Decode a picture to upright 8-bit RGB; see the module's text for each mode.

    Args:
        data: the file's bytes.
        max_pixels: refuse a larger picture before its pixels are decoded. Pillow's own limit
            (`Image.MAX_IMAGE_PIXELS`, unless it is None) holds as well.

    Returns:
        A plain `PIL.Image.Image` of mode RGB without metadata.

    Raises:
        BadImageError: not a picture of a known format, damaged, truncated or too large.
        EnvironmentFault: another library told Pillow to accept truncated files.
    """
    with _decoder_errors():
        image = _open(data, max_pixels)
        image.load()
        if image.format == "PNG" and data.rfind(b"IEND") < 0:
            raise BadImageError(_NO_END)
        upright = _UPRIGHT.get(_orientation(image))
        rgb = _to_rgb(image, _transparent_key(image, data))
        if upright is not None:
            rgb = rgb.transpose(upright)
        rgb.info = {}
        return rgb


def decode_indices(
    data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS, picture: bytes | None = None
) -> np.ndarray:
    """Decode the class numbers of a mask: uint8 [H, W], a palette's indices as they are.

    A mask is turned by its own orientation. One that has none was drawn on the pixels as they are stored, and
    is turned as `decode` turns its picture; unless it has the size of the turned picture already and not that
    of the stored one: then it was drawn on what a viewer shows.

    Args:
        data: the file's bytes.
        max_pixels: as in `decode`.
        picture: the bytes of the picture that it belongs to.

    Raises:
        BadImageError: as `decode`; also colours, transparency, more than 8 bits, or a format that changes
            values.
    """
    with _decoder_errors():
        image = _open(data, max_pixels)
        _refuse_no_classes(image)
        turned = image.format == "TIFF" and _ORIENTATION in getattr(image, "tag_v2", {})  # Pillow turns it
        image.load()
        if image.format == "PNG" and data.rfind(b"IEND") < 0:
            raise BadImageError(_NO_END)
        orientation = 1 if turned else _stated_orientation(image)
        if orientation is None:
            orientation = 1 if picture is None else _of_picture(picture, image.size, max_pixels)
        upright = _UPRIGHT.get(orientation)
        values = np.asarray(image if upright is None else image.transpose(upright)).astype(np.uint8)
        depth = data[24] if image.format == "PNG" and image.mode == "L" else 8  # from IHDR, the first chunk
        return values if depth == 8 else values // np.uint8(255 // (2**depth - 1))  # Pillow has spread them


def palette_of(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> np.ndarray | None:
    """Colours uint8 [K, 3] of the indices of a mask, from the header; None where it has no palette.

    Arguments and errors are those of `decode`.
    """
    with _decoder_errors():
        image = _open(data, max_pixels)
        found = image.getpalette("RGB") if image.mode == "P" else None
        return None if found is None else np.array(found, np.uint8).reshape(-1, 3)


def _refuse_no_classes(image: ImageFile.ImageFile) -> None:
    """Raise BadImageError for a picture whose values are no class numbers, or not those that were stored."""
    tags, mode = getattr(image, "tag_v2", {}), image.mode
    if mode not in ("L", "P", "1"):
        mending = _MENDING.get(
            mode.partition(";")[0], "Give each colour a class number, and save the numbers."
        )
        raise BadImageError(
            f"mode {mode}, where a mask has one channel of 8-bit class numbers (a PNG of mode L or P). "
            f"{mending}"
        )
    if image.format == "JPEG":
        raise BadImageError("a mask as a JPEG has other values than were stored: save it as PNG.")
    few_bits = tags.get(_BITS_PER_SAMPLE, (8,))[0] < 8 and mode == "L"
    inverted = mode != "P" and tags.get(_PHOTOMETRIC, 1) == 0
    stretched = image.format == "PPM" and mode == "L" and image.tile[0].args not in ("L", ("L", 255))
    if few_bits or inverted or stretched:
        raise BadImageError(
            f"a mask as a {image.format} of fewer than 8 bits, or with white for zero, is read with other "
            "values than were stored: save it as PNG."
        )


def glance(data: bytes) -> None:
    """Refuse what is no picture at first sight: a few bytes are looked at, and nothing is decoded.

    Whatever is refused here `decode` would refuse, and most that is damaged passes.

    Raises:
        BadImageError: no bytes, another format, or a PNG that was cut off.
    """
    if not data:
        raise BadImageError(_EMPTY)
    start = data[:16]
    with _decoder_errors():
        formats = [name for name in FORMATS if (accepts := Image.OPEN[name][1]) is None or accepts(start)]
    if not formats:
        raise BadImageError(_UNKNOWN)
    if formats == ["PNG"] and data.rfind(b"IEND") < 0:
        raise BadImageError(_NO_END)


def upright_size(data: bytes, *, max_pixels: int = DEFAULT_MAX_PIXELS) -> tuple[int, int]:
    """Width and height of what `decode` returns, from the header, under the same protections.

    Pixels are not decoded, so that a truncated file may pass here; the one exception is a PNG with metadata
    behind its pixels, which Pillow reaches only through them. Arguments and errors are those of `decode`.
    """
    with _decoder_errors():
        orientation, (width, height) = _header(data, max_pixels)
        return (height, width) if orientation >= 5 else (width, height)


def _header(data: bytes, max_pixels: int) -> tuple[int, tuple[int, int]]:
    """Orientation and stored size of a picture."""
    image = _open(data, max_pixels)
    if image.format == "PNG" and any(data.find(key, data.find(b"IDAT")) >= 0 for key in _PNG_ORIENTATION):
        image.load()
    orientation, (width, height) = _orientation(image), image.size
    # Pillow swaps a TIFF's size by its own tag, and only by that, when it reads the header.
    swapped = orientation >= 5 and _ORIENTATION in getattr(image, "tag_v2", {})
    return orientation, (height, width) if swapped else (width, height)


def _of_picture(picture: bytes, mask: tuple[int, int], max_pixels: int) -> int:
    """The orientation that a mask of this width and height takes over from its picture."""
    try:
        orientation, stored = _header(picture, max_pixels)
    except Exception:  # it is the picture that is damaged, which whoever decodes it says
        return 1
    drawn_upright = orientation >= 5 and mask == stored[::-1] != stored
    return 1 if drawn_upright else orientation


@contextmanager
def _decoder_errors() -> Iterator[None]:
    """Turn whatever a decoder raises into BadImageError with a short reason.

    Damaged bytes take Pillow's plugins to OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError,
    struct.error, zlib.error, MemoryError and more: any kind of Exception is expected here.
    """
    try:
        yield
    except KdcliError:  # ours, or a signal handler's
        raise
    except UnidentifiedImageError:  # its own text has only a memory address
        raise BadImageError(_UNKNOWN) from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadImageError(f"picture too large: {str(error).partition(',')[0]}") from None
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise BadImageError(f"damaged picture: {reason or type(error).__name__}") from error


def _open(data: bytes, max_pixels: int) -> ImageFile.ImageFile:
    """Read the header and check the size; no pixel is decoded."""
    if not isinstance(data, bytes):
        raise BadImageError(f"expected the bytes of a picture, got {type(data).__name__}")
    if not data:
        raise BadImageError(_EMPTY)
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise EnvironmentFault(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set: truncated pictures would be filled with grey. "
            "Remove that setting from the code that runs beside kdcli."
        )
    image = Image.open(BytesIO(data), formats=FORMATS)
    limit = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    tags = getattr(image, "tag_v2", {})  # a TIFF's tile may be far larger than its picture
    tile = int(tags.get(_TILE_WIDTH, 1)), int(tags.get(_TILE_LENGTH, 1))
    for what, (width, height) in (("", image.size), ("a TIFF tile of ", tile)):
        if width * height > limit:
            raise BadImageError(
                f"picture too large: {what}{width} x {height} = {width * height:,} pixels, more than the "
                f"{limit:,} allowed (--set data.max_pixels=N)"
            )
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF or XMP orientation, 1 to 8; 1 where there is none or it cannot be read."""
    return _stated_orientation(image) or 1


def _stated_orientation(image: Image.Image) -> int | None:
    """Return the EXIF or XMP orientation, 1 to 8; None where there is none or it cannot be read."""
    try:
        # Not image.getexif(): the one of a PNG decodes the pixels.
        value = Image.Image.getexif(image).get(_ORIENTATION)
    except Exception:  # metadata are parsed by the same fragile code as pixels
        return None
    return value if isinstance(value, int) and 1 <= value <= 8 else None


def _transparent_key(image: Image.Image, data: bytes) -> object:
    """Return the transparent colour or palette index, on the scale of Pillow's pixels, or None.

    A PNG's key has the file's bit depth; of 2, 4 and 3 x 16 bits Pillow 12 scales the pixels to 8,
    but not the key.
    """
    key = image.info.get("transparency")
    depth = data[24] if image.format == "PNG" else 8  # from IHDR, always the first chunk
    if image.mode == "L" and depth < 8 and isinstance(key, int):
        return key * 255 // (2**depth - 1)
    if image.mode == "RGB" and depth == 16 and isinstance(key, tuple):
        return tuple(value >> 8 for value in key)
    return key


def _to_rgb(image: Image.Image, key: object) -> Image.Image:
    """Return a new RGB picture: 8 bits a sample, transparency over white."""
    if image.mode == "F" or image.mode.startswith("I"):
        image = Image.fromarray(_eight_bits(image, key))
    elif key is not None:
        image.info["transparency"] = key
    if not image.has_transparency_data:
        return image.convert("RGB")
    rgba = image.convert("RGBA")
    rgb = Image.new("RGB", rgba.size, "white")
    rgb.paste(rgba, mask=rgba.getchannel("A"))
    return rgb


def _eight_bits(image: Image.Image, key: object) -> np.ndarray:
    """Scale samples wider than 8 bits to uint8 [H, W]; those equal to a transparent `key` become white."""
    values = np.asarray(image)
    if image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I"):
        bits = getattr(image, "tag_v2", {}).get(_BITS_PER_SAMPLE, (16,))[0]
        scaled = (values >> (bits - 8)).astype(np.uint8)
    else:
        finite = np.isfinite(values)
        if not finite.any():
            raise BadImageError("damaged picture: no finite sample")
        low, high = float(values[finite].min()), float(values[finite].max())
        stretched = (values.astype(np.float64) - low) * (255 / (high - low) if high > low else 0)
        scaled = np.nan_to_num(stretched, nan=0, posinf=255, neginf=0).round().astype(np.uint8)
    return np.where(values == key, np.uint8(255), scaled) if isinstance(key, int) else scaled
