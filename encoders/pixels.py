"""Decoding strangers' pictures: the boundary to Pillow."""

import contextlib
import io
import threading

import numpy as np
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError, features

from encoders.encoder import DecodeError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 64_000_000  # x 16 bytes at worst (an animated WebP, a progressive JPEG): 1 GB
LARGE_PIXELS = 16_000_000  # beyond, one picture at a time: 256 MB a decoding thread, and one of 1 GB
MAX_SIDE = 65_535  # JPEG's own limit
MAX_SCANS = 64  # of a JPEG; progressive ones have 10. Each goes over the whole picture, 80 ms, and may take 95 bytes
BACKGROUND = (255, 255, 255)  # behind what is transparent
STRIP_PIXELS = 1_000_000  # converted at a time, so that no second or third whole picture is in memory
REDUCTIONS = (8, 4, 2)  # at which JPEG decodes smaller than it was stored
DETAIL = 2  # sides of a reduced picture over those that are asked for: the resize after it still averages

Image.init()  # imports the decoders now, rather than in two threads at once
_large = threading.Semaphore(1)

UPRIGHT = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(content: bytes, at_least: int | None = None) -> Image.Image:
    """The picture in the bytes of an image file: RGB, 8 bits, upright by its EXIF orientation.

    Of an animation the first frame; transparency on white; 16-bit greyscale scaled to 8 bits, not clipped. Colour
    profiles are not applied: neither did those who trained the networks.

    Args:
        content: a whole file; one that ends early is refused, since half a picture would be embedded as if it were all
            of it.
        at_least: how long the shorter side will be after resizing. A JPEG of 4 times as much is then decoded at a half,
            a quarter or an eighth of its size, with at least twice as much left: what a resize makes of it differs from
            what it makes of the whole by 1 of 255 on average at most. None: as it is.

    Raises:
        DecodeError: no picture in an allowed format, more than 64 million pixels, a side beyond 65,535, or damaged. No
            retry helps: the same bytes fail again.
    """
    if not content:
        raise DecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check(opened, content)  # before any pixel is allocated
            _reduce(opened, at_least)
            with _large if _may_be_large(opened) else contextlib.nullcontext():
                opened.load()
                return _rgb(_upright(opened))
    except DecodeError:
        raise
    except UnidentifiedImageError:
        start = content[:16]
        raise DecodeError(f"no picture in a format of {', '.join(FORMATS)}: the file begins with {start!r}") from None
    except Exception as error:
        # Decoders raise whatever the bytes provoke: OSError, SyntaxError, struct.error, IndexError, …
        raise DecodeError(f"the picture cannot be decoded: {type(error).__name__}: {error}") from error


def _check(picture: ImageFile.ImageFile, content: bytes) -> None:
    width, height = picture.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        raise DecodeError(
            f"the picture has {width} x {height} pixels, {MAX_PIXELS} in all and {MAX_SIDE} a side are allowed"
        )
    # Within a scan the byte after 0xFF is never that of another scan; in metadata it may be, by chance.
    if picture.format in ("JPEG", "MPO") and (scans := content.count(b"\xff\xda")) > MAX_SCANS:
        raise DecodeError(f"the picture comes in {scans} scans, {MAX_SCANS} are allowed")


def _reduce(picture: ImageFile.ImageFile, at_least: int | None) -> None:
    """Has a JPEG decoded smaller, where enough of it is left.

    Only by what divides both sides: else the last column stands for less of the picture than the others, and a resize
    would shift what it sees by up to half a pixel.
    """
    if at_least is None or picture.format not in ("JPEG", "MPO"):
        return
    width, height = picture.size
    for factor in REDUCTIONS:
        if width % factor == height % factor == 0 and min(width, height) // factor >= DETAIL * at_least:
            picture.draft(None, (width // factor, height // factor))
            return


def _may_be_large(picture: ImageFile.ImageFile) -> bool:
    # AVIF's container tells one size, its bitstream may hold another: only libavif's limit of 16,384 a side stops that.
    return picture.format == "AVIF" or picture.width * picture.height > LARGE_PIXELS


def _upright(picture: Image.Image) -> Image.Image:
    transposition = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if transposition is None else picture.transpose(transposition)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "RGB" and not picture.has_transparency_data:
        return picture
    rows = max(1, STRIP_PIXELS // picture.width)
    if picture.height <= rows:
        return _flat(picture)
    whole = Image.new("RGB", picture.size)
    for top in range(0, picture.height, rows):
        strip = picture.crop((0, top, picture.width, min(top + rows, picture.height)))
        whole.paste(_flat(strip), (0, top))
    return whole


def _flat(picture: Image.Image) -> Image.Image:
    """RGB of 8 bits, with what is behind it where it is transparent."""
    if picture.mode.startswith("I"):  # Pillow's own conversion clips at 255
        grey = np.asarray(picture).astype(np.int64).clip(0, 65_535)  # (H, W)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        paper = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
        return Image.alpha_composite(paper, seen).convert("RGB")
    return picture.convert("RGB")
