import asyncio
from dataclasses import replace
from typing import Any

import pytest

from encoders.loaded import LoadedEncoders
from encoders.spec import EncoderSpec, SpecError

SPEC = EncoderSpec(name="a", version="v1", modality="text", dim=1, network="text_lstm", pinned="seeded:0")
A, B, C = (replace(SPEC, name=name, pinned=f"seeded:{n}") for n, name in enumerate("abc"))


class Loads:
    """Encoders that are nothing but their specs; each load is noted."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.fails = False

    def __call__(self, spec: EncoderSpec) -> Any:
        self.names.append(spec.name)
        if self.fails:
            raise SpecError("planted")
        return type("Encoder", (), {"spec": spec})()


async def use(loaded: LoadedEncoders, *specs: EncoderSpec) -> None:
    for spec in specs:
        async with loaded.using(spec) as encoder:
            assert encoder.spec == spec


def test_the_least_recently_used_goes_where_memory_is_short() -> None:
    async def run() -> None:
        loads = Loads()
        loaded = LoadedEncoders(loads, budget=20, size=lambda encoder: 10)
        await use(loaded, A, B, A, C, A)
        assert loads.names == ["a", "b", "c"]
        assert (loaded.count, loaded.bytes) == (2, 20)
        assert [loaded.is_loaded(spec) for spec in (A, B, C)] == [True, False, True]
        await use(loaded, B)
        assert loads.names == ["a", "b", "c", "b"]
        loaded.close()

    asyncio.run(run())


def test_what_is_in_use_is_never_let_go() -> None:
    async def run() -> None:
        loaded = LoadedEncoders(Loads(), budget=10, size=lambda encoder: 10)
        async with loaded.using(A), loaded.using(B):
            await use(loaded, C)
            assert [loaded.is_loaded(spec) for spec in (A, B)] == [True, True]
        assert loaded.bytes == 10
        loaded.close()

    asyncio.run(run())


def test_one_that_is_larger_than_all_memory_is_kept_all_the_same() -> None:
    async def run() -> None:
        loads = Loads()
        loaded = LoadedEncoders(loads, budget=5, size=lambda encoder: 10)
        await use(loaded, A, A, A)
        assert loads.names == ["a"]
        loaded.close()

    asyncio.run(run())


def test_without_a_budget_all_stay_and_a_failed_load_is_tried_again() -> None:
    async def run() -> None:
        loads = Loads()
        loaded = LoadedEncoders(loads, size=lambda encoder: 10)
        loads.fails = True
        with pytest.raises(SpecError, match="planted"):
            await use(loaded, A)
        loads.fails = False
        await use(loaded, A, B, C, A)
        assert loads.names == ["a", "a", "b", "c"]
        assert loaded.bytes == 30
        loaded.close()

    asyncio.run(run())
