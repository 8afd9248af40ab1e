"""Claim: Retina embeds 0.9 of what its network and its decoding allow, no less than a naive service, and its download,
decoding and resizing alone do 100 images of 500 pixels a core and second.

    uv run python -m benchmarks.retina [--json] [--fast] [--check]

(a) network: the bare network in a loop, on tensors that are ready; (b) decode: decoding and resizing, or tokenizing,
alone; (c) Retina: 16 callers over gRPC, JPEG files downloaded from a web server on loopback; (d) naive: a service that
downloads, decodes and embeds one input a request. The limit is 1 / (1/a + 1/b) where both share a CPU's cores, and
min(a, b) on a GPU. `nothing` is Retina with a network that computes nothing.

On a CPU all figures are inputs per CPU-second of the one process in which all ways run; the web server and the callers
are other processes and do not count. Every pass uses one thread, as Retina has it, and as many passes run at a time as
Retina would have. On a GPU they are inputs a second, and `peak` is the share of the bfloat16 operations that a product
of 8192 x 8192 matrices reaches there; operations as torch's flop counter has them.
Weights are seeded: a network's speed does not depend on them. Ways are interleaved in one run. Three minutes on
two cores, or half of one with --fast.
"""

import asyncio
import io
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track

from benchmarks.comparison import WrongAnswer, options, publish, take_turns
from encoders.client import RetinaClient

OF_LIMIT, TIMES_NAIVE, TIMES_NAIVE_GPU, IMAGES_A_CORE = 0.9, 1.0, 3.0, 100.0
WARM_UP = 1  # rounds
CALLERS, KEYS_A_CALL = 16, 16
SIDE = 500
VIEWS = {  # view → inputs of a round
    "mobilenet_v3_small__v1": 256,
    "resnet50__v1": 64,
    "inception_v3__v1": 64,
    "text_lstm__v1": 1536,
    "nothing__v1": 256,
}
A, B, C, D = "a: network", "b: decode", "c: Retina", "d: naive"
CHILD = "from benchmarks.retina_process import main; main()"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured."""

    rounds: int
    views: dict[str, int]

    @classmethod
    def of(cls, *, fast: bool, gpu: bool) -> "Size":
        if fast:
            return cls(rounds=1, views={"mobilenet_v3_small__v1": 64, "text_lstm__v1": 512, "nothing__v1": 64})
        return cls(rounds=3, views={view: count * (16 if gpu else 1) for view, count in VIEWS.items()})


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


def serve_files(files: Sequence[bytes], told: Connection) -> None:
    """A web server as small as can be, in a process of its own: /N.jpg is the file N."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            while (await reader.readline()).strip():
                pass
            number = int(line.split()[1].strip(b"/").partition(b".")[0])
            content = files[number % len(files)]
            head = f"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
            writer.write(head.encode() + content)
            await writer.drain()
        writer.close()

    async def run() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        told.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(run())


