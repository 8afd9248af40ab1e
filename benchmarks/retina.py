"""Claim: Retina embeds 0.9 of what a bare network and decoding allow; no less than a naive service on a CPU, three
times as much on a GPU; and downloads, decodes and resizes 100 images of 500 pixels a core and second.

    uv run python -m benchmarks.retina [--device cpu|cuda] [--processes N] [--json] [--fast] [--check]

(a) network: the network as torchvision has it, in a loop, on batches that are ready; (b) decode: Pillow and
torchvision's transforms alone; (c) Retina: many callers over gRPC, JPEG files downloaded from web servers on loopback;
(d) naive: a service that downloads, decodes and embeds one input a request. `nothing` is Retina with a network that
computes nothing. Web servers and callers are other processes. For texts (a) is our network on packed sequences, as
PyTorch's manual has them and as it is trained, and (b) our tokenizing.

Retina folds batch norms, normalises pictures in fewer steps and reads texts whole, so its own parts are faster than
these: `own parts` is the limit with its own, and shows what is lost between them.

On a CPU all figures are inputs per CPU-second of the one process in which all ways run, and the limit is
1 / (1/a + 1/b), since both share its cores. Every pass uses one thread, as Retina has it, and as many passes run at a
time as Retina would have.

On a GPU they are inputs a second, bfloat16 and channels_last, and the limit is min(a, b). One process of Python cannot
start downloads, decoding and kernels as fast as a GPU computes, so several Retinas share it (`--processes`), a core for
decoding each; b is what they decode when they do nothing else, with the same threads. (a) is one process alone, its
batches on the GPU already. (d) is one process too, and `d, as many` is as many naive processes as Retinas. `peak` is
the share of the operations a second that a product of 8192 x 8192 bfloat16 matrices reaches in the same run; operations
as torch's flop counter has them, which does not see those of an LSTM.

Weights are seeded: a network's speed does not depend on them. Ways are interleaved in one run, and compared round by
round. Six minutes on two cores, three on a GPU, or half of one with --fast.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks.retina_load import Load, load, pictures, texts
from benchmarks.turns import WrongAnswer, options, publish, take_turns

OF_LIMIT, TIMES_NAIVE, TIMES_NAIVE_GPU, IMAGES_A_CORE = 0.9, 1.0, 3.0, 100.0
WARM_UP = 1  # rounds
# View → inputs of a round; on a GPU many more. The first passes of a round have little to choose from and no picture to
# be decoded beside them, so there are some hundred passes of a fast network.
VIEWS = {
    "mobilenet_v3_small__v1": 640,
    "resnet50__v1": 64,
    "inception_v3__v1": 64,
    "text_lstm__v1": 7680,
    "nothing__v1": 320,
}
ROUNDS = 9  # a shared host is a tenth slower in one second than in the next
SLOW = ("resnet50__v1", "inception_v3__v1")  # 40 s of a round: every third has them
A, B, C, D, D_MANY = "a: network", "b: decode", "c: Retina", "d: naive", "d, as many"
A_OWN, B_OWN = "a, own", "b, own"
CHILD = "from benchmarks.retina_process import main; main()"


@dataclass(frozen=True, kw_only=True)
class Size:
    """How much is measured, and how it is loaded.

    Attributes:
        views: view → inputs of a round.
        naive: how many times fewer the naive service is asked for: it is slow.
        keys_a_call, texts_a_call: of Retina; KFC's calls have as many as a batch, up to 512.
        sites, callers: web servers and calling processes.
    """

    rounds: int
    views: dict[str, int]
    naive: int
    keys_a_call: int
    texts_a_call: int
    sites: int
    callers: int

    @classmethod
    def of(cls, *, fast: bool, gpu: bool) -> "Size":
        views = {"mobilenet_v3_small__v1": 64, "text_lstm__v1": 512, "nothing__v1": 64} if fast else VIEWS
        if gpu:
            counts = {view: (81920 if view.startswith("text") else 5120) // (4 if fast else 1) for view in views}
            return cls(
                rounds=1 if fast else 3, views=counts, naive=16, keys_a_call=64, texts_a_call=64, sites=3, callers=3
            )
        return cls(
            rounds=1 if fast else ROUNDS, views=views, naive=8, keys_a_call=16, texts_a_call=64, sites=1, callers=1
        )


class RetinaProcesses:
    """The processes in which everything is measured; on a CPU one."""

    def __init__(self, processes: "Sequence[subprocess.Popen[str]]") -> None:
        self._processes = processes
        self._said: list[dict[str, Any]] = [self._answer(process) for process in processes]

    @property
    def device(self) -> str:
        return str(self._said[0]["device"])

    @property
    def gpu(self) -> bool:
        return self.device != "cpu"

    def __len__(self) -> int:
        return len(self._processes)

    def addresses(self, kind: str, most: int | None = None) -> str:
        """Of the services of a kind, as `RetinaClient` takes them."""
        return ",".join(f"127.0.0.1:{said[kind]}" for said in self._said[:most])

    def do(self, what: str, **arguments: Any) -> Any:
        """What the first one answers."""
        return self.all_do(what, most=1, **arguments)[0]

    def all_do(self, what: str, most: int | None = None, **arguments: Any) -> list[Any]:
        """What they answer, all at a time."""
        for process in self._processes[:most]:
            print(json.dumps({"do": what, **arguments}), file=process.stdin, flush=True)
        return [self._answer(process) for process in self._processes[:most]]

    def _answer(self, process: "subprocess.Popen[str]") -> Any:
        for line in process.stdout or ():
            return json.loads(line)
        raise WrongAnswer("a Retina process ended")


@dataclass(frozen=True)
class Bench:
    """What runs, and what is asked of it."""

    retina: RetinaProcesses
    load: Load
    texts: Sequence[str]
    size: Size

    def keys(self, view: str, count: int, mark: str) -> list[str]:
        """Keys that never came before, as far as anything that keeps answers could tell."""
        if view.startswith("text"):
            return marked(self.texts, count, mark)
        sites = self.load.sites
        return [f"http://{sites[n % len(sites)]}/{n}.jpg?{mark}" for n in range(count)]

    def ways(self, view: str, count: int, mark: str) -> dict[str, Callable[[], int]]:
        keys = self.keys(view, count, mark)
        a_call = self.size.texts_a_call if view.startswith("text") else self.size.keys_a_call
        few = keys[: max(16, count // self.size.naive)]
        share = max(1, count // len(self.retina))

        def call(kind: str, keys: Sequence[str], keys_a_call: int, most: int | None = None) -> Callable[[], int]:
            return lambda: self.load.call(self.retina.addresses(kind, most), view, keys, keys_a_call)

        def decode(own: bool) -> int:
            return sum(self.retina.all_do("decode", view=view, count=share, own=own))

        def network(own: bool) -> int:
            return int(self.retina.do("network", view=view, count=count, own=own))

        ways: dict[str, Callable[[], int]] = {
            B: partial(decode, False),
            B_OWN: partial(decode, True),
            C: call("retina", keys, a_call),
        }
        if view != "nothing__v1":
            ways[A] = partial(network, False)
            ways[A_OWN] = partial(network, True)
            ways[D] = call("naive", few, 1, most=1)
            if len(self.retina) > 1:
                ways[D_MANY] = call("naive", keys[: 4 * len(few)], 1)
        return ways

    def cpu_by_kind(self) -> dict[str, float]:
        """CPU seconds of the Retina processes' threads so far."""
        found = self.retina.all_do("threads")
        return {kind: sum(each[kind] for each in found) for kind in found[0]}


