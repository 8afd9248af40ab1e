import asyncio
import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry

from encoders.batching import FILES_AT_HAND, Batches
from encoders.compute import Plan
from encoders.encoder import NotFound
from encoders.line import BUSY_SECONDS, Group, Line, TooLate, Waiting
from encoders.metrics import RetinaMetrics
from encoders.spec import EncoderSpec

TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=1, network="text_lstm", pinned="seeded:0")
IMAGE = EncoderSpec(
    name="i", version="v1", modality="image", dim=1, network="torchvision:mobilenet_v3_small", pinned="seeded:0"
)


def other(spec: EncoderSpec, name: str) -> EncoderSpec:
    """One with another fingerprint: those of one are one encoder, whatever the views' names are."""
    return replace(spec, name=name, pinned="seeded:1")


ONE_LANE = Plan(lanes=1, threads=1, images=4, texts=4, decoding=2, age=0.005)


class Planted:
    """Embeds a content as its length; keeps each pass, and holds it until it may proceed."""

    def __init__(self, spec: EncoderSpec, log: list[tuple[str, list[bytes]]] | None = None) -> None:
        self.spec = spec
        self.passes: list[tuple[str, list[bytes]]] = [] if log is None else log
        self.entered = threading.Semaphore(0)
        self.proceed = threading.Event()
        self.proceed.set()

    def prepare(self, content: bytes) -> bytes:
        return content

    def encode(self, batch: Sequence[bytes]) -> NDArray[np.float32]:
        self.passes.append((self.spec.view, list(batch)))
        self.entered.release()
        assert self.proceed.wait(20)
        return np.array([[len(content)] for content in batch], dtype=np.float32)