class RetinaProcess:
    """The process in which everything is measured."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process
        self.said: dict[str, Any] = json.loads(self._line())

    @property
    def gpu(self) -> bool:
        return bool(self.said["device"] != "cpu")

    def do(self, what: str, **arguments: Any) -> Any:
        print(json.dumps({"do": what, **arguments}), file=self._process.stdin, flush=True)
        return json.loads(self._line())

    def _line(self) -> str:
        for line in self._process.stdout or ():
            return line
        raise WrongAnswer("the Retina process ended")


@dataclass(frozen=True)
class Bench:
    """What runs, and what is asked of it."""

    retina: RetinaProcess
    web_port: int
    texts: Sequence[str]

    def keys(self, view: str, count: int, mark: str) -> list[str]:
        """Keys that never came before, as far as anything that keeps answers could tell."""
        if view.startswith("text"):
            return [f"{self.texts[n % len(self.texts)]} {mark} {n}" for n in range(count)]
        return [f"http://127.0.0.1:{self.web_port}/{n}.jpg?{mark}" for n in range(count)]

    def call(self, port: int, view: str, keys: Sequence[str], keys_a_call: int) -> int:
        """Has callers ask for all keys, so many in a call."""
        calls = [keys[at : at + keys_a_call] for at in range(0, len(keys), keys_a_call)]
        with RetinaClient(f"127.0.0.1:{port}") as client, ThreadPoolExecutor(CALLERS) as callers:
            for encoded in callers.map(lambda some: client.encode(view, "", some, 600.0), calls):
                if any(outcome.reason for outcome in encoded.outcomes):
                    raise WrongAnswer(f"{view}: {next(o for o in encoded.outcomes if o.reason)}")
        return len(keys)

    def ways(self, view: str, count: int, mark: str) -> dict[str, Callable[[], int]]:
        keys = self.keys(view, count, mark)
        ways = {
            B: lambda: int(self.retina.do("decode", view=view, count=count)),
            C: lambda: self.call(self.retina.said["retina"], view, keys, KEYS_A_CALL),
        }
        if view != "nothing__v1":
            few = keys[: max(16, count // 4)]  # it is slow
            ways[A] = lambda: int(self.retina.do("network", view=view, count=count))
            ways[D] = lambda: self.call(self.retina.said["naive"], view, few, 1)
        return ways


@contextmanager
def running() -> Iterator[Bench]:
    """A web server and a Retina process, gone on leaving."""
    files, words = pictures(), texts()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        described = folder / "contents.json"
        described.write_text(json.dumps({"pictures": [file.hex() for file in files], "texts": words}))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        web = context.Process(target=serve_files, args=(files, theirs), daemon=True)
        web.start()
        stack.callback(web.terminate)
        child = subprocess.Popen(  # noqa: S603 - ourselves
            [sys.executable, "-c", CHILD, str(described)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.enter_context(child)
        stack.callback(child.stdin.close)  # type: ignore[union-attr]  # which ends it
        yield Bench(RetinaProcess(child), ours.recv(), words)


def measured(bench: Bench, size: Size) -> dict[tuple[str, str], list[float]]:
    """View and way → inputs per CPU-second of the Retina process (on a GPU: per second), round by round."""
    found: dict[tuple[str, str], list[float]] = {}
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    clock = time.perf_counter if bench.retina.gpu else lambda: float(bench.retina.do("cpu"))
    rounds = range(size.rounds + WARM_UP)
    for i in track(rounds, description="rounds", console=Console(stderr=True), transient=True):
        for view, count in size.views.items():
            speeds: dict[str, float] = {}
            turns: dict[str, Callable[[], None]] = {}
            for name, way in bench.ways(view, count if i >= WARM_UP else max(32, count // 8), f"round{i}").items():

                def turn(name: str = name, way: Callable[[], int] = way, speeds: dict[str, float] = speeds) -> None:
                    began = clock()
                    inputs = way()
                    speeds[name] = inputs / (clock() - began)

                turns[name] = turn
            take_turns(turns, lambda name, outcome: None, shuffle)
            if i >= WARM_UP:
                for name, speed in speeds.items():
                    found.setdefault((view, name), []).append(speed)
    return found


def compared(found: dict[tuple[str, str], list[float]], bench: Bench) -> list[dict[str, Any]]:
    """A row for each view: medians of each way, and what Retina's is of its limit and of the naive service."""
    rows = []
    peak = float(bench.retina.do("peak")) if bench.retina.gpu else None
    for view in dict.fromkeys(view for view, _ in found):
        a, b, c, d = (np.array(found.get((view, way), [np.nan])) for way in (A, B, C, D))
        # Round by round: what ran within the same minute is compared
        limit = b if np.isnan(a).all() else np.minimum(a, b) if bench.retina.gpu else 1 / (1 / a + 1 / b)
        rows.append(
            {
                "way": view,
                "rounds": len(c),
                A: _rounded(a),
                B: _rounded(b),
                C: _rounded(c),
                "c, slowest": round(float(c.min()), 1),
                "c, fastest": round(float(c.max()), 1),
                D: _rounded(d),
                "c / limit": round(float(np.median(c / limit)), 2),
                "c / d": None if np.isnan(d).all() else round(float(np.median(c) / np.median(d)), 2),
                "peak": None
                if peak is None or np.isnan(a).all()
                else round(float(np.median(a)) * float(bench.retina.do("flops", view=view)) / peak, 3),
            }
        )
    return rows


def _rounded(speeds: Any) -> float | None:
    return None if np.isnan(speeds).all() else round(float(np.median(speeds)), 1)


def claims(rows: Sequence[dict[str, Any]], *, gpu: bool) -> dict[str, bool]:
    """What is claimed → whether it holds."""
    claimed = {}
    times = TIMES_NAIVE_GPU if gpu else TIMES_NAIVE
    for row in rows:
        if row["way"] == "nothing__v1":
            # A GPU's host has many cores, and no CPU-seconds were counted
            if not gpu:
                said = f"download, decoding and resizing do {row[C]} images a core and second, {IMAGES_A_CORE} claimed"
                claimed[said] = row[C] >= IMAGES_A_CORE
            continue
        said = f"{row['way']}: Retina does {row['c / limit']} of its limit, {OF_LIMIT} claimed"
        claimed[said] = row["c / limit"] >= OF_LIMIT
        claimed[f"{row['way']}: Retina does {row['c / d']} times the naive service, {times} claimed"] = (
            row["c / d"] >= times
        )
    return claimed


def main() -> None:
    given = options(__doc__)
    with running() as bench:
        gpu = bench.retina.gpu
        size = Size.of(fast=given.fast, gpu=gpu)
        rows = compared(measured(bench, size), bench)
    unit = "second" if gpu else "CPU-second"
    publish(f"Inputs embedded a {unit} on {bench.retina.said['device']}", rows, claims(rows, gpu=gpu), given)


if __name__ == "__main__":
    main()
