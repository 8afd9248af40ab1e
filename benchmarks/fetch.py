"""Claim: Retina downloads, decodes and resizes at least 100 photographs of 500 pixels in a second of one core.

    uv run python -m benchmarks.fetch [--json] [--fast] [--check]

Ours: `Fetcher` over loopback HTTP, 16 at a time, `decode` on a thread, then the resize of a 224-pixel network (shorter
side 256). The peer: what img2dataset does (it tells of about 84 images a second and core), urllib and Pillow on 16
threads.
The limit: Pillow's decoding and the same resize of bytes at hand. And ours without decoding: what the download costs.

All in images per CPU-second of this process; the web server is another process and does not count. Ways interleaved.
Half a minute, or a few seconds with --fast.
"""

import asyncio
import io
import multiprocessing
import random
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import IPv4Network
from itertools import islice
from multiprocessing.connection import Connection

import numpy as np
from PIL import Image

from benchmarks.turns import WrongAnswer, options, publish
from encoders.fetch import Fetcher
from encoders.pixels import decode
from training.photographs import pictures

CLAIM = 100.0  # images per CPU-second
PHOTOGRAPHS = 12
SIDE = 500  # the longer one
TARGET = 256  # the shorter one, resized
AT_ONCE = 16
LIMIT, OURS, PEER, DOWNLOAD = (
    "limit: Pillow, bytes at hand",
    "ours: fetch, decode, resize",
    "peer: urllib and Pillow",
    "ours: fetch alone",
)


@cache
def files() -> dict[str, bytes]:
    """Path → JPEG of quality 90."""
    found = {}
    for n, picture in enumerate(islice(pictures().values(), PHOTOGRAPHS)):
        scale = SIDE / max(picture.size)
        buffer = io.BytesIO()
        picture.resize((round(picture.width * scale), round(picture.height * scale))).save(buffer, "JPEG", quality=90)
        found[f"/{n}.jpg"] = buffer.getvalue()
    return found


def serve(tell: Connection) -> None:
    """Serves the files for ever, connections kept open; in a process of its own."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 1 << 18  # head and body in one packet

        def do_GET(self) -> None:
            content = files()[self.path]
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Quiet."""

    class Site(ThreadingHTTPServer):
        request_queue_size = 128

    files()  # now, rather than in 16 threads at once
    site = Site(("127.0.0.1", 0), Handler)
    tell.send(site.server_port)
    site.serve_forever()


@contextmanager
def serving() -> Iterator[str]:
    """The URL before every path."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there,), daemon=True)
    process.start()
    try:
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        process.terminate()
        process.join()


def resized(picture: Image.Image) -> tuple[int, int]:
    """The size after the resize of the networks' presets."""
    scale = TARGET / min(picture.size)
    return picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BILINEAR).size


def by_pillow(content: bytes) -> tuple[int, int]:
    return resized(Image.open(io.BytesIO(content)).convert("RGB"))


def by_ours(content: bytes) -> tuple[int, int]:
    return resized(decode(content, TARGET))


def by_urllib(url: str) -> tuple[int, int]:
    with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310 - loopback
        return by_pillow(answer.read())


async def fetched(urls: Sequence[str], prepare: Callable[[bytes], tuple[int, int]] | None) -> list[tuple[int, int]]:
    """Each URL fetched and prepared, as Retina does it: downloads on the event loop, decoding on a thread."""
    waiting = iter(enumerate(urls))
    done: list[tuple[int, int]] = [(0, 0)] * len(urls)
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(2) as decoding:
        async with Fetcher(allowed_networks=[IPv4Network("127.0.0.0/8")]) as fetcher:

            async def work() -> None:
                for i, url in waiting:
                    content = await fetcher.fetch(url)
                    if prepare is not None:
                        done[i] = await loop.run_in_executor(decoding, prepare, content)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AT_ONCE):
                    tasks.create_task(work())
    return done


def measured(base: str, count: int, rounds: int) -> Mapping[str, list[float]]:
    """Way → images per CPU-second of each round."""
    urls = [base + path for path in list(files()) * count]
    contents = list(files().values()) * count
    expected = [by_pillow(content) for content in files().values()] * count

    def peer() -> list[tuple[int, int]]:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(by_urllib, urls))

    ways: dict[str, Callable[[], list[tuple[int, int]]]] = {
        LIMIT: lambda: [by_pillow(content) for content in contents],
        OURS: lambda: asyncio.run(fetched(urls, by_ours)),
        PEER: peer,
        DOWNLOAD: lambda: asyncio.run(fetched(urls, None)),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    shuffle = random.Random(0)  # noqa: S311 - an order
    for n in range(rounds + 1):  # the first to warm up
        order = list(ways)
        shuffle.shuffle(order)
        for name in order:
            began = time.process_time()
            sizes = ways[name]()
            rate = len(urls) / (time.process_time() - began)
            if name != DOWNLOAD and sizes != expected:
                raise WrongAnswer(f"{name}: other pictures than were served")
            if n:
                found[name].append(rate)
    return found


def main() -> None:
    given = options(__doc__)
    with serving() as base:
        found = measured(base, 2 if given.fast else 6, 2 if given.fast else 7)
    medians = {name: float(np.median(rates)) for name, rates in found.items()}
    rows = [
        {
            "way": name,
            "images per CPU-second": round(medians[name], 1),
            "slowest": round(min(rates), 1),
            "fastest": round(max(rates), 1),
            "of the limit": round(medians[name] / medians[LIMIT], 2),
        }
        for name, rates in found.items()
    ]
    kilobytes = sum(map(len, files().values())) / len(files()) / 1000
    claims = {f"at least {CLAIM:.0f} images per CPU-second": medians[OURS] >= CLAIM}
    publish(f"Photographs of {SIDE} pixels, {kilobytes:.0f} kB each", rows, claims, given)


if __name__ == "__main__":
    main()
