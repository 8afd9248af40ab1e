"""A corpus of what strangers may put under a URL, and the name that each failure is to have.

Three kinds: files, by the name under which they are served; pages of servers that behave badly; and keys. What is
named "" is embedded: odd, and a picture all the same.
"""

import gzip
import io
import struct
import time
import zipfile
import zlib
from collections.abc import Mapping

from PIL import Image

from encoders.pixels import FORMATS
from tests.encoders import web
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import Handler, Page, redirect_to, status


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_of_size(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"")) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def png_with(chunk: bytes) -> bytes:
    whole = file_of(Image.new("RGB", (2, 2)), "PNG")
    return whole[:33] + chunk + whole[33:]


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive picture whose last scan comes again and again: a few bytes each, and work for the whole picture."""
    content = file_of(Image.new("RGB", (side, side), "red"), progressive=True)
    last, end = content.rindex(b"\xff\xda"), content.rindex(b"\xff\xd9")
    return content[:end] + content[last:end] * scans + b"\xff\xd9"


def files() -> Mapping[str, tuple[bytes, str]]:
    """Name → content, and the expected reason."""
    small = photographs()["cat"].resize((160, 120))
    found: dict[str, tuple[bytes, str]] = {}
    for kind in FORMATS:
        whole = file_of(small, kind)
        for fifth in range(5):
            found[f"{kind} cut at {fifth} fifths"] = (whole[: len(whole) * fifth // 5], "DecodeError")
    jpeg, png, gif = file_of(small), file_of(small, "PNG"), file_of(small, "GIF")
    frame = jpeg.index(b"\xff\xc0") + 5
    avif = file_of(Image.new("RGB", (64, 48)), "AVIF")
    bomb = zlib.compress(bytes(40_000_000), 9)
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("a.txt", "x" * 1000)
    found |= {
        # pictures that are larger than their files
        "PNG of 3.6 billion pixels": (png_of_size(60_000, 60_000), "DecodeError"),
        "PNG of just too many pixels": (png_of_size(8001, 8000), "DecodeError"),
        "PNG of the largest size": (png_of_size(2**31 - 1, 2**31 - 1), "DecodeError"),
        "PNG of no height": (png_of_size(5, 0), "DecodeError"),
        "PNG of one endless line": (png_of_size(65_536, 1), "DecodeError"),
        "PNG with a bomb of text": (png_with(png_chunk(b"zTXt", b"t\0\0" + bomb)), "DecodeError"),
        "PNG with a bomb of a profile": (png_with(png_chunk(b"iCCP", b"p\0\0" + bomb)), "DecodeError"),
        "PNG with less than it says": (png_of_size(8000, 8000), "DecodeError"),
        "PNG of as many pixels as allowed": (file_of(Image.new("L", (8000, 8000)), "PNG"), ""),
        "RGBA PNG of many pixels": (file_of(Image.new("RGBA", (4000, 4000)), "PNG"), ""),
        "JPEG of 4 billion pixels": (jpeg[:frame] + b"\xff" * 4 + jpeg[frame + 4 :], "DecodeError"),
        "JPEG of a thousand scans": (jpeg_of_scans(2000, 1000), "DecodeError"),
        "JPEG of as many scans as allowed": (jpeg_of_scans(1000, 50), ""),
        "GIF of 4 billion pixels": (gif[:6] + b"\xff" * 4 + gif[10:], "DecodeError"),
        "WebP of 281 trillion pixels": (
            b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\x02\0\0\0" + b"\xff" * 6 + bytes(8),
            "DecodeError",
        ),
        "BMP of many pixels": (
            b"BM" + bytes(8) + struct.pack("<IIIIHH", 54, 40, 60_000, 60_000, 1, 24) + bytes(24),
            "DecodeError",
        ),
        "AVIF of a billion pixels": (
            avif.replace(struct.pack(">II", 64, 48), struct.pack(">II", 32_000, 32_000)),
            "DecodeError",
        ),
        # what is no picture, or none that is taken
        "nothing": (b"", "DecodeError"),
        "web page": (b"<!doctype html><title>Log in</title>", "DecodeError"),
        "SVG with an entity bomb": (
            b'<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><svg>&c;</svg>',
            "DecodeError",
        ),
        "10 MB of text": (b"ten letters" * 950_000, "DecodeError"),
        "invalid UTF-8": (b"\xc3\x28\xa0\xa1\xf0\x28\x8c\xbc" * 1000, "DecodeError"),
        "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) (r) file\n", "DecodeError"),
        "PDF": (b"%PDF-1.7\n" + jpeg, "DecodeError"),
        "TIFF": (file_of(small, "TIFF"), "DecodeError"),
        "icon": (file_of(small, "ICO"), "DecodeError"),
        "compressed JPEG": (gzip.compress(jpeg), "DecodeError"),
        "archive": (archive.getvalue(), "DecodeError"),
        "program": (b"\x7fELF\x02\x01\x01" + bytes(1000), "DecodeError"),
        "zeros": (bytes(1_000_000), "DecodeError"),
        # two things at once
        "JPEG that is a script": (jpeg[:2] + b"\xff\xfe\x00\x10*/alert(1)/*\0\0" + jpeg[2:], ""),
        "GIF that is a web page": (gif + b"<script>alert(1)</script>", ""),
        "PNG that is an archive": (png + archive.getvalue(), ""),
        "PNG that says it were a JPEG": (b"\xff\xd8\xff" + png, "DecodeError"),
    }
    return found


def raw(answer: bytes) -> Page:
    def page(handler: Handler) -> None:
        handler.wfile.write(answer)
        handler.close_connection = True

    return page


def again_and_again(head: bytes, part: bytes, pause: float = 0.0) -> Page:
    """A head, then the same part for ever."""

    def page(handler: Handler) -> None:
        handler.wfile.write(head)
        while not handler.server.stopping.wait(pause):
            handler.wfile.write(part)

    return page


def another_place(handler: Handler) -> None:
    handler.answer(302, b"", Location=f"/another place?{time.monotonic_ns()}")


def gzip_bomb(handler: Handler) -> None:
    handler.answer(200, gzip.compress(bytes(10_000_000)), Content_Encoding="gzip")


def to_itself(handler: Handler) -> None:
    """By a new connection, for which the host's name must be resolved again."""
    handler.answer(302, b"", Location=handler.path, Connection="close")


