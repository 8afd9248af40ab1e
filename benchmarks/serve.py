"""Look-ups over the network: Feast's feature server, EmbArk, and the floor, on the same rows in one run.

    uv run python -m benchmarks.serve [--json] [--fast] [--check]

One real Cassandra, one process for each server, one client that ends with a numpy matrix. `feast serve` with the stock
Cassandra store and with ours, EmbArk cold (no hot cache: every key is read from Cassandra), EmbArk hot (every key in
memory), and a grpc.aio server that answers the very bytes of EmbArk's reply. Then EmbArk alone: the most keys a second
that two client processes get, and percentiles in an open loop of at least 100,000 calls in all (100 keys each), with no
new keys and with one a call; those that are not answered are told by gRPC's code. Twelve minutes, or three with --fast.

Claims, at 500 keys of 512 floats, p50: hot at least 80 times faster than stock `feast serve`, and at most 1.5 times the
floor; cold at least 15 times faster, and its p99 at most twice that of the driver alone, in the client's process.
"""

import argparse
import http.client
import json
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
from feast import FeatureStore
from feast.data_source import PushMode
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from benchmarks import comparison
from benchmarks.comparison import DRIVER, Embedded, OnlineCluster, WrongAnswer, options, publish
from benchmarks.echo import OPTIONS
from benchmarks.load import begun, finished
from benchmarks.online_read import PlainTable
from embark.child_process import ChildProcess
from embark.repo import open_store, write_repo
from embark.servers import free_port
from embark.settings import Settings
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status
from feature_repo.views import feast_objects, push_source_name
from materializer.archive import EmbeddedBatch, table
from serving.channels import open_channel
from serving.client import Answer, EmbArkClient
from serving.embark_pb2 import LookupRequest

DIM = 512
ROWS = 2000
SIZES = (1, 100, 500)
SPEC = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=DIM, network="text_lstm", weights="seeded:0")
STOCK, OURS = "feast serve, stock", "feast serve, our store"
COLD, HOT, FLOOR, RAW = "EmbArk, cold", "EmbArk, hot", "limit: gRPC echo", "limit of cold: driver in process"
HOT_TIMES, COLD_TIMES, FLOOR_TIMES, RAW_TIMES = 80.0, 15.0, 1.5, 2.0
SLOW = {STOCK: 1, OURS: 1, COLD: 4, HOT: 8, FLOOR: 8, RAW: 4}  # calls of each in a round
# precision, share of new keys, calls a second, seconds: 101,000 calls. A call with a new key reads Cassandra and asks
# Kafka, which takes several times as much of a machine on which all of these run, and the clients.
MIXES = [("float32", 0.0, 420, 90), ("float16", 0.0, 420, 90), ("float32", 0.01, 100, 127), ("float16", 0.01, 100, 127)]
FAST_MIXES = [("float32", 0.0, 100, 3), ("float32", 0.01, 50, 3)]


@contextmanager
def child(command: Sequence[str], log: Path, ready: Callable[[], bool], environment: Any = None) -> Iterator[None]:
    """A process that is not an `embark` command, running and ready."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own command
            command, stdout=output, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
        try:
            until = time.monotonic() + 300
            while not ready():
                if process.poll() is not None or time.monotonic() > until:
                    raise WrongAnswer(f"{command} did not start: {log.read_text()[-2000:]}")
                time.sleep(0.2)
            yield
        finally:
            process.terminate()
            process.wait(30)


class FeastClient:
    """Asks Feast's feature server over one connection, and parses its answer to a matrix."""

    def __init__(self, port: int, feature: str) -> None:
        self._port = port
        self._feature = feature
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)

    def ready(self) -> bool:
        try:
            asking = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
            asking.request("GET", "/health")
            return asking.getresponse().status == 200
        except OSError:
            return False

    def lookup(self, keys: Sequence[str]) -> NDArray[np.float32]:
        body = json.dumps({"features": [self._feature], "entities": {"item": list(keys)}})
        self._connection.request("POST", "/get-online-features", body, {"Content-Type": "application/json"})
        answer = json.loads(self._connection.getresponse().read())
        at = answer["metadata"]["feature_names"].index("embedding")
        return np.array(answer["results"][at]["values"], dtype=np.float32)


