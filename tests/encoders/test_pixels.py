import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image

from encoders.encoder import DecodeError
from encoders.pixels import FORMATS, decode
from tests.encoders.pictures import file_of, photographs

CAT = photographs()["cat"]


def difference(one: Image.Image, other: Image.Image) -> float:
    """Mean over pixels and channels, of 255."""
    assert one.size == other.size
    return float(np.abs(np.asarray(one, dtype=float) - np.asarray(other, dtype=float)).mean())


def png_of_size(width: int, height: int) -> bytes:
    """A few bytes that claim to be a picture of any size."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", FORMATS)
def test_every_format_gives_the_same_picture(kind: str) -> None:
    decoded = decode(file_of(CAT, kind))
    assert decoded.mode == "RGB"
    assert difference(decoded, CAT) < (8 if kind == "GIF" else 5)


def test_formats_that_are_not_allowed_are_refused() -> None:
    for kind in ("TIFF", "ICO", "PPM", "TGA", "EPS", "PDF"):
        with pytest.raises(DecodeError, match="JPEG, PNG"):
            decode(file_of(CAT.resize((64, 64)), kind))


def test_all_eight_exif_orientations_are_undone() -> None:
    upright = photographs()["astronaut"].crop((100, 0, 300, 120))
    stored_for = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    for orientation, how in stored_for.items():
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        stored = upright if how is None else upright.transpose(how)
        assert difference(decode(file_of(stored, exif=exif, quality=95)), upright) < 3, orientation


def test_transparency_is_seen_on_white() -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    half = Image.new("RGBA", (4, 4), (0, 0, 0, 128))
    assert decode(file_of(clear, "PNG")).getpixel((0, 0)) == (255, 255, 255)
    assert decode(file_of(half, "PNG")).getpixel((0, 0)) == (127, 127, 127)
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([10, 20, 30])
    assert decode(file_of(palette, "PNG", transparency=0)).getpixel((0, 0)) == (255, 255, 255)
    assert decode(file_of(palette, "PNG")).getpixel((0, 0)) == (10, 20, 30)
    grey = Image.new("LA", (4, 4), (0, 0))
    assert decode(file_of(grey, "PNG")).getpixel((0, 0)) == (255, 255, 255)


def test_cmyk_becomes_the_same_colours() -> None:
    assert difference(decode(file_of(CAT.convert("CMYK"), quality=95)), CAT) < 5


def test_sixteen_bit_grey_is_scaled_rather_than_clipped() -> None:
    ramp = np.linspace(0, 65_535, 256).astype(np.uint16)[None, :].repeat(4, axis=0)
    decoded = np.asarray(decode(file_of(Image.fromarray(ramp), "PNG")))
    assert decoded.shape == (4, 256, 3)
    np.testing.assert_array_equal(decoded[0, :, 0], np.arange(256))


def test_one_bit_and_grey_pictures_become_rgb() -> None:
    for mode in ("1", "L"):
        assert decode(file_of(CAT.convert(mode), "PNG")).mode == "RGB"


def test_one_pixel_is_a_picture() -> None:
    assert decode(file_of(Image.new("RGB", (1, 1), (1, 2, 3)), "PNG")).getpixel((0, 0)) == (1, 2, 3)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "WEBP", "PNG"):
        content = file_of(frames[0], kind, save_all=True, append_images=frames[1:], duration=100, lossless=True)
        assert decode(content).getpixel((4, 4)) == (255, 0, 0) or kind == "WEBP"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<html><body>not found</body></html>",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"BM" + bytes(60),
        b"RIFF\x00\x00\x00\x00WEBPVP8 ",
        b"\0" * 10_000,
        b"%PDF-1.7\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    ],
)
def test_what_is_no_picture_is_refused(content: bytes) -> None:
    with pytest.raises(DecodeError):
        decode(content)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("twentieth", range(0, 20, 3))
def test_a_file_that_ends_early_is_refused(kind: str, twentieth: int) -> None:
    content = file_of(CAT.resize((160, 120)), kind)
    with pytest.raises(DecodeError):
        decode(content[: len(content) * twentieth // 20])


@pytest.mark.parametrize(
    ("width", "height"), [(8001, 8000), (60_000, 60_000), (2**31 - 1, 2**31 - 1), (65_536, 1), (1, 65_536), (0, 5)]
)
def test_a_picture_that_is_too_large_is_refused_before_it_is_allocated(width: int, height: int) -> None:
    with pytest.raises(DecodeError):
        decode(png_of_size(width, height))


def test_a_bomb_of_text_in_a_picture_is_refused() -> None:
    bomb = zlib.compress(bytes(80_000_000), 9)
    name = b"iCCP"
    body = b"p\0\0" + bomb
    chunk = struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    text_body = b"t\0\0" + bomb
    text = struct.pack(">I", len(text_body)) + b"zTXt" + text_body + struct.pack(">I", zlib.crc32(b"zTXt" + text_body))
    whole = file_of(Image.new("RGB", (2, 2)), "PNG")
    with pytest.raises(DecodeError):
        decode(whole[:33] + chunk + text + whole[33:])


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    kind=st.sampled_from(FORMATS),
    changes=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=12),
)
def test_a_damaged_file_gives_a_picture_or_a_decode_error(kind: str, changes: list[tuple[int, int]]) -> None:
    content = bytearray(file_of(CAT.resize((40, 30)), kind))
    for position, value in changes:
        content[position % len(content)] = value
    try:
        decoded = decode(bytes(content))
    except DecodeError:
        return
    assert decoded.mode == "RGB"
    assert decoded.tobytes()


@pytest.mark.parametrize(("side", "factor"), [(16, 8), (24, 4), (32, 4), (40, 2), (64, 2), (65, 1), (None, 1)])
def test_a_jpeg_is_decoded_smaller_where_twice_of_what_is_asked_for_is_left(side: int | None, factor: int) -> None:
    content = file_of(CAT.resize((352, 256)))
    assert decode(content, side).size == (352 // factor, 256 // factor)
    assert decode(file_of(CAT.resize((353, 256))), side).size == (353, 256)  # no factor divides it
    assert decode(file_of(CAT.resize((352, 256)), "PNG"), side).size == (352, 256)


@pytest.mark.parametrize("target", [28, 56])
def test_a_resize_sees_in_a_reduced_jpeg_what_it_sees_in_the_whole(target: int) -> None:
    for name, picture in photographs().items():
        picture = picture.resize((picture.width // 8 * 8, picture.height // 8 * 8))
        content = file_of(picture, quality=90)
        reduced, full = decode(content, target), decode(content)
        assert reduced.width < full.width, name
        size = (target * full.width // full.height, target)
        seen = [each.resize(size, Image.Resampling.BILINEAR) for each in (reduced, full)]
        assert difference(*seen) < 1.0, name  # of 255: the tolerance that `decode` states


def test_an_upright_picture_may_be_reduced_too() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    assert decode(file_of(CAT.resize((352, 256)), exif=exif), 64).size == (128, 176)
    cmyk = file_of(CAT.resize((352, 256)).convert("CMYK"), quality=95)
    assert difference(decode(cmyk, 64), CAT.resize((176, 128))) < 8


def test_large_pictures_are_converted_in_strips_without_seams() -> None:
    width, height = 3000, 1100  # three strips
    grey = np.add.outer(np.arange(height) * 59, np.arange(width)).astype(np.uint16)
    decoded = np.asarray(decode(file_of(Image.fromarray(grey), "PNG", compress_level=1)))
    np.testing.assert_array_equal(decoded[:, :, 0], (grey.astype(np.int64) + 128) // 257)


def test_a_jpeg_of_more_scans_than_any_encoder_makes_is_refused() -> None:
    content = file_of(CAT.resize((64, 48)), progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    scans = content.count(b"\xff\xda")
    assert decode(content[:end] + content[last:end] * (64 - scans) + b"\xff\xd9").size == (64, 48)
    with pytest.raises(DecodeError, match="65 scans, 64 are allowed"):
        decode(content[:end] + content[last:end] * (65 - scans) + b"\xff\xd9")


def test_decoding_leaves_the_file_alone() -> None:
    content = file_of(CAT)
    before = bytes(content)
    assert decode(content).tobytes() == Image.open(io.BytesIO(content)).convert("RGB").tobytes()
    assert content == before
