"""Clients of one EmbArk, as a process of their own: closed loop for its most, open loop for honest percentiles.

    python -m benchmarks.load '{"address": "127.0.0.1:50051", "view": "…", "keys": […], "count": 100, "seconds": 10}'

Closed loop (`"calls": 8`): so many calls are under way all the time. Open loop (`"rate": 400`): calls begin at random
times, so many a second, whether those before have been answered or not, and their time counts from when they should
have begun: a server that stalls is seen as its users would. Prints JSON: keys per second, the seconds of each call that
was answered and when it ended; how many were refused for want of room, were late, and failed otherwise, and how many of
those by gRPC's code and its words.
"""

import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import uvloop

from encoders.memory import keep_freed_memory
from feature_repo.embeddings import Status
from serving.answers import translated
from serving.channels import open_channel
from serving.client import AsyncEmbArkClient, ClientError, EmbArkOverloaded, EmbArkUnavailable
from serving.embark_pb2 import LookupReply, LookupRequest

PREPARED = 64  # requests of other keys each
LOOKED_AT = 50


class Load:
    """What one process asks.

    Args:
        asked: address, view, keys, count (of a call), seconds; calls or rate; precision; misses (share of keys that are
            new each time); until (a file: an open loop ends when it is there); prepared (requests are made before, and
            one answer in LOOKED_AT is read: clients with as many cores as the server can ask for more than it answers).
    """

    def __init__(self, asked: dict[str, Any]) -> None:
        self._asked = asked
        self._draw = np.random.default_rng(asked.get("seed", 0))
        self._fresh = 0
        self._prepared: list[bytes] = []
        self._send: Any = None
        self._answers = 0
        self.seconds: list[float] = []
        self.ends: list[float] = []  # since the start of the load
        self.start = 0.0
        self.held: list[float] = []  # seconds of each call since it began, however it ended
        self.troubled: list[float] = []  # ends of calls that had UNAVAILABLE keys
        self.errors: list[str] = []
        self.codes: Counter[str] = Counter()  # of calls that were not answered
        self.failed = 0  # otherwise than for want of room or time
        self.lost: list[float] = []  # ends of calls that were not answered
        self.refused = 0
        self.late = 0
        self.unavailable = 0

    def keys(self) -> list[str]:
        known: list[str] = self._asked["keys"]
        count = self._asked["count"]
        keys = [known[i] for i in self._draw.integers(len(known), size=count)]
        for at in np.flatnonzero(self._draw.random(count) < self._asked.get("misses", 0)).tolist():
            self._fresh += 1
            keys[at] = f"never seen {self._asked.get('seed', 0)} {self._fresh}"
        return keys

    async def call(self, client: AsyncEmbArkClient, due: float) -> None:
        began = time.perf_counter()
        answered = False
        try:
            unavailable = await self._look_up(client)
        except EmbArkOverloaded as error:
            self.codes[code_of(error)] += 1
            self.refused += 1
            return
        except EmbArkUnavailable as error:
            self.codes[code_of(error)] += 1
            self.errors.append(str(error))
            in_time = "within" not in str(error)
            self.failed += in_time
            self.late += not in_time
            return
        except ClientError as error:
            self.codes[code_of(error)] += 1
            self.errors.append(str(error))
            self.failed += 1
            return
        else:
            answered = True
        finally:
            if not answered:
                self.lost.append(time.perf_counter() - self.start)
            self.held.append(time.perf_counter() - began)
        self.ends.append(time.perf_counter() - self.start)
        if unavailable:
            self.unavailable += 1
            self.troubled.append(time.perf_counter() - self.start)
        self.seconds.append(time.perf_counter() - due)

    async def _look_up(self, client: AsyncEmbArkClient) -> bool:
        """Whether a key was UNAVAILABLE."""
        timeout: float = self._asked.get("timeout", 10.0)
        if not self._prepared:
            precision = self._asked.get("precision", "float32")
            answer = await client.lookup(self._asked["view"], self.keys(), timeout, precision=precision)
            return bool((answer.status == Status.UNAVAILABLE).any())
        try:
            reply = await self._send(self._prepared[self._draw.integers(len(self._prepared))], timeout=timeout)
        except grpc.RpcError as error:
            raise translated(error, self._asked["address"], timeout) from error
        self._answers += 1
        return self._answers % LOOKED_AT == 0 and Status.UNAVAILABLE in LookupReply.FromString(reply).status

    def _prepare(self, channel: grpc.aio.Channel) -> None:
        self._send = channel.unary_unary("/embark.v1.EmbArk/Lookup")
        requests = (LookupRequest(view=self._asked["view"], keys=self.keys()) for _ in range(PREPARED))
        self._prepared = [request.SerializeToString() for request in requests]

    async def run(self) -> dict[str, Any]:
        address = self._asked["address"]
        async with AsyncEmbArkClient(address) as client, open_channel(address, None, asynchronous=True) as channel:
            if self._asked.get("prepared"):
                self._prepare(channel)
            await self.call(client, time.perf_counter())
            self.seconds.clear()
            self.ends.clear()
            self.held.clear()
            self.lost.clear()
            self.troubled.clear()
            self.codes.clear()
            start = self.start = time.perf_counter()
            end = start + self._asked["seconds"]
            if "rate" in self._asked:
                await self._open(client, start, end)
            else:
                await asyncio.gather(*(self._closed(client, end) for _ in range(self._asked["calls"])))
            took = time.perf_counter() - start
        return {
            "keys_per_second": len(self.seconds) * self._asked["count"] / took,
            "seconds": [round(s, 6) for s in self.seconds],
            "ends": [round(end, 3) for end in self.ends],
            "took": took,
            "lost": [round(end, 3) for end in self.lost],
            "held": [round(s, 6) for s in self.held],
            "troubled": [round(end, 3) for end in self.troubled],
            "errors": self.errors,
            "codes": dict(self.codes),
            "start": self.start,  # of the monotonic clock, which all processes share
            "failed": self.failed,
            "refused": self.refused,
            "late": self.late,
            "unavailable": self.unavailable,
        }

    async def _closed(self, client: AsyncEmbArkClient, end: float) -> None:
        while (now := time.perf_counter()) < end:
            await self.call(client, now)

    async def _open(self, client: AsyncEmbArkClient, start: float, end: float) -> None:
        due, calls = start, set[asyncio.Task[None]]()
        stop = Path(self._asked["until"]) if "until" in self._asked else None
        while due < end and not (stop is not None and stop.exists()):
            due += self._draw.exponential(1 / self._asked["rate"])
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            call = asyncio.create_task(self.call(client, due))
            calls.add(call)
            call.add_done_callback(calls.discard)
        await asyncio.gather(*calls)


def code_of(error: ClientError) -> str:
    """gRPC's code of a call that was not answered, and what was said, less its numbers."""
    cause = error.__cause__
    if not isinstance(cause, grpc.RpcError):
        return type(error).__name__
    said = re.sub(r"\d+", "N", cause.details() or "")[:60]
    return str(cause.code().name) if said == cause.code().name else f"{cause.code().name}: {said}"


def begun(asked: dict[str, Any]) -> "subprocess.Popen[str]":
    """A process that asks."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.load", "-"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None  # noqa: S101 - a pipe
    process.stdin.write(json.dumps(asked))
    process.stdin.close()
    process.stdin = None
    return process


def finished(processes: "Sequence[subprocess.Popen[str]]") -> list[dict[str, Any]]:
    """What the processes found, when all have ended."""
    return [json.loads(process.communicate()[0]) for process in processes]


def main() -> None:
    asked = json.loads(sys.stdin.read() if sys.argv[1:] == ["-"] else sys.argv[1])
    run = asyncio.run
    if asked.get("prepared"):
        keep_freed_memory()
        run = uvloop.run
    json.dump(run(Load(asked).run()), sys.stdout)


if __name__ == "__main__":
    main()
