import asyncio
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from embark.servers import free_port
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Embeddings, Status, all_missing, oov_zeros
from feature_repo.failures import MemoryFailureMarks
from serving.client import (
    Answer,
    AsyncEmbArkClient,
    ClientError,
    EmbArkClient,
    EmbArkOverloaded,
    EmbArkUnavailable,
    LookupRefused,
    ViewUnknown,
)
from serving.limits import MAX_KEYS, MAX_REASON_CHARACTERS
from serving.memory import GatedRows, MemoryRows, memory_archive
from serving.requests import MemoryRequests
from tests.serving.fakes import IMAGE, SPECS, TEXT, Parts, served


def test_an_answer_crosses_the_wire_unchanged() -> None:
    parts = Parts()
    identity = parts.add(TEXT, "cat", 0.1, event_time=1_700_000_000_123_456)
    parts.marks.mark(TEXT.view, {"dog": "DecodeError: planted"})
    with served(parts.archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(TEXT.view, ["dog", "cat", "bird"])
    assert answer.status.tolist() == [Status.FAILED, Status.HIT, Status.OOV]
    assert answer.vectors.dtype == np.float32
    assert np.array_equal(answer.vectors[1], np.full(4, 0.1, dtype=np.float32))
    assert (answer.embedding_id[1], answer.event_time[1]) == (identity, 1_700_000_000_123_456)
    assert answer.failures == {0: "DecodeError: planted"}
    assert answer.weights == "seeded:0"


def test_no_keys_are_answered_with_an_empty_matrix() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client:
        assert client.lookup(IMAGE.view, []).vectors.shape == (0, 3)


def test_an_unknown_view_is_refused_with_those_known() -> None:
    with (
        served(Parts().archive) as address,
        EmbArkClient(address) as client,
        pytest.raises(ViewUnknown, match="known are: photo__v1, tiny__v1"),
    ):
        client.lookup("nope", ["x"])


def test_more_keys_than_allowed_are_refused_with_both_numbers() -> None:
    with (
        served(Parts().archive, max_keys=2) as address,
        EmbArkClient(address) as client,
        pytest.raises(LookupRefused, match="3 keys, 2 are allowed"),
    ):
        client.lookup(TEXT.view, ["a", "b", "c"])


def test_keys_that_can_be_none_are_failed_one_by_one() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(IMAGE.view, ["", "x" * 9000, "ftp://a.example/x", "http://a.example/x"])
    assert answer.status.tolist() == [Status.FAILED] * 3 + [Status.OOV]
    assert "empty" in answer.failures[0]
    assert "no http(s) URL" in answer.failures[2]


def test_a_key_that_is_no_text_is_refused_by_the_client() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client, pytest.raises(LookupRefused):
        client.lookup(TEXT.view, ["\ud800"])


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it() -> None:
    with EmbArkClient(f"127.0.0.1:{free_port()}") as client, pytest.raises(EmbArkUnavailable, match="embark serve"):
        client.lookup(TEXT.view, ["x"])


def test_the_client_needs_neither_feast_nor_kafka_nor_cassandra() -> None:
    code = "import sys, serving.client; sys.exit(bool({'feast', 'kafka', 'cassandra', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_largest_answer_fits_though_every_key_of_it_failed() -> None:
    spec = EncoderSpec(
        name="wide", version="v1", modality="text", dim=8192, network="text_lstm", weights="seeded:0", pinned="seeded:0"
    )
    keys = [f"k{i}" for i in range(MAX_KEYS)]
    marks = MemoryFailureMarks({(spec.view, key): "DecodeError: " + "€" * 5000 for key in keys})
    archive = memory_archive({spec.view: spec}, MemoryRows(), marks, MemoryRequests())
    with served(archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(spec.view, keys, timeout=60)
    assert answer.vectors.shape == (MAX_KEYS, 8192)
    assert {len(why) for why in answer.failures.values()} == {MAX_REASON_CHARACTERS}


class BrokenRows:
    """A store with a bug."""

    def read(self, spec: EncoderSpec, keys: Sequence[str]) -> Embeddings:
        raise RuntimeError("planted")


def test_a_fault_of_the_server_is_not_told_as_its_absence() -> None:
    archive = memory_archive(SPECS, BrokenRows(), MemoryFailureMarks({}), MemoryRequests())
    with served(archive) as address, EmbArkClient(address) as client, pytest.raises(ClientError) as failure:
        client.lookup(TEXT.view, ["x"])
    assert not isinstance(failure.value, EmbArkUnavailable)
    assert "failed (UNKNOWN)" in str(failure.value)


def test_a_store_that_is_slow_is_told_by_the_status_of_keys_within_the_callers_time() -> None:
    rows = GatedRows()
    archive = memory_archive(SPECS, rows, MemoryFailureMarks({}), MemoryRequests())
    with served(archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(TEXT.view, ["x"], timeout=2)
        rows.gate.set()
    assert answer.status.tolist() == [Status.UNAVAILABLE]


class SlowArchive:
    """An archive that takes no deadline seriously."""

    def spec(self, view: str) -> EncoderSpec:
        return TEXT

    async def answer(
        self, view: str, keys: Sequence[str], seconds: float | None = None, room: object = None
    ) -> Embeddings:
        await asyncio.sleep(5)
        return all_missing(oov_zeros(TEXT.view, TEXT.dim), len(keys), Status.OOV)


class BusyArchive(SlowArchive):
    """An archive that holds the event loop up, as much work does."""

    async def answer(
        self, view: str, keys: Sequence[str], seconds: float | None = None, room: object = None
    ) -> Embeddings:
        time.sleep(0.2)
        return all_missing(oov_zeros(TEXT.view, TEXT.dim), len(keys), Status.OOV)


def test_calls_that_come_faster_than_they_are_looked_at_are_refused_and_the_server_goes_on() -> None:
    async def ask(client: AsyncEmbArkClient) -> str:
        try:
            await client.lookup(TEXT.view, ["x"], timeout=60)
        except EmbArkOverloaded as error:
            return str(error)
        return "answered"

    async def run(address: str) -> list[str]:
        async with AsyncEmbArkClient(address) as client:
            await client.lookup(TEXT.view, ["x"], timeout=60)
            outcomes = await asyncio.gather(*(ask(client) for _ in range(40)))
            return [*outcomes, await ask(client)]

    with served(BusyArchive(), max_calls=8) as address:  # type: ignore[arg-type]
        *outcomes, last = asyncio.run(run(address))
    assert last == "answered"
    assert outcomes.count("answered") > 0
    assert any("has more calls than it can look at" in outcome for outcome in outcomes)


def test_calls_that_wait_for_a_server_that_ends_are_answered_by_another() -> None:
    with served(Parts().archive) as one, ExitStack() as ending:
        other = ending.enter_context(served(BusyArchive()))  # type: ignore[arg-type]

        async def run() -> list[Answer]:
            async with AsyncEmbArkClient([one, other]) as client:
                for _ in range(6):
                    await client.lookup(TEXT.view, ["x"], timeout=60)  # it is connected to both
                calls = [asyncio.create_task(client.lookup(TEXT.view, ["x"], timeout=60)) for _ in range(30)]
                await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
                await asyncio.to_thread(ending.close)
                return await asyncio.gather(*calls)

        assert all(answer.status.tolist() == [Status.OOV] for answer in asyncio.run(run()))


def test_an_answer_that_comes_too_late_is_told_with_the_time_it_was_given() -> None:
    with (
        served(SlowArchive()) as address,  # type: ignore[arg-type]
        EmbArkClient(address) as client,
        pytest.raises(EmbArkUnavailable, match=r"did not answer within 0\.2 s"),
    ):
        client.lookup(TEXT.view, ["x"], timeout=0.2)


def test_health_is_told() -> None:
    with served(Parts().archive) as address, grpc.insecure_channel(address) as channel:
        health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=20)
    assert health.status == health_pb2.HealthCheckResponse.SERVING