OK = b"HTTP/1.1 200 OK\r\n"
SERVERS: Mapping[str, tuple[Page, str]] = {
    "says 404": (status(404), "NotFound"),
    "says 403": (status(403), "NotFound"),
    "says 429": (status(429), "ServerFailed"),
    "says 500": (status(500), "ServerFailed"),
    "says 204 and nothing": (raw(b"HTTP/1.1 204 No Content\r\n\r\n"), "DecodeError"),
    "says nothing": (web.silent, "Timeout"),
    "says a byte now and then": (web.slow_drops, "Timeout"),
    "says a header now and then": (again_and_again(OK, b"X-Slow: x\r\n", 0.05), "Timeout"),
    "is to go on for ever": (again_and_again(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.005), "Timeout"),
    "chunks of a byte": (
        again_and_again(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n", 0.01),
        "Timeout",
    ),
    "never ends": (web.endless, "TooLarge"),
    "never ends, without a length": (again_and_again(OK + b"\r\n", bytes(65_536)), "TooLarge"),
    "floods with headers": (web.header_flood, "ServerFailed"),
    "has one endless header": (again_and_again(OK + b"X-Long: ", b"x" * 65_536), "ServerFailed"),
    "has an endless trailer": (
        again_and_again(OK + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-Trailer: x\r\n" * 1000),
        "ServerFailed",
    ),
    "breaks off": (web.broken_off, "ServerFailed"),
    "speaks no HTTP": (web.no_http, "ServerFailed"),
    "speaks HTTP/0.9": (raw(b"<html>"), "ServerFailed"),
    "says a negative length": (raw(OK + b"Content-Length: -5\r\n\r\nhello"), "ServerFailed"),
    "says two lengths": (raw(OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!"), "ServerFailed"),
    "says an absurd length": (raw(OK + b"Content-Length: 99999999999999999999\r\n\r\n"), "TooLarge"),
    "says a length of no number": (raw(OK + b"Content-Length: ten\r\n\r\nhello"), "ServerFailed"),
    "says a broken chunk": (raw(OK + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nhello"), "ServerFailed"),
    "hides a line in a header": (raw(OK + b"X-A: b\x00c\r\nContent-Length: 0\r\n\r\n"), "ServerFailed"),
    "sends a gzip bomb": (gzip_bomb, "NotFound"),
    "leads to itself": (redirect_to("/page/leads%20to%20itself"), "NotFound"),
    "leads to ever other places": (another_place, "NotFound"),
    "another place": (another_place, "NotFound"),
    "leads nowhere": (status(302), "NotFound"),
    "leads to no URL": (redirect_to("http://[::1/"), "NotFound"),
    "leads to a private address": (redirect_to("http://10.0.0.1/a"), "Blocked"),
    "leads to metadata": (redirect_to("http://169.254.169.254/latest/meta-data/"), "Blocked"),
    "leads to this machine": (redirect_to("//0.0.0.0/a"), "Blocked"),
    "leads to a mapped address": (redirect_to("http://[::ffff:10.0.0.1]/"), "Blocked"),
    "leads to a name of a private address": (redirect_to("http://private.example/"), "Blocked"),
    "leads to a file": (redirect_to("file:///etc/passwd"), "Blocked"),
    "leads to data": (redirect_to("data:image/png;base64,iVBORw0KGgo="), "Blocked"),
    "leads to another protocol": (redirect_to("gopher://127.0.0.1:6379/_FLUSHALL"), "Blocked"),
    "leads with a password": (redirect_to("http://user:password@good.example/"), "Blocked"),
}
SLOW = [name for name, (_, reason) in SERVERS.items() if reason == "Timeout"]

KEYS: Mapping[str, str] = {
    "http://0.0.0.0/a": "Blocked",
    "http://0/a": "Blocked",
    "http://2130706434/a": "Blocked",  # 127.0.0.2
    "http://0x7f.2/a": "Blocked",
    "http://127.0.0.2/a": "Blocked",
    "http://10.0.0.1/a": "Blocked",
    "http://100.64.0.1/a": "Blocked",
    "http://169.254.169.254/latest/meta-data/": "Blocked",
    "http://224.0.0.1/a": "Blocked",
    "http://255.255.255.255/a": "Blocked",
    "http://[::]/a": "Blocked",
    "http://[::1]/a": "Blocked",
    "http://[fe80::1]/a": "Blocked",
    "http://[ff02::1]/a": "Blocked",
    "http://[::ffff:10.0.0.1]/a": "Blocked",
    "http://[::10.0.0.1]/a": "Blocked",
    "http://[64:ff9b::a00:1]/a": "Blocked",
    "http://[64:ff9b:1::a00:1]/a": "Blocked",
    "http://[2002:a00:1::1]/a": "Blocked",
    "http://[2001:0:a00:1::1]/a": "Blocked",
    "http://private.example/a": "Blocked",
    "http://metadata.example/a": "Blocked",
    "http://mapped.example/a": "Blocked",
    "http://nat64.example/a": "Blocked",
    "http://unspecified.example/a": "Blocked",
    "http://127.0.0.1:1/nobody-listens": "ServerFailed",
    "file:///etc/passwd": "Blocked",
    "file:///proc/self/environ": "Blocked",
    "data:image/gif;base64,R0lGODlhAQABAAAAACw=": "Blocked",
    "s3://bucket/a.jpg": "Blocked",
    "ftp://a.example/a": "KeyRefused",
    "javascript:alert(1)": "KeyRefused",
    "http://user:password@a.example/": "KeyRefused",
    "http://a.example:99999/": "KeyRefused",
    "http://a.example/a b": "KeyRefused",
    "http://a.example/\0": "KeyRefused",
    "http://a.example/" + "x" * 9000: "KeyRefused",
    "": "KeyRefused",
}
