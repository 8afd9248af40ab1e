import asyncio
import contextlib
import hashlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry
from torchvision.models import get_model

from encoders.client import Encoded, RetinaAway, RetinaBusy, RetinaClient, RetinaRefused
from encoders.compute import DeviceUnavailable, Plan, choose_device
from encoders.encoder import EncodeError, Encoder
from encoders.fetch import Fetcher
from encoders.loading import load_encoder
from encoders.metrics import RetinaMetrics
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.spec import EncoderSpec, SpecError
from encoders.weights import WeightsUnavailable
from tests.encoders import web
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import LOOPBACK, serving, status

SMALL = EncoderSpec(
    name="small", version="v1", modality="image", dim=576, network="torchvision:mobilenet_v3_small", pinned="seeded:0"
)
TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=8, network="text_lstm", pinned="seeded:0")
VIEWS = {spec.view: spec for spec in (SMALL, TEXT)}
PAGES: dict[str, bytes | web.Page] = {f"/{name}.jpg": file_of(p) for name, p in photographs().items()}

Encode = Callable[..., Awaitable[Encoded]]


class PlantedEncoder:
    """Embeds a text as (length, number of the pass, size of its batch); fails as its texts say."""

    def __init__(self) -> None:
        self.spec = replace(TEXT, dim=3)
        self.batches: list[list[str]] = []
        self.proceed = threading.Event()
        self.proceed.set()

    def prepare(self, content: bytes) -> str:
        if content == b"bug":
            raise KeyError("a bug")
        return content.decode()

    def encode(self, batch: Sequence[str]) -> NDArray[np.float32]:
        self.proceed.wait(20)
        self.batches.append(list(batch))
        if "too large" in batch:
            raise EncodeError("out of memory")
        vectors = np.array([[len(text), len(self.batches), len(batch)] for text in batch], dtype=np.float32)
        vectors[[text == "nan" for text in batch]] = np.nan
        return vectors


@asynccontextmanager
async def running(
    specs: dict[str, EncoderSpec] = VIEWS, **settings: Any
) -> AsyncIterator[tuple[RetinaService, Encode, str]]:
    async with Fetcher(allowed_networks=LOOPBACK, seconds=2.0) as fetcher:
        service = RetinaService(registered=lambda: specs, fetcher=fetcher, device="cpu", **settings)
        async with RetinaServer(service, "127.0.0.1:0", grace=0.2) as server:
            address = f"127.0.0.1:{server.port}"
            with RetinaClient(address) as client:

                async def encode(view: str, keys: Sequence[str], fingerprint: str = "", timeout: float = 30) -> Encoded:
                    return await asyncio.to_thread(client.encode, view, fingerprint, keys, timeout)

                yield service, encode, address


def test_good_and_bad_keys_each_get_their_outcome() -> None:
    async def run() -> None:
        gone = {
            "/404": status(404),
            "/500": status(500),
            "/slow": web.silent,
            "/page.html": b"<html>",
            "/truncated.jpg": file_of(photographs()["cat"])[:5000],
        }
        with serving(PAGES | gone) as site:
            bad = {
                site.url("/404"): ("NotFound", False, False),
                site.url("/500"): ("ServerFailed", True, False),
                site.url("/slow"): ("Timeout", True, False),
                site.url("/page.html"): ("DecodeError", False, True),
                site.url("/truncated.jpg"): ("DecodeError", False, True),
                "http://10.0.0.1/x": ("Blocked", False, False),
                "ftp://a.example/x": ("KeyRefused", False, False),
                "": ("KeyRefused", False, False),
            }
            good = [site.url(path) for path in PAGES]
            keys = [key for pair in zip(good, list(bad)[:5], strict=True) for key in pair] + list(bad)[5:]
            async with running() as (_, encode, _):
                encoded = await encode(SMALL.view, keys, SMALL.fingerprint)
            assert encoded.fingerprint == SMALL.fingerprint
            for key, outcome in zip(keys, encoded.outcomes, strict=True):
                if key in bad:
                    reason, retryable, has_content = bad[key]
                    assert (outcome.reason, outcome.retryable) == (reason, retryable), key
                    assert outcome.detail
                    assert bool(outcome.content_hash) == has_content
                else:
                    content = PAGES["/" + key.rpartition("/")[2]]
                    assert isinstance(content, bytes)
                    assert outcome.reason == ""
                    assert outcome.content_hash == hashlib.blake2b(content, digest_size=16).digest()
            local = load_encoder(SMALL, "cpu")
            expected = local.encode([local.prepare(c) for c in PAGES.values() if isinstance(c, bytes)])
            assert encoded.vectors.shape == (5, 576)
            np.testing.assert_allclose(encoded.vectors, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())

    asyncio.run(run())


