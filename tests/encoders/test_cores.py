import asyncio

import pytest

from encoders.cores import Cores


async def settled() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


class Decoding:
    """Holds a core from when it may until it is told."""

    def __init__(self, cores: Cores) -> None:
        self.begun = False
        self.end = asyncio.Event()
        self.task = asyncio.create_task(self._run(cores))

    async def _run(self, cores: Cores) -> None:
        async with cores:
            self.begun = True
            await self.end.wait()


def test_as_many_decode_as_passes_leave_cores_but_always_one_and_in_turn() -> None:
    async def test() -> None:
        cores = Cores(3)
        cores.begin_pass()
        decoding = [Decoding(cores) for _ in range(5)]
        await settled()
        assert [each.begun for each in decoding] == [True, True, False, False, False]
        assert not cores.idle
        for _ in range(3):
            cores.begin_pass()
        decoding[0].end.set()
        await settled()
        assert [each.begun for each in decoding] == [True, True, False, False, False]
        decoding[1].end.set()
        await settled()
        assert [each.begun for each in decoding] == [True, True, True, False, False]
        for _ in range(4):
            cores.end_pass()
        await settled()
        assert all(each.begun for each in decoding)
        for each in decoding:
            each.end.set()
            await each.task
        assert cores.idle

    asyncio.run(test())


def test_who_is_gone_while_it_waits_or_when_its_turn_comes_keeps_no_core() -> None:
    async def test() -> None:
        cores = Cores(1)
        first, waits, called, last = (Decoding(cores) for _ in range(4))
        await settled()
        waits.task.cancel()
        await settled()
        first.end.set()
        await first.task  # which has called the next one, who has not run yet
        called.task.cancel()
        for gone in (waits, called):
            with pytest.raises(asyncio.CancelledError):
                await gone.task
        await settled()
        assert last.begun
        last.end.set()
        await last.task
        assert cores.idle

    asyncio.run(test())


def test_where_passes_have_a_device_of_their_own_nothing_waits() -> None:
    async def test() -> None:
        cores = Cores(0)
        cores.begin_pass()
        decoding = [Decoding(cores) for _ in range(50)]
        await settled()
        assert all(each.begun for each in decoding)
        assert cores.idle
        for each in decoding:
            each.end.set()
            await each.task

    asyncio.run(test())
