import threading

import pytest

from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory, UnknownView

SPEC = EncoderSpec(name="tiny", version="v1", modality="text", dim=4, network="text_lstm", pinned="seeded:0")
OTHER = EncoderSpec(name="tiny", version="v2", modality="text", dim=4, network="text_lstm", pinned="seeded:1")


def test_an_unknown_view_is_refused_with_those_known() -> None:
    directory = EncoderDirectory(lambda: {SPEC.view: SPEC})
    with pytest.raises(UnknownView, match="'nope'; known are: tiny__v1"):
        directory.spec("nope")


def test_an_encoder_that_is_applied_later_is_found_without_a_restart() -> None:
    registry = {SPEC.view: SPEC}
    changed = threading.Event()
    with EncoderDirectory(lambda: registry, refresh_seconds=0.01, on_change=lambda _: changed.set()) as directory:
        registry[OTHER.view] = OTHER
        assert changed.wait(10)
        assert directory.spec(OTHER.view) == OTHER


def test_a_registry_that_cannot_be_read_leaves_the_last_good_reading_in_force() -> None:
    readings = iter([{SPEC.view: SPEC}])
    directory = EncoderDirectory(lambda: next(readings))
    directory.refresh()
    assert directory.spec(SPEC.view) == SPEC