@contextmanager
def feast_server(store: FeatureStore, folder: Path, name: str) -> Iterator[FeastClient]:
    """Feast's own command over an applied store."""
    port = free_port()
    client = FeastClient(port, f"embedding_{DIM}:embedding")
    feast = str(Path(sys.executable).parent / "feast")
    command = [feast, "-c", str(store.repo_path), "serve", "-p", str(port)]
    with child([*command, "--no-access-log"], folder / f"{name}.txt", client.ready):
        yield client


@contextmanager
def embark_servers(cluster: OnlineCluster, items: Embedded, folder: Path) -> Iterator[tuple[str, str]]:
    """Addresses of a cold and a hot EmbArk over the items."""
    repo = folder / "repo"
    servers = cluster.servers
    write_repo(repo, keyspace="embark", kafka=servers.kafka_bootstrap, cassandra_port=servers.cassandra_port)
    file = repo / "feature_store.yaml"
    file.write_text(
        file.read_text().replace("  keyspace: embark", "  keyspace: embark\n  replication: {datacenter1: 1}")
    )
    store = open_store(repo)
    store.apply(list(feast_objects([SPEC], {}, kafka=servers.kafka_bootstrap, repo=repo).values()))
    batch = EmbeddedBatch.of(
        SPEC.view,
        keys=tuple(items.keys),
        vectors=items.vectors,
        event_time=np.full(len(items.keys), 1_700_000_000_000_000, dtype=np.int64),
        content_hash=("00",) * len(items.keys),
        created_at=1_700_000_000_000_000,
    )
    store.push(push_source_name(SPEC.view), table(SPEC, batch).to_pandas(), to=PushMode.ONLINE)
    store._get_provider().online_store._cluster.shutdown()
    with ExitStack() as stack:
        addresses = []
        for name, megabytes in (("cold", 0), ("hot", 64)):
            address = f"127.0.0.1:{free_port()}"
            settings = Settings(
                repo=repo,
                state=folder / f"state-{name}",
                embark_address=address,
                hot_cache_mb=megabytes,
                hot_cache_seconds=3600,
                lookup_budget_ms=30_000,  # a busy machine is slow, and no failure
            )
            process = ChildProcess(name, ["serve"], settings.as_environment(), folder / f"{name}.txt")
            stack.enter_context(process)
            with EmbArkClient(address) as client:
                process.wait_until(lambda client=client: client.answers(SPEC.view), 180)  # type: ignore[misc]
            addresses.append(address)
        yield addresses[0], addresses[1]


@contextmanager
def echo_server(folder: Path) -> Iterator[grpc.Channel]:
    """A channel to the floor."""
    port = free_port()
    channel = grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS)

    def ready() -> bool:
        try:
            channel.unary_unary("/echo/put/ready")(b"", timeout=1, wait_for_ready=True)
        except grpc.RpcError:
            return False
        return True

    with channel, child([sys.executable, "-m", "benchmarks.echo", str(port)], folder / "echo.txt", ready):
        yield channel


