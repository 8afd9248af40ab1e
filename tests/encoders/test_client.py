import numpy as np
import pytest

from encoders.client import MemoryRetina, Outcome, RetinaAway, RetinaClient


def test_a_retina_that_is_not_there_is_away() -> None:
    with RetinaClient("127.0.0.1:1") as client, pytest.raises(RetinaAway, match="UNAVAILABLE"):
        client.encode("t__v1", "", ["a"], 5)


def test_the_memory_retina_embeds_reproducibly_and_fails_as_it_is_told() -> None:
    failed = Outcome(reason="NotFound", detail="404")
    retina = MemoryRetina({"t__v1": 4}, failures={"bad": failed})
    encoded = retina.encode("t__v1", "f", ["a", "bad", "b", "a"], 1)
    assert encoded.vectors.shape == (3, 4)
    assert encoded.vectors.dtype == np.float32
    assert (encoded.vectors[0] == encoded.vectors[2]).all()
    assert (encoded.vectors[0] != encoded.vectors[1]).all()
    assert encoded.outcomes[1] == failed
    assert [outcome.reason for outcome in encoded.outcomes] == ["", "NotFound", "", ""]
    assert encoded.fingerprint == "f"
    assert retina.calls == [("t__v1", ("a", "bad", "b", "a"))]