def test_texts_are_embedded_in_the_order_of_their_keys_and_twins_once() -> None:
    async def run() -> None:
        keys = ["a red bicycle", "coffee", "  a red bicycle ", "a red bicycle"]
        async with running() as (_, encode, _):
            encoded = await encode(TEXT.view, keys)
        local = load_encoder(TEXT, "cpu")
        expected = local.encode([local.prepare(key.strip().encode()) for key in keys])
        np.testing.assert_allclose(encoded.vectors, expected, atol=1e-5)
        assert encoded.outcomes[0].content_hash == hashlib.blake2b(b"a red bicycle", digest_size=16).digest()

    asyncio.run(run())


def test_a_key_that_stands_there_twice_is_computed_once() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        async with running({"t__v1": planted.spec}, load=lambda spec: planted, max_batch=4) as (_, encode, _):
            encoded = await encode("t__v1", ["a", "bb", "a", "ccc", "dddd", "eeeee", "a"])
        assert [len(batch) for batch in planted.batches] == [4, 1]
        assert encoded.vectors[:, 0].tolist() == [1, 2, 1, 3, 4, 5, 1]

    asyncio.run(run())


def test_one_input_that_the_network_cannot_take_does_not_fail_the_others() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        async with running({"t__v1": planted.spec}, load=lambda spec: planted) as (_, encode, _):
            encoded = await encode("t__v1", ["a", "too large", "nan", "bug", "bb"])
        reasons = [(outcome.reason, outcome.retryable) for outcome in encoded.outcomes]
        assert reasons == [
            ("", False),
            ("EncodeError", True),
            ("EncodeError", True),
            ("DecodeError", False),
            ("", False),
        ]
        assert encoded.vectors[:, 0].tolist() == [1, 2]
        assert encoded.outcomes[1].detail == "out of memory"

    asyncio.run(run())


def test_what_concerns_the_whole_call_is_refused_as_a_whole() -> None:
    async def run() -> None:
        async with running(max_keys=10) as (_, encode, _):
            with pytest.raises(RetinaRefused, match=r"unknown view 'x__v1'; known are: small__v1, t__v1"):
                await encode("x__v1", ["a"])
            with pytest.raises(RetinaRefused, match=f"{TEXT.fingerprint} here, not 0123456789abcdef"):
                await encode(TEXT.view, ["a"], "0123456789abcdef")
            with pytest.raises(RetinaRefused, match="11 keys, 10 are allowed"):
                await encode(TEXT.view, ["a"] * 11)
            empty = await encode(TEXT.view, [])
            assert empty.vectors.shape == (0, 8)
            assert not empty.outcomes
            assert (await encode(TEXT.view, [""])).vectors.shape == (0, 8)

    asyncio.run(run())


def test_a_view_that_is_applied_while_it_runs_is_served() -> None:
    async def run() -> None:
        specs: dict[str, EncoderSpec] = {}
        async with running(specs) as (_, encode, _):
            with pytest.raises(RetinaRefused, match="known are: none"):
                await encode(TEXT.view, ["a"])
            specs[TEXT.view] = TEXT
            assert (await encode(TEXT.view, ["a"])).vectors.shape == (1, 8)

    asyncio.run(run())