class Measured:
    """Milliseconds of each way to ask for some keys, in turns."""

    def __init__(
        self,
        items: Embedded,
        feast: Mapping[str, FeastClient],
        cold: str,
        hot: str,
        echo: grpc.Channel,
        driver: Callable[[Sequence[str]], NDArray[np.float32]],
    ) -> None:
        self._items = items
        self._driver = driver
        self._feast = feast
        self._clients = {COLD: EmbArkClient(cold), HOT: EmbArkClient(hot)}
        channel = open_channel(hot, None, asynchronous=False)
        self._raw = channel.unary_unary("/embark.v1.EmbArk/Lookup", LookupRequest.SerializeToString)
        self._echo = echo
        self._draw = np.random.default_rng(0)
        self._shuffle = random.Random(0)  # noqa: S311 - an order, no secret

    def _floor(self, size: int) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        """Asks with the bytes of a look-up for the bytes of its answer, and makes a matrix of them."""
        request = LookupRequest(view=SPEC.view, keys=list(self._items.keys[:size]))
        reply: bytes = self._raw(request)
        self._echo.unary_unary(f"/echo/put/{size}")(reply)
        get, question = self._echo.unary_unary(f"/echo/get/{size}"), request.SerializeToString()

        at = reply.index(self._items.vectors[0].tobytes())

        def ask(keys: Sequence[str]) -> NDArray[np.float32]:
            return np.frombuffer(get(question), dtype="<f4", count=size * DIM, offset=at).reshape(size, DIM)

        return ask

    def _embark(self, way: str) -> Callable[[Sequence[str]], NDArray[np.float32]]:
        def ask(keys: Sequence[str]) -> NDArray[np.float32]:
            answer: Answer = self._clients[way].lookup(SPEC.view, keys, timeout=60)
            if not (answer.status == Status.HIT).all():
                raise WrongAnswer(f"{way}: {np.bincount(answer.status)}")
            return answer.vectors

        return ask

    def of(self, size: int, rounds: int) -> dict[str, list[float]]:
        ways: dict[str, Callable[[Sequence[str]], NDArray[np.float32]]] = {
            **{name: client.lookup for name, client in self._feast.items()},
            COLD: self._embark(COLD),
            HOT: self._embark(HOT),
            FLOOR: self._floor(size),
            RAW: self._driver,
        }
        for first in range(0, ROWS, 500):
            ways[HOT](self._items.keys[first : first + 500])  # warm
        found: dict[str, list[float]] = {name: [] for name in ways}
        console = Console(stderr=True)
        for turn in track(range(rounds + 1), description=f"{size} keys", console=console, transient=True):
            order = list(ways)
            self._shuffle.shuffle(order)
            for name in order:
                for _ in range(SLOW[name]):
                    rows = self._draw.choice(ROWS, size, replace=False)
                    keys = [self._items.keys[i] for i in rows]
                    start = time.perf_counter()
                    vectors = ways[name](keys)
                    took = time.perf_counter() - start
                    # Of the floor, too, which answers the first rows: 3 ms of numpy between two calls, and what they
                    # leave of the processor's caches, are then the same for all ways.
                    if not np.allclose(
                        vectors, self._items.vectors[:size] if name == FLOOR else self._items.vectors[rows]
                    ):
                        raise WrongAnswer(f"{name} answered other vectors than were written")
                    if turn:  # the first ones open connections and prepare statements
                        found[name].append(took * 1000)
        return found


def load(processes: int, asked: Mapping[str, Any]) -> tuple[float, NDArray[np.float64], Counter[str]]:
    """Keys per second of several client processes together, the milliseconds of their calls, and lost ones by code."""
    told = finished([begun({**asked, "seed": seed}) for seed in range(processes)])
    seconds = np.concatenate([np.array(each["seconds"]) for each in told])
    lost: Counter[str] = Counter()
    for each in told:
        lost.update(each["codes"])
    return sum(each["keys_per_second"] for each in told), seconds * 1000, lost


def row(what: str, way: str, milliseconds: Sequence[float] | NDArray[np.float64], **others: Any) -> dict[str, Any]:
    p50, p99, p999 = np.percentile(milliseconds, [50, 99, 99.9])
    return {
        "what": what,
        "way": way,
        "calls": len(milliseconds),
        "p50_ms": round(float(p50), 2),
        "p99_ms": round(float(p99), 2),
        "p99.9_ms": round(float(p999), 2) if len(milliseconds) >= 10_000 else None,
        "stock_times": None,
        "floor_times": None,
        "keys_s": None,
        "lost": None,
        "lost_by_code": None,
    } | others


