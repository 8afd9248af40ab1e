import pytest

from materializer.pace import MANY, MEMORY_SECONDS, UNKNOWN_KEYS, Pace
from tests.materializer.fakes import FakeClock


def embed(pace: Pace, clock: FakeClock, view: str, keys: int, seconds: float) -> None:
    with pace.measure(view, keys):
        clock.seconds += seconds


def test_before_anything_was_embedded_it_counts_on_a_slow_network() -> None:
    assert Pace(FakeClock()).keys_in(0.5) == UNKNOWN_KEYS


def test_the_slowest_view_counts_while_it_is_asked_for() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    embed(pace, clock, "inception", 10, 1.0)
    embed(pace, clock, "text", 1000, 1.0)
    assert pace.keys_in(0.5) == 5
    clock.seconds += MEMORY_SECONDS - 0.5
    assert pace.keys_in(0.5) == 500


def test_the_newest_measurement_weighs_half() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    embed(pace, clock, "v", 10, 1.0)
    embed(pace, clock, "v", 10, 3.0)
    assert pace.keys_in(2.0) == 10


def test_at_least_one_key_and_no_more_than_can_be_counted() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    embed(pace, clock, "v", 1, 60.0)
    assert pace.keys_in(0.5) == 1
    still = Pace(clock)
    embed(still, clock, "v", 10, 0.0)
    assert still.keys_in(0.5) == MANY


def test_what_failed_is_not_measured() -> None:
    clock = FakeClock()
    pace = Pace(clock)
    with pytest.raises(ConnectionError), pace.measure("v", 10):
        _fail_after(clock, 60)
    assert pace.keys_in(0.5) == UNKNOWN_KEYS


def _fail_after(clock: FakeClock, seconds: float) -> None:
    clock.seconds += seconds
    raise ConnectionError
