import threading
import time
from collections.abc import Callable

import pytest

from materializer.stages import Stage, Stages

SECONDS = 10.0


def wait_until(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.001)


@pytest.mark.parametrize("overlap", [True, False])
def test_batches_come_out_in_the_order_in_which_they_went_in(overlap: bool) -> None:
    seen: list[tuple[str, int]] = []
    out: list[int] = []
    with Stages[int](
        Stage(lambda n: seen.append(("a", n))), Stage(lambda n: seen.append(("b", n))), overlap=overlap
    ) as stages:
        for n in range(50):
            while not stages.offer(n, 0.1):
                out += stages.finished()
        while stages.inside:
            out += stages.finished(0.1)
    assert out == list(range(50))
    assert [n for stage, n in seen if stage == "a"] == [n for stage, n in seen if stage == "b"] == out


def test_while_one_is_written_the_next_is_embedded() -> None:
    embedded, written = threading.Barrier(2, timeout=SECONDS), []

    def embed(n: int) -> None:
        if n == 1:
            embedded.wait()

    def write(n: int) -> None:
        if n == 0:
            embedded.wait()  # until the other stage is at work on the next
        written.append(n)

    with Stages[int](Stage(embed), Stage(write)) as stages:
        assert stages.offer(0, SECONDS)
        assert stages.offer(1, SECONDS)
        wait_until(lambda: written == [0, 1])
        assert stages.finished(SECONDS) + stages.finished() == [0, 1]


def test_a_wide_stage_has_several_at_work_and_what_overtakes_comes_out_in_order() -> None:
    both, go_on = threading.Barrier(2, timeout=SECONDS), threading.Event()
    told: list[int] = []

    def embed(n: int) -> None:
        both.wait()  # until there are two at work
        if n == 0:
            go_on.wait(SECONDS)

    with Stages[int](Stage(embed, width=2), Stage(told.append)) as stages:
        assert stages.offer(0, SECONDS)
        assert stages.offer(1, SECONDS)
        wait_until(lambda: told == [1])
        assert stages.finished(0.1) == []
        assert stages.inside == 2
        go_on.set()
        wait_until(lambda: told == [1, 0])
        assert stages.finished(SECONDS) + stages.finished(0.1) == [0, 1]
        assert stages.inside == 0


def test_a_slow_stage_leaves_room_for_a_few_batches() -> None:
    go_on = threading.Event()
    with Stages[int](Stage(lambda _: None), Stage(lambda _: bool(go_on.wait(SECONDS)))) as stages:
        taken = sum(stages.offer(n, 0.05) for n in range(20))
        assert 3 <= taken <= 5
        assert stages.inside == taken
        go_on.set()
        while stages.inside:
            stages.finished(0.1)


class Crash(Exception):
    """A stage dies of this."""


@pytest.mark.parametrize("overlap", [True, False])
def test_what_a_stage_raises_is_raised_where_batches_are_offered(overlap: bool) -> None:
    def crash(_: int) -> None:
        raise Crash

    def work_until_it_is_told() -> None:
        with Stages[int](Stage(crash), Stage(written.append), overlap=overlap) as stages:
            stages.offer(0, SECONDS)
            while True:
                stages.finished(0.1)

    written: list[int] = []
    with pytest.raises(Crash):
        work_until_it_is_told()
    assert written == []