def compared(found: Mapping[str, Sequence[float]], size: int) -> list[dict[str, Any]]:
    p50 = {way: float(np.median(taken)) for way, taken in found.items()}
    return [
        row(
            f"{size} keys",
            way,
            taken,
            stock_times=round(p50[STOCK] / p50[way], 1),
            floor_times=round(p50[way] / p50[FLOOR], 2),
        )
        for way, taken in found.items()
    ]


def loaded(cold: str, hot: str, items: Embedded, given: argparse.Namespace) -> list[dict[str, Any]]:
    """EmbArk alone under load."""
    rows = []
    base: dict[str, Any] = {"view": SPEC.view, "keys": list(items.keys)}
    for way, address in ((HOT, hot), (COLD, cold)):
        asked = base | {"address": address, "count": 500, "calls": 4, "seconds": 2 if given.fast else 8}
        keys_s, taken, codes = load(2, asked)
        rows.append(row("most, 8 calls of 500", way, taken, keys_s=round(keys_s)))
        if codes:
            raise WrongAnswer(f"calls of {way} were not answered: {dict(codes)}")
    for precision, misses, rate, seconds in FAST_MIXES if given.fast else MIXES:
        asked = base | {"address": hot, "count": 100, "rate": rate / 2, "seconds": seconds}
        keys_s, taken, codes = load(2, asked | {"precision": precision, "misses": misses})
        what = f"open loop, {rate}/s of 100 keys, {precision}, {misses:.0%} new"
        why = "; ".join(f"{count} {code}" for code, count in codes.most_common()) or None
        rows.append(row(what, HOT, taken, keys_s=round(keys_s), lost=codes.total(), lost_by_code=why))
    return rows


def main() -> None:
    given = options(__doc__)
    sizes, rounds = ((500,), 5) if given.fast else (SIZES, 30)
    items = Embedded.seeded("item", ROWS, DIM)
    rows: list[dict[str, Any]] = []
    claims: dict[str, bool] = {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        cluster = stack.enter_context(comparison.running([DIM]))
        feast = {}
        for name, store in ((STOCK, cluster.stock), (OURS, cluster.ours)):
            view = store.get_feature_view(f"embedding_{DIM}")
            store._get_provider().online_write_batch(store.config, view, items.rows(), None)
            feast[name] = stack.enter_context(feast_server(store, folder, name.replace(" ", "-")))
        cold, hot = stack.enter_context(embark_servers(cluster, items, folder))
        session = stack.enter_context(cluster.driver())
        plain = PlainTable(session, f"{DRIVER}.serve", DIM, f"vector<float, {DIM}>", 100, True)
        plain.create()
        plain.write(items)
        echo = stack.enter_context(echo_server(folder))
        measured = Measured(items, feast, cold, hot, echo, plain.way().ask)
        for size in sizes:
            found = measured.of(size, rounds)
            rows += compared(found, size)
            if size == 500:
                p50 = {way: float(np.median(taken)) for way, taken in found.items()}
                hot_times, cold_times = p50[STOCK] / p50[HOT], p50[STOCK] / p50[COLD]
                floor_times = p50[HOT] / p50[FLOOR]
                raw_times = float(np.percentile(found[COLD], 99) / np.percentile(found[RAW], 99))
                claims |= {
                    f"hot {hot_times:.0f} times stock feast serve (80)": hot_times >= HOT_TIMES,
                    f"hot {floor_times:.2f} times the floor (1.5)": floor_times <= FLOOR_TIMES,
                    f"cold's p99 {raw_times:.2f} times the driver's (2)": raw_times <= RAW_TIMES,
                    f"cold {cold_times:.1f} times stock feast serve (15)": cold_times >= COLD_TIMES,
                }
        rows += loaded(cold, hot, items, given)
        lost = sum(row["lost"] or 0 for row in rows)
        claims[f"{lost} calls of the open loop were not answered (0)"] = lost == 0
    publish("Look-ups of 512 floats", rows, claims, given)


if __name__ == "__main__":
    main()