def test_weights_that_cannot_be_had_are_asked_for_again_by_the_next_call() -> None:
    async def run() -> None:
        loads = []

        def load(spec: EncoderSpec) -> Encoder:
            loads.append(spec)
            if len(loads) == 1:
                raise WeightsUnavailable("no connection")
            return load_encoder(spec, "cpu")

        async with running(load=load) as (_, encode, _):
            with pytest.raises(RetinaAway, match="no connection"):
                await encode(TEXT.view, ["a"])
            both = await asyncio.gather(encode(TEXT.view, ["a"]), encode(TEXT.view, ["b"]))
            assert all(len(each.vectors) == 1 for each in both)
        assert len(loads) == 2

    asyncio.run(run())


def test_a_weights_file_that_has_changed_is_refused_until_it_is_put_back(tmp_path: Path) -> None:
    async def run() -> None:
        path = tmp_path / "net.pth"
        torch.save(get_model("mobilenet_v3_small").state_dict(), path)
        pinned = SMALL.pin(f"file:{path}#{hashlib.sha256(path.read_bytes()).hexdigest()[:16]}")
        before = path.read_bytes()
        torch.save(get_model("mobilenet_v3_small").state_dict(), path)
        with serving(PAGES) as site:
            async with running({pinned.view: pinned}) as (_, encode, _):
                with pytest.raises(RetinaRefused, match="declare version v2"):
                    await encode(pinned.view, [site.url("/cat.jpg")], pinned.fingerprint)
                path.write_bytes(before)
                encoded = await encode(pinned.view, [site.url("/cat.jpg")], pinned.fingerprint)
                assert encoded.vectors.shape == (1, 576)
                assert encoded.fingerprint == pinned.fingerprint

    asyncio.run(run())


def test_more_keys_than_can_be_at_hand_are_answered_busy() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        planted.proceed.clear()
        specs = {"t__v1": planted.spec}
        async with running(specs, load=lambda spec: planted, max_keys_at_hand=5) as (service, encode, _):
            first = asyncio.create_task(encode("t__v1", ["a", "b", "c"]))
            await eventually(lambda: service.keys_at_hand == 3)
            with pytest.raises(RetinaBusy, match="3 keys are at hand"):
                await encode("t__v1", ["d", "e", "f"])
            planted.proceed.set()
            assert len((await first).vectors) == 3
            assert len((await encode("t__v1", [str(n) for n in range(9)])).vectors) == 9  # alone, it is never too much

    asyncio.run(run())


def test_a_call_past_its_deadline_leaves_nothing_at_hand() -> None:
    async def run() -> None:
        with serving({"/slow": web.silent, **PAGES}) as site:
            async with running() as (service, encode, _):
                with pytest.raises(RetinaAway, match="DEADLINE_EXCEEDED"):
                    await encode(SMALL.view, [site.url(f"/slow?{n}") for n in range(40)], timeout=0.5)
                await eventually(lambda: service.keys_at_hand == 0)
                assert len((await encode(SMALL.view, [site.url("/cat.jpg")])).vectors) == 1
                assert len(site.seen) <= 8 + 1  # those that waited for their host's turn were never asked for

    asyncio.run(run())


def test_encoders_lists_what_is_registered_and_what_is_loaded() -> None:
    async def run() -> None:
        async with running() as (_, encode, address):
            await encode(TEXT.view, ["a"])
            with RetinaClient(address) as client:
                listed = (await asyncio.to_thread(client.encoders)).encoders
        assert [(e.view, e.loaded, e.dim, e.weights, e.device) for e in listed] == [
            ("small__v1", False, 576, "seeded:0", "cpu"),
            ("t__v1", True, 8, "seeded:0", "cpu"),
        ]
        assert listed[0].fingerprint == SMALL.fingerprint

    asyncio.run(run())


