"""What `benchmarks/retina.py` loads Retina with: web servers on loopback, and callers, each a process of its own."""

import asyncio
import io
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from multiprocessing.connection import Connection

from PIL import Image

from benchmarks.turns import WrongAnswer
from encoders.client import RetinaClient

SIDE = 500
CALLERS = 16  # of a process
CALL_SECONDS = 600.0


def pictures() -> list[bytes]:
    """Photographs of 500 x 500 pixels, as JPEG files of quality 90."""
    import skimage.data
    from sklearn.datasets import load_sample_images

    arrays = [skimage.data.astronaut(), skimage.data.chelsea(), skimage.data.coffee(), *load_sample_images().images]
    files = []
    for array in arrays:
        file = io.BytesIO()
        Image.fromarray(array).resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


def texts() -> list[str]:
    """Titles and descriptions: 3 to 60 words."""
    draw = random.Random(0)  # noqa: S311 - texts, not secrets
    return [" ".join(f"word{draw.randrange(5000)}" for _ in range(draw.randint(3, 60))) for _ in range(256)]


class Site(asyncio.Protocol):
    """A web server as small as can be: /N.jpg is the file N; connections are kept."""

    def __init__(self, files: Sequence[bytes]) -> None:
        self._files = files
        self._asked = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport: asyncio.Transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        *asked, self._asked = (self._asked + data).split(b"\r\n\r\n")
        for head in asked:
            content = self._files[int(head.split(b" ", 2)[1][1:].partition(b".")[0]) % len(self._files)]
            said = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(content)
            self._transport.write(said + content)


def serve_files(host: str, files: Sequence[bytes], told: Connection) -> None:
    """Serves for ever, once it has told its port."""

    async def run() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: Site(files), host, 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


@cache
def client(addresses: str) -> RetinaClient:
    return RetinaClient(addresses)


def call(addresses: str, view: str, keys: Sequence[str], keys_a_call: int) -> str:
    """Asks for all keys, so many in a call; what went wrong, or nothing."""
    calls = [keys[at : at + keys_a_call] for at in range(0, len(keys), keys_a_call)]
    with ThreadPoolExecutor(CALLERS) as callers:
        for encoded in callers.map(lambda some: client(addresses).encode(view, "", some, CALL_SECONDS), calls):
            if any(outcome.reason for outcome in encoded.outcomes):
                return f"{view}: {next(outcome for outcome in encoded.outcomes if outcome.reason)}"
    return ""


def make_calls(told: Connection) -> None:
    """Calls as it is told, for ever."""
    while True:
        told.send(call(*told.recv()))


@dataclass(frozen=True)
class Load:
    """The web servers' `host:port`, and the processes that call."""

    sites: Sequence[str]
    callers: Sequence[Connection]

    def call(self, addresses: str, view: str, keys: Sequence[str], keys_a_call: int) -> int:
        """Has all callers ask for a share of the keys; how many keys.

        Raises:
            WrongAnswer: a key was not embedded.
        """
        for n, caller in enumerate(self.callers):
            caller.send((addresses, view, keys[n :: len(self.callers)], keys_a_call))
        for wrong in [caller.recv() for caller in self.callers]:
            if wrong:
                raise WrongAnswer(wrong)
        return len(keys)


@contextmanager
def load(files: Sequence[bytes], sites: int, callers: int) -> Iterator[Load]:
    """So many web servers, each at an address of its own, and so many processes that call; gone on leaving."""
    context = multiprocessing.get_context("spawn")
    processes = []

    def start(target: object, *arguments: object) -> Connection:
        ours, theirs = context.Pipe()
        process = context.Process(target=target, args=(*arguments, theirs), daemon=True)  # type: ignore[arg-type]
        process.start()
        processes.append(process)
        return ours

    try:
        calling = [start(make_calls) for _ in range(callers)]
        hosts = [f"127.0.0.{n + 1}" for n in range(sites)]
        serving = [(host, start(serve_files, host, files)) for host in hosts]
        yield Load([f"{host}:{told.recv()}" for host, told in serving], calling)
    finally:
        for process in processes:
            process.terminate()
            process.join()
