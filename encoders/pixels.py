"""Decoding strangers' pictures: the boundary to Pillow."""

import io

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError, features

from encoders.encoder import DecodeError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", *(("AVIF",) if features.check("avif") else ()))
MAX_PIXELS = 64_000_000  # x 7 bytes, as decoded and as RGB: under 450 MB a decoding thread
MAX_SIDE = 65_535  # JPEG's own limit
BACKGROUND = (255, 255, 255)  # behind what is transparent

Image.init()  # imports the decoders now, rather than in two threads at once

UPRIGHT = {  # EXIF orientation → what undoes it
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def decode(content: bytes) -> Image.Image:
    """The picture in the bytes of an image file: RGB, 8 bits, upright by its EXIF orientation.

    Of an animation the first frame; transparency on white; 16-bit greyscale scaled to 8 bits, not clipped. Colour
    profiles are not applied: neither did those who trained the networks.

    Raises:
        DecodeError: no picture in an allowed format, more than 64 million pixels, a side beyond 65,535, or damaged. A
            file that ends early is refused, since half a picture would be embedded as if it were all of it.
    """
    if not content:
        raise DecodeError("the file is empty")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as opened:
            _check_size(opened.size)  # before any pixel is allocated
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


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if width * height > MAX_PIXELS or max(size) > MAX_SIDE:
        raise DecodeError(
            f"the picture has {width} x {height} pixels, {MAX_PIXELS} in all and {MAX_SIDE} a side are allowed"
        )


def _upright(picture: Image.Image) -> Image.Image:
    transposition = UPRIGHT.get(picture.getexif().get(ExifTags.Base.Orientation, 1))
    return picture if transposition is None else picture.transpose(transposition)


def _rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # Pillow's own conversion clips at 255
        grey = np.asarray(picture).astype(np.int64).clip(0, 65_535)  # (H, W)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if picture.has_transparency_data:
        seen = picture.convert("RGBA")
        paper = Image.new("RGBA", seen.size, (*BACKGROUND, 255))
        return Image.alpha_composite(paper, seen).convert("RGB")
    # A copy even of what is RGB already: the opened file is closed.
    return picture.convert("RGB")