def test_it_says_that_it_is_healthy() -> None:
    async def run() -> None:
        async with running() as (_, _, address), grpc.aio.insecure_channel(address) as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            for name in ("", "embark.v1.Retina"):
                answer = await check(health_pb2.HealthCheckRequest(service=name))
                assert answer.status == health_pb2.HealthCheckResponse.SERVING

    asyncio.run(run())


def test_calls_at_hand_are_finished_when_it_stops() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        planted.proceed.clear()
        async with Fetcher() as fetcher:
            service = RetinaService(
                registered=lambda: {"t__v1": planted.spec}, fetcher=fetcher, device="cpu", load=lambda spec: planted
            )
            async with RetinaServer(service, "127.0.0.1:0", grace=20) as server:
                client = RetinaClient(f"127.0.0.1:{server.port}")
                call = asyncio.create_task(asyncio.to_thread(client.encode, "t__v1", "", ["a", "bb"], 20))
                await eventually(lambda: service.keys_at_hand == 2)
                asyncio.get_running_loop().call_later(0.2, planted.proceed.set)
            assert (await call).vectors[:, 0].tolist() == [1, 2]
            with pytest.raises(RetinaAway):
                await asyncio.to_thread(client.encode, "t__v1", "", ["a"], 1)
            client.close()

    asyncio.run(run())


def test_the_largest_reply_fits_a_message() -> None:
    async def run() -> None:
        wide = replace(TEXT, dim=8192)
        async with running({wide.view: wide}) as (_, encode, _):
            encoded = await encode(wide.view, [f"text {n}" for n in range(512)])
        assert encoded.vectors.shape == (512, 8192)

    asyncio.run(run())


def test_a_port_that_is_taken_and_a_device_that_is_not_there_are_said_at_once() -> None:
    async def run() -> None:
        async with running() as (_, _, address), Fetcher() as fetcher:
            second = RetinaService(registered=dict, fetcher=fetcher, device="cpu")
            with pytest.raises(OSError, match=f"cannot listen on {address}"):
                async with RetinaServer(second, address):
                    pass
            second.close()

    asyncio.run(run())
    assert choose_device("auto").type in ("cpu", "cuda", "mps")
    with pytest.raises(DeviceUnavailable, match="here are: auto"):
        choose_device("tpu")


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():
            await asyncio.sleep(0.01)


def test_it_is_not_ready_until_its_views_are_warm_and_clients_wait_for_that() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        planted.proceed.clear()
        specs = {"t__v1": planted.spec}
        async with Fetcher() as fetcher:
            service = RetinaService(
                registered=lambda: specs, fetcher=fetcher, device="cpu", load=lambda spec: planted, max_batch=3
            )
            async with RetinaServer(service, "127.0.0.1:0", ready=False) as server:
                address = f"127.0.0.1:{server.port}"
                async with grpc.aio.insecure_channel(address) as channel:
                    check = health_pb2_grpc.HealthStub(channel).Check
                    warming = asyncio.create_task(service.warm(["t__v1"]))
                    answer = await check(health_pb2.HealthCheckRequest(service="embark.v1.Retina"))
                    assert answer.status == health_pb2.HealthCheckResponse.NOT_SERVING
                    with RetinaClient(address) as client:
                        with pytest.raises(RetinaAway, match="UNAVAILABLE"):
                            await asyncio.to_thread(client.encode, "t__v1", "", ["a"], 20)
                        planted.proceed.set()
                        await warming
                        assert [len(batch) for batch in planted.batches] == [1, 3]
                        await server.set_ready()
                        answer = await check(health_pb2.HealthCheckRequest(service="embark.v1.Retina"))
                        assert answer.status == health_pb2.HealthCheckResponse.SERVING
                        async with asyncio.timeout(20):
                            while True:
                                with contextlib.suppress(RetinaAway):  # until it has heard
                                    await asyncio.to_thread(client.encode, "t__v1", "", ["a"], 20)
                                    break
                with pytest.raises(SpecError, match="cannot warm view 'x__v1': registered are t__v1"):
                    await service.warm(["x__v1"])

    asyncio.run(run())