class Pages:
    """Pictures that come when they may."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.slow = asyncio.Event()

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if "slow" in url:
            await self.slow.wait()
        if "missing" in url:
            raise NotFound("404")
        return url.encode()


def run(test: Callable[[Batches, Pages], Any], **settings: Any) -> None:
    async def with_batches() -> None:
        pages = Pages()
        batches = Batches(pages, plan=settings.pop("plan", ONE_LANE), **settings)
        try:
            async with asyncio.timeout(30):
                await test(batches, pages)
        finally:
            batches.close()

    asyncio.run(with_batches())


async def eventually(holds: Callable[[], bool]) -> None:
    while not holds():
        await asyncio.sleep(0.005)


def test_inputs_of_several_callers_share_a_pass() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder = Planted(TEXT)
        encoder.proceed.clear()
        first = asyncio.create_task(batches.embed(encoder, ["first"]))
        await eventually(lambda: len(encoder.passes) == 1)  # alone, it does not wait for company
        others = [asyncio.create_task(batches.embed(encoder, [key])) for key in ("a", "b", "c", "d", "e")]
        await asyncio.sleep(0.1)
        encoder.proceed.set()
        assert [len((await call).popitem()[1].vector) for call in (first, *others)] == [1] * 6  # type: ignore[arg-type]
        assert sorted(len(batch) for _, batch in encoder.passes) == [1, 1, 4]

    run(test)


def test_a_batch_that_is_not_full_leaves_when_its_oldest_is_old_enough() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder = Planted(IMAGE)
        slow = asyncio.create_task(batches.embed(encoder, ["http://slow.example/"]))  # which might come any moment
        await eventually(lambda: len(pages.asked) == 1)
        embedded = await batches.embed(encoder, ["http://a.example/", "http://b.example/"])
        assert [outcome.vector is not None for outcome in embedded.values()] == [True, True]
        assert [len(batch) for _, batch in encoder.passes] == [2]
        pages.slow.set()
        await slow

    run(test, plan=replace(ONE_LANE, age=0.2))


def test_a_caller_that_is_gone_takes_its_inputs_along() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder = Planted(TEXT)
        encoder.proceed.clear()
        first = asyncio.create_task(batches.embed(encoder, ["first"]))
        await eventually(lambda: len(encoder.passes) == 1)
        gone = asyncio.create_task(batches.embed(encoder, [f"gone {n}" for n in range(100)]))
        stays = asyncio.create_task(batches.embed(encoder, ["stays"]))
        await asyncio.sleep(0.1)
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        encoder.proceed.set()
        await first
        await stays
        assert [batch for _, batch in encoder.passes] == [[b"first"], [b"stays"]]

    run(test)


def test_what_cannot_be_done_in_time_is_not_computed() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder = Planted(replace(TEXT, name="hurried"))
        encoder.proceed.clear()
        first = asyncio.create_task(batches.embed(encoder, ["first"]))
        await eventually(lambda: len(encoder.passes) == 1)
        soon = asyncio.get_running_loop().time() + 0.05
        late = asyncio.create_task(batches.embed(encoder, [f"late {n}" for n in range(40)], soon))
        await asyncio.sleep(0.2)
        encoder.proceed.set()
        with pytest.raises(TooLate, match="40 keys cannot be embedded in time"):
            await late
        await first
        assert len(encoder.passes) == 1

    registry = CollectorRegistry()
    run(test, metrics=RetinaMetrics(registry))
    assert registry.get_sample_value("embark_retina_late_keys_total", {"view": "hurried__v1"}) == 40


def test_a_slow_network_gets_no_more_of_the_device_than_a_fast_one() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        log: list[tuple[str, list[bytes]]] = []
        slow, fast = Planted(replace(TEXT, name="slow"), log), Planted(other(TEXT, "fast"), log)
        encode = slow.encode

        def slowly(batch: Sequence[bytes]) -> NDArray[np.float32]:
            threading.Event().wait(0.05)
            return encode(batch)

        slow.encode = slowly  # type: ignore[method-assign]
        fast.proceed.clear()  # until both wait
        calls = [
            asyncio.create_task(batches.embed(fast, [str(n) for n in range(40)])),
            asyncio.create_task(batches.embed(slow, [str(n) for n in range(40)])),
        ]
        await eventually(lambda: len(log) == 1)
        await asyncio.sleep(0.1)
        log.clear()
        fast.proceed.set()
        for call in calls:
            await call
        views = [view for view, _ in log]
        # the fast one is done after few passes of the slow one, though both had as many to do
        assert views[: views.index("fast__v1") + 9].count("slow__v1") <= 5 < views.count("slow__v1")

    run(test)


def test_a_slow_host_does_not_keep_out_the_others() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder = Planted(IMAGE)
        stuck = asyncio.create_task(batches.embed(encoder, [f"http://slow.example/{n}" for n in range(400)]))
        await eventually(lambda: len(pages.asked) == 8)  # a host's share
        other = [f"http://a.example/{n}" for n in range(100)]
        embedded = await batches.embed(encoder, [*other, "http://a.example/missing"])
        assert sum(outcome.vector is not None for outcome in embedded.values()) == 100
        assert embedded["http://a.example/missing"].error is not None
        assert len([url for url in pages.asked if "slow" in url]) == 8
        stuck.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stuck

    run(test)


def test_pictures_do_not_pile_up_before_a_network_that_is_slower_than_the_web() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        encoder, second = Planted(IMAGE), Planted(other(IMAGE, "other"))
        encoder.proceed.clear()
        calls = [
            asyncio.create_task(batches.embed(encoder, [f"http://{host}.example/{n}" for n in range(300)]))
            for host in range(5)
        ]
        await eventually(lambda: len(pages.asked) >= FILES_AT_HAND)
        await asyncio.sleep(0.2)
        assert len(pages.asked) == FILES_AT_HAND  # of 1500
        one = batches.embed(second, ["http://z.example/"])
        waiting = asyncio.create_task(one)
        await eventually(lambda: "http://z.example/" in pages.asked)  # another encoder has room of its own
        encoder.proceed.set()
        await waiting
        for call in calls:
            assert len(await call) == 300

    run(test, plan=replace(ONE_LANE, lanes=2))


def test_a_bug_of_an_encoder_fails_its_inputs_and_the_device_goes_on() -> None:
    async def test(batches: Batches, pages: Pages) -> None:
        broken, sound = Planted(TEXT), Planted(other(TEXT, "sound"))
        broken.encode = lambda batch: 1 / 0  # type: ignore[method-assign, assignment, return-value]
        outcome = (await batches.embed(broken, ["a"]))["a"]
        assert "ZeroDivisionError" in str(outcome.error)
        assert (await batches.embed(sound, ["a"]))["a"].vector is not None

    run(test)


def test_stages_and_batches_are_measured() -> None:
    registry = CollectorRegistry()

    async def test(batches: Batches, pages: Pages) -> None:
        await batches.embed(Planted(replace(IMAGE, name="measured")), ["http://a.example/", "http://b.example/"])

    run(test, metrics=RetinaMetrics(registry), plan=replace(ONE_LANE, age=0.5))
    for stage in ("fetch", "decode"):
        labels = {"view": "measured__v1", "stage": stage}
        assert registry.get_sample_value("embark_retina_stage_seconds_count", labels) == 2
    assert registry.get_sample_value("embark_retina_batch_size_sum", {"view": "measured__v1"}) == 2
    assert registry.get_sample_value("embark_retina_queue_length", {"view": "measured__v1"}) == 0


def test_while_the_cores_are_busy_an_input_waits_for_others_but_not_past_its_deadline() -> None:
    def due_at(deadline: float) -> float:
        line = Line(Planted(TEXT), 2, 0.005, coming=1, fastest=0.1)
        group = Group(asyncio.Future(loop=loop), [None], 1)
        line.add(Waiting(0, 1.0, deadline, 7, group, 0))
        assert line.due_at(idle=True) == min(1.005, deadline - 0.2)
        return line.due_at(idle=False)

    loop = asyncio.new_event_loop()
    assert due_at(math.inf) == 1.0 + BUSY_SECONDS
    assert due_at(1.3) == pytest.approx(1.1)
    loop.close()


@given(st.lists(st.integers(1, 64), min_size=1, max_size=60), st.integers(1, 9))
def test_batches_hold_neighbours_in_length_each_text_once_and_the_oldest_always(lengths: list[int], size: int) -> None:
    async def test() -> None:
        line = Line(Planted(TEXT), size, 0.0)
        loop = asyncio.get_running_loop()
        group = Group(loop.create_future(), [None] * len(lengths), len(lengths))
        waiting = [Waiting(n, float(n), math.inf, length, group, n) for n, length in enumerate(lengths)]
        for each in waiting:
            line.add(each)
        left = list(waiting)
        while left:
            batch = line.take(0.0)
            assert left[0] in batch
            assert len(batch) == min(size, len(left))
            within = {each.length for each in batch}
            between = [e for e in left if e not in batch and min(within) < e.length < max(within)]
            assert not between
            left = [each for each in left if each not in batch]
        assert line.take(0.0) == []

    asyncio.run(test())