def marked(texts: Sequence[str], count: int, mark: str) -> list[str]:
    """So many texts that never came before with that mark; two words longer."""
    return [f"{texts[n % len(texts)]} {mark} {n}" for n in range(count)]


@contextmanager
def running(device: str, processes: int, size: Size) -> Iterator[Bench]:
    """Web servers, callers and Retina processes, gone on leaving."""
    files, words = pictures(), texts()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        described = folder / "contents.json"
        # (a) and (b) of the same length as what (c) and (d) are asked for
        contents = {"pictures": [file.hex() for file in files], "texts": marked(words, len(words), "bare")}
        described.write_text(json.dumps(contents))
        loaded = stack.enter_context(load(files, size.sites, size.callers))
        cores = max(1, (os.cpu_count() or 1) // processes)
        children = []
        for _ in range(processes):
            child = subprocess.Popen(  # noqa: S603 - ourselves
                [sys.executable, "-c", CHILD, str(described), device, str(cores)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.stdin.close)  # type: ignore[union-attr]  # which ends it
            children.append(child)
        yield Bench(RetinaProcesses(children), loaded, words, size)


@dataclass(slots=True)
class Found:
    """What was measured: view and way → inputs per CPU-second of the Retina process (on a GPU: per second) of each
    round; view → CPU milliseconds an input of Retina's threads, by kind, in each round."""

    speeds: dict[tuple[str, str], list[float]]
    threads: dict[str, list[dict[str, float]]]


def measured(bench: Bench) -> Found:
    found = Found({}, {})
    shuffle = random.Random(0)  # noqa: S311 - an order, not a secret
    clock = time.perf_counter if bench.retina.gpu else lambda: float(bench.retina.do("cpu"))

    def turn(view: str, name: str, way: Callable[[], int], counts: bool) -> None:
        before, began = bench.cpu_by_kind(), clock()
        inputs = way()
        seconds, after = clock() - began, bench.cpu_by_kind()
        if counts:
            found.speeds.setdefault((view, name), []).append(inputs / seconds)
        if counts and name == C:
            used = {kind: 1000 * (after[kind] - before[kind]) / inputs for kind in after}
            found.threads.setdefault(view, []).append(used)

    rounds = range(bench.size.rounds + WARM_UP)
    for i in track(rounds, description="rounds", console=Console(stderr=True), transient=True):
        counts = i >= WARM_UP
        for view, count in bench.size.views.items():
            if view in SLOW and i % 3 and not bench.retina.gpu:
                continue
            ways = bench.ways(view, count if counts else max(32, count // 8), f"round{i}")
            turns = {name: partial(turn, view, name, way, counts) for name, way in ways.items()}
            take_turns(turns, lambda name, outcome: None, shuffle)
    return found


def compared(found: Found, bench: Bench) -> list[dict[str, Any]]:
    """A row for each view: medians of each way, and what Retina's is of its limit and of the naive service."""
    gpu = bench.retina.gpu
    peak = float(bench.retina.do("peak")) if gpu else np.nan
    rows = []
    for view in dict.fromkeys(view for view, _ in found.speeds):
        a, b, c, d, many, a_own, b_own = (
            np.array(found.speeds.get((view, way), [np.nan])) for way in (A, B, C, D, D_MANY, A_OWN, B_OWN)
        )
        # Round by round: what ran within the same minute is compared
        limit, limit_own = _limit(a, b, gpu), _limit(a_own, b_own, gpu)
        row: dict[str, Any] = {
            "way": view,
            A: _rounded(a),
            B: _rounded(b),
            C: _rounded(c),
            "slowest": round(float(c.min()), 1),
            "fastest": round(float(c.max()), 1),
            D: _rounded(d),
            A_OWN: _rounded(a_own),
            B_OWN: _rounded(b_own),
            "c / limit": _rounded(c / limit, 3),
            "c / own parts": _rounded(c / limit_own, 3),
            "c / d": _rounded(np.median(c) / d, 2),
        }
        if gpu:
            used = {kind: np.median([each[kind] for each in found.threads[view]]) for kind in found.threads[view][0]}
            flops = np.nan if np.isnan(a).all() else float(bench.retina.do("flops", view=view))
            row |= {
                D_MANY: _rounded(many),
                "c / as many": _rounded(np.median(c) / many, 2),
                "a, of peak": _rounded(a * flops / peak, 3),
                "CPU ms of c": ", ".join(f"{kind} {each:.2f}" for kind, each in used.items()),
            }
        rows.append(row)
    return rows


def _limit(a: NDArray[np.float64], b: NDArray[np.float64], gpu: bool) -> NDArray[np.float64]:
    """What a network and a decoding allow together, inputs a second; (R,) each, of R rounds."""
    if np.isnan(a).all():
        return b
    return np.minimum(a, b) if gpu else 1 / (1 / a + 1 / b)


def _rounded(values: Any, digits: int = 1) -> float | None:
    return None if np.isnan(values).all() else round(float(np.median(values)), digits)


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


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where networks compute")
    parser.add_argument("--processes", type=int, help="Retinas on a GPU; five of eight cores have one unless given")


def main() -> None:
    given = options(__doc__, _arguments)
    gpu = given.device != "cpu"
    if not gpu and given.processes not in (None, 1):
        sys.exit("--processes is for a GPU: on a CPU one Retina uses all cores")
    processes = given.processes or (max(1, (os.cpu_count() or 1) * 5 // 8) if gpu else 1)
    with running(given.device, processes, Size.of(fast=given.fast, gpu=gpu)) as bench:
        rows = compared(measured(bench), bench)
        name = bench.retina.do("name")
    unit = "second" if gpu else "CPU-second"
    publish(f"Inputs embedded a {unit} by {processes} Retina(s) on {name}", rows, claims(rows, gpu=gpu), given)


if __name__ == "__main__":
    main()
