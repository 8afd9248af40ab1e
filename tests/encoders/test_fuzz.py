"""Whatever the bytes: a result, or an error with a name."""

import json
from functools import cache

from google.protobuf.message import DecodeError as ProtobufError
from hypothesis import example, given, settings
from hypothesis import strategies as st

from encoders.encoder import DecodeError
from encoders.keys import MAX_KEY_BYTES, KeyRefused, canonical_key
from encoders.pixels import FORMATS, decode
from encoders.retina_pb2 import EncodeRequest
from encoders.spec import EncoderSpec
from materializer.messages import EmbedRequest, MalformedMessage
from tests.encoders.pictures import file_of, photographs

SPECS = (
    EncoderSpec(name="i", version="v1", modality="image", dim=4, network="torchvision:resnet18"),
    EncoderSpec(name="t", version="v1", modality="text", dim=4, network="text_lstm"),
)


@cache
def whole(kind: str) -> bytes:
    picture = photographs()["china"].resize((48, 32))
    return file_of(picture, kind, **({"progressive": True} if kind == "JPEG" else {}))


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A real file with some bytes changed, left out, doubled or taken from a file of another format."""
    content = bytearray(whole(draw(st.sampled_from(FORMATS))))
    other = whole(draw(st.sampled_from(FORMATS)))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(content)))
        stop = start + draw(st.integers(0, 64))
        replacements = (
            b"",  # left out
            bytes(content[start:stop]) * 2,
            other[start:stop],
            draw(st.binary(max_size=8)),
            draw(st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\x80\0\0\0"])),
        )
        content[start:stop] = draw(st.sampled_from(replacements))
    return bytes(content)


@settings(max_examples=200)
@given(content=damaged() | st.binary(max_size=200), at_least=st.none() | st.integers(1, 32))
def test_any_bytes_are_a_picture_or_a_decode_error(content: bytes, at_least: int | None) -> None:
    try:
        picture = decode(content, at_least)
    except DecodeError:
        return
    assert picture.mode == "RGB"
    assert len(picture.tobytes()) == 3 * picture.width * picture.height


@settings(max_examples=120)
@given(
    st.binary(max_size=300)
    | st.builds(
        lambda request, at, other: request[:at] + other + request[at:],
        st.builds(
            lambda view, keys: EncodeRequest(view=view, keys=keys).SerializeToString(),
            st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
            st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=20), max_size=4),
        ),
        st.integers(0, 50),
        st.binary(max_size=6),
    )
)
def test_any_bytes_are_a_request_of_retina_or_malformed(message: bytes) -> None:
    try:
        request = EncodeRequest.FromString(message)
    except ProtobufError:
        return
    for key in request.keys:
        for spec in SPECS:
            canonical_or_refused(spec, key)


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2)
FIELDS = st.sampled_from(["view", "key", "requested_at", "attempt", "priority", "not_before", "other"])


@settings(max_examples=200)
@given(
    st.binary(max_size=300)
    | st.dictionaries(FIELDS, VALUES).map(lambda fields: json.dumps(fields).encode())
    | st.builds(lambda text: text.encode("utf-8", "surrogatepass"), st.text())
)
@example(b"[" * 50_000)
@example(b'{"view": "v__v1", "key": "\\ud800", "requested_at": 1}')
@example(b'{"view": "v__v1", "key": "k", "requested_at": 1' + b"0" * 5000 + b"}")
def test_any_bytes_are_a_request_of_the_topic_or_malformed(message: bytes) -> None:
    try:
        request = EmbedRequest.decode(message)
    except MalformedMessage:
        return
    assert EmbedRequest.decode(request.encode()) == request
    for spec in SPECS:
        canonical_or_refused(spec, request.key)


def canonical_or_refused(spec: EncoderSpec, key: str) -> None:
    """A key is refused, or has one form for good, which can be stored."""
    try:
        canonical = canonical_key(spec, key)
    except KeyRefused:
        return
    assert canonical_key(spec, canonical) == canonical
    assert 0 < len(canonical.encode()) <= MAX_KEY_BYTES


URLS = st.builds(
    "".join,
    st.lists(
        st.sampled_from(["http", "HTTPS", "file", "s3", "data", ":", "//", "/", "..", "%2e", "%", "@", "[", "]", "?"])
        | st.sampled_from(["#", ",", "a.example", "bücher", "\\", ";base64", "%00", "%ff", ":80", "::1", "xn--"])
        | st.text(max_size=3),
        max_size=10,
    ),
)


@settings(max_examples=200)
@given(URLS)
def test_any_url_is_refused_or_has_one_form_for_good(key: str) -> None:
    canonical_or_refused(SPECS[0], key)
