import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, Status, all_missing, embedding_id, oov_zeros
from serving import embark_pb2

SPEC = EncoderSpec(name="tiny", version="v1", modality="text", dim=4, network="text_lstm", pinned="seeded:0")
VECTOR = np.arange(4, dtype=np.float32)


@given(st.text(), st.text(), st.integers(0, 2**62))
def test_an_id_is_a_positive_63_bit_number(view: str, key: str, event_time: int) -> None:
    key = key.encode(errors="ignore").decode()
    assert 0 <= embedding_id(view.encode(errors="ignore").decode(), key, event_time, VECTOR) < 2**63


def test_an_id_depends_on_view_key_time_and_every_byte_of_the_vector() -> None:
    other = VECTOR.copy()
    other[3] = np.nextafter(other[3], np.float32(9))
    ids = {
        embedding_id("v", "k", 1, VECTOR),
        embedding_id("w", "k", 1, VECTOR),
        embedding_id("v", "l", 1, VECTOR),
        embedding_id("v", "k", 2, VECTOR),
        embedding_id("v", "k", 1, other),
        embedding_id("vk", "", 1, VECTOR),
    }
    assert len(ids) == 6


def test_an_id_does_not_depend_on_how_the_vector_lies_in_memory() -> None:
    strided = np.zeros(8, dtype=np.float32)[::2]
    strided[:] = VECTOR
    assert embedding_id("v", "k", 1, strided) == embedding_id("v", "k", 1, VECTOR)
    assert embedding_id("v", "k", 1, VECTOR.astype(">f4")) == embedding_id("v", "k", 1, VECTOR)


def test_what_is_missing_is_answered_with_the_oov_row_and_its_own_id() -> None:
    missing = all_missing(oov_zeros(SPEC.view, SPEC.dim), 3, Status.UNAVAILABLE)
    assert missing.vectors.shape == (3, 4)
    assert not missing.vectors.any()
    assert set(missing.status) == {Status.UNAVAILABLE}
    assert set(missing.embedding_id) == {embedding_id(SPEC.view, OOV_KEY, 0, missing.vectors[0])}


def test_statuses_have_the_same_numbers_on_the_wire() -> None:
    assert {s.name: s.value for s in Status} | {"UNSPECIFIED": 0} == dict(embark_pb2.Status.items())