def test_warming_runs_real_networks_of_both_kinds() -> None:
    async def run() -> None:
        async with running() as (service, _, address):
            await service.warm(VIEWS)
            with RetinaClient(address) as client:
                assert all(e.loaded for e in (await asyncio.to_thread(client.encoders)).encoders)

    asyncio.run(run())


def test_a_busy_retina_says_how_long_its_queue_is() -> None:
    async def run() -> None:
        planted = PlantedEncoder()
        encode_batch = planted.encode

        def slowly(batch: Sequence[str]) -> NDArray[np.float32]:
            threading.Event().wait(0.2 * len(batch))
            return encode_batch(batch)

        planted.encode = slowly  # type: ignore[method-assign]
        specs = {"t__v1": planted.spec}
        registry = CollectorRegistry()
        value = registry.get_sample_value

        def counted() -> list[float]:
            """Calls refused as busy, and keys embedded. With Feast in the process, registries share their counts."""
            busy = value("embark_retina_rejected_calls_total", {"code": "RESOURCE_EXHAUSTED"})
            return [busy or 0, value("embark_retina_keys_total", {"view": "t__v1", "outcome": "embedded"}) or 0]

        async with running(specs, load=lambda spec: planted, max_keys_at_hand=10, metrics=RetinaMetrics(registry)) as (
            service,
            encode,
            _,
        ):
            before = counted()
            await encode("t__v1", ["a", "b"])  # now it knows its pace: 0.2 s a key, in as many lanes as there are cores
            planted.proceed.clear()
            first = asyncio.create_task(encode("t__v1", [str(n) for n in range(10)]))
            await eventually(lambda: service.keys_at_hand == 10)
            with pytest.raises(RetinaBusy, match="10 keys are at hand, 10 are allowed: try again in") as caught:
                await encode("t__v1", [str(n) for n in range(8)])
            assert 0.1 <= caught.value.retry_after <= 10
            queue_seconds = 10 * 0.2 / Plan.of("cpu").lanes
            assert caught.value.retry_after >= 0.8 * min(queue_seconds, 10) * 0.9  # 8 of 10 must leave
            # who has less time than the queue takes is told at once, rather than at the end of it
            service._max_keys_at_hand = 100
            service._batches.seconds = lambda keys: 50.0  # type: ignore[method-assign]
            with pytest.raises(RetinaBusy, match=r"which take 50\.0 s, and the call has \d+\.\d s left"):
                await encode("t__v1", ["x"], timeout=30)
            planted.proceed.set()
            await first
        assert counted() == [count + more for count, more in zip(before, (2, 12), strict=True)]
        assert value("embark_retina_keys_at_hand") == 0
        assert value("embark_retina_encoders_loaded") == 1

    asyncio.run(run())


def test_its_services_are_described_to_tools_unless_that_is_turned_off() -> None:
    async def listed(reflects: bool) -> list[str]:
        async with Fetcher() as fetcher:
            service = RetinaService(registered=dict, fetcher=fetcher, device="cpu")
            async with (
                RetinaServer(service, "127.0.0.1:0", reflects=reflects) as server,
                grpc.aio.insecure_channel(f"127.0.0.1:{server.port}") as channel,
            ):
                request = reflection_pb2.ServerReflectionRequest(list_services="")
                info = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo(iter([request]))
                return [each.name async for answer in info for each in answer.list_services_response.service]

    assert "embark.v1.Retina" in asyncio.run(listed(True))
    with pytest.raises(grpc.aio.AioRpcError, match="Method not found"):
        asyncio.run(listed(False))
