import pytest
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value
from hypothesis import given
from hypothesis import strategies as st

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from serving.entity_rows import REFUSED, Asked, as_columns, readings
from tests.serving.fakes import IMAGE, TEXT

SIGNED = "http://a.example/x.jpg?sig=1"
PLAIN = Asked(spec=None, columns=("image_url",), names={"price": "price"})
SIGNS = EncoderSpec(
    name="signs", version="v1", modality="image", dim=3, network="torchvision:x", drop_query_params=("sig",)
)


def asked(spec: EncoderSpec, column: str = "") -> Asked:
    return Asked(spec=spec, columns=(column or spec.join_key,), names={"embedding": "embedding"})


@pytest.mark.parametrize(
    "rows",
    [
        [{"text": "a", "n": 1}, {"text": "b", "n": 2}],
        {"text": ["a", "b"], "n": (1, 2)},
        {
            "text": RepeatedValue(val=[Value(string_val="a"), Value(string_val="b")]),
            "n": [Value(int64_val=1), Value(int64_val=2)],
        },
    ],
)
def test_each_form_of_entity_rows_is_the_same_columns(rows: object) -> None:
    assert as_columns(rows) == {"text": ["a", "b"], "n": [1, 2]}  # type: ignore[arg-type]


@pytest.mark.parametrize("rows", [[{"text": "a"}, {}], [{"text": "a"}, {"text": "b", "n": 1}]])
def test_rows_of_different_columns_are_refused(rows: list[dict[str, object]]) -> None:
    with pytest.raises(ValueError, match="same keys"):
        as_columns(rows)


def test_the_name_of_an_entity_stands_for_its_join_key() -> None:
    assert as_columns({"image": ["x"]}) == {"image_url": ["x"]}
    assert as_columns({"image": ["x"], "image_url": ["y"]}) == {"image": ["x"], "image_url": ["y"]}


def test_views_that_agree_on_their_keys_are_read_at_once() -> None:
    rows = {"image_url": ["HTTP://a.example/x.jpg"], "text": [" dog "]}
    (reading,) = readings([asked(IMAGE), asked(SIGNS), asked(TEXT)], rows)
    assert reading.columns == {"image_url": ["http://a.example/x.jpg"], "text": ["dog"]}
    assert len(reading.views) == 3


def test_views_that_drop_other_parameters_are_read_each_with_its_own_keys() -> None:
    one, other = readings([asked(IMAGE), asked(SIGNS)], {"image_url": [SIGNED]})
    assert (one.views[0].spec, one.columns) == (IMAGE, {"image_url": [SIGNED]})
    assert (other.views[0].spec, other.columns) == (SIGNS, {"image_url": ["http://a.example/x.jpg"]})


def test_a_view_that_is_no_encoders_is_read_with_the_keys_as_they_were_given() -> None:
    given_keys = ["HTTP://a.example/x.jpg", "no-url"]
    encoders, others = readings([PLAIN, asked(IMAGE)], {"image_url": given_keys})
    assert encoders.columns == {"image_url": ["http://a.example/x.jpg", REFUSED]}
    assert (others.views, others.columns) == ([PLAIN], {"image_url": given_keys})


def test_columns_of_a_projection_do_not_meet() -> None:
    rows = {"ad": [SIGNED], "background": [SIGNED]}
    (reading,) = readings([asked(SIGNS, "ad"), asked(IMAGE, "background")], rows)
    assert reading.columns == {"ad": ["http://a.example/x.jpg"], "background": [SIGNED]}


KEYS = st.lists(
    st.one_of(st.none(), st.integers(), st.text(), st.sampled_from([SIGNED, "ftp://a", "\ud800", "\0", ""]))
)


@given(KEYS, st.lists(st.sampled_from([IMAGE, SIGNS, None]), min_size=1))
def test_every_view_is_read_with_its_own_keys_whatever_is_asked_beside_it(
    keys: list[object], specs: list[EncoderSpec | None]
) -> None:
    views = [asked(spec) if spec else PLAIN for spec in specs]
    found = readings(views, {"image_url": keys})
    assert sum(len(reading.views) for reading in found) == len(views)
    assert len(found) <= len(set(map(id, specs)))
    for reading in found:
        assert len(reading.columns["image_url"]) == len(keys)
        for view in reading.views:
            for key, read in zip(keys, reading.columns["image_url"], strict=True):
                assert read == expected(view.spec, key)


def expected(spec: EncoderSpec | None, key: object) -> object:
    if spec is None or not isinstance(key, str):
        return key
    try:
        return canonical_key(spec, key)
    except KeyRefused:
        return REFUSED
