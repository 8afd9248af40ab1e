import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from encoders.keys import MAX_KEY_BYTES, PLAIN_URL, KeyRefused, _canonical_url, canonical_key
from encoders.spec import EncoderSpec

IMAGE = EncoderSpec(name="i", version="v1", modality="image", dim=4, network="torchvision:resnet18")
SIGNED = EncoderSpec(
    name="i", version="v1", modality="image", dim=4, network="torchvision:resnet18", drop_query_params=("sig",)
)
TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=4, network="text_lstm")


@pytest.mark.parametrize(
    ("written", "canonical"),
    [
        ("http://a.example", "http://a.example/"),
        ("HTTP://A.Example:80/x", "http://a.example/x"),
        ("https://a.example:443/x#part", "https://a.example/x"),
        ("https://a.example:8443/x", "https://a.example:8443/x"),
        ("http://a.example/a/./b/../c", "http://a.example/a/c"),
        ("http://a.example/../../x", "http://a.example/x"),
        ("http://a.example/%7euser/%c3%a9", "http://a.example/~user/%C3%A9"),
        ("http://a.example/é", "http://a.example/%C3%A9"),
        ("http://a.example/100%", "http://a.example/100%25"),
        ("http://bücher.example/", "http://xn--bcher-kva.example/"),
        ("http://[2001:DB8::1]:8080/", "http://[2001:db8::1]:8080/"),
        ("http://a.example/x?b=2&a=1", "http://a.example/x?b=2&a=1"),
        ("  http://a.example/x\n", "http://a.example/x"),
        ("http://a.example/a/%2e%2E/b", "http://a.example/b"),
        ("FILE://localhost/a/../b%7e/c%2fd.jpg#x", "file:///b~/c%2Fd.jpg"),
        ("S3://bucket/a/./b/é", "s3://bucket/a/b/%C3%A9"),
        ("s3://bucket/a/%c3%a9", "s3://bucket/a/%C3%A9"),
        ("DATA:image/png;base64,iVBOR+/=#x", "data:image/png;base64,iVBOR+/="),
    ],
)
def test_urls_of_one_resource_have_one_key(written: str, canonical: str) -> None:
    assert canonical_key(IMAGE, written) == canonical


@pytest.mark.parametrize("spec", [IMAGE, TEXT])
def test_half_a_surrogate_pair_is_refused_wherever_it_stands(spec: EncoderSpec) -> None:
    for key in ("http://a.example/\udc80", "http://\udc80.example/", "http://a.example/?q=\udc80"):
        with pytest.raises(KeyRefused, match="surrogate"):
            canonical_key(spec, key)


def test_signatures_that_a_view_drops_do_not_make_an_input_new() -> None:
    assert canonical_key(SIGNED, "http://a.example/x?w=1&sig=abc&v=%20") == "http://a.example/x?w=1&v=%20"
    assert canonical_key(IMAGE, "http://a.example/x?w=1&sig=abc") == "http://a.example/x?w=1&sig=abc"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "empty"),
        ("   ", "empty"),
        ("ftp://a.example/x", "http"),
        ("data:image/png;base64", "comma"),
        ("file://host/a.jpg", "names no host"),
        ("file:a.jpg", "whole path"),
        ("file:///a.jpg?x", "%3F"),
        ("s3:///a.jpg", "bucket"),
        ("s3://key:secret@bucket/a.jpg", "bucket"),
        ("s3://bucket/a.jpg?versionId=1", "%3F"),
        ("a.example/x.jpg", "http"),
        ("http:///x", "no host"),
        ("http://user:secret@a.example/", "user name"),
        ("http://a.example/a b", "white space"),
        ("http://a.example:99999/", "Port"),
        ("http://[::1/", "URL"),
        ("http://a.example/\0", "NUL"),
        ("http://a.example/" + "x" * MAX_KEY_BYTES, "8192 are allowed"),
        ("http://a.example/" + "x" * 1_000_000, "8192"),
    ],
)
def test_what_can_name_no_image_is_refused_with_a_reason(url: str, why: str) -> None:
    with pytest.raises(KeyRefused, match=why):
        canonical_key(IMAGE, url)


def test_composed_and_decomposed_text_is_one_text() -> None:
    assert canonical_key(TEXT, " cafe\u0301 ") == canonical_key(TEXT, "caf\u00e9")


@pytest.mark.parametrize("text", ["", "\n\t ", "a\0b", "\ud800", "é" * MAX_KEY_BYTES])
def test_text_that_cannot_be_a_key_is_refused(text: str) -> None:
    with pytest.raises(KeyRefused):
        canonical_key(TEXT, text)


@given(st.text())
def test_any_text_is_refused_or_canonical_for_good(text: str) -> None:
    try:
        key = canonical_key(TEXT, text)
    except KeyRefused:
        return
    assert canonical_key(TEXT, key) == key
    assert "\0" not in key
    assert len(key.encode()) <= MAX_KEY_BYTES


@given(st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1).filter(str.strip))
def test_plain_texts_are_canonical_as_any_other(text: str) -> None:
    assert canonical_key(TEXT, text) == unicodedata.normalize("NFC", text.strip())


PARTS = st.text() | st.text(alphabet="ab/.%2eEfF5?#é:@[]")


@given(
    st.builds(
        "{}/{}?{}".format,
        st.sampled_from(["http://A.example", "HTTP://b:81", "file://", "s3://bucket", "data:,", "http://"]),
        PARTS,
        PARTS,
    )
    | st.builds("{}{}".format, st.sampled_from(["http://", "file:///", "s3://bucket/", "data:,", "https://["]), PARTS)
)
@example("file:////0")
@example("file:////")
def test_any_url_is_refused_or_canonical_for_good(url: str) -> None:
    try:
        key = canonical_key(SIGNED, url)
    except KeyRefused:
        return
    assert canonical_key(SIGNED, key) == key
    assert key.isascii()


@given(st.from_regex(PLAIN_URL, fullmatch=True))
def test_urls_that_are_taken_for_canonical_at_a_glance_are(url: str) -> None:
    assert _canonical_url(IMAGE, url) == url


@pytest.mark.parametrize(
    "url",
    "http://a/.. http://a/. http://a/b/../c http://a/./ http://a http://a/? http://a/..?x"
    " http://a:80/ https://a:443/x http://a:007/ http://a:/".split(),
)
def test_urls_that_are_not_canonical_are_not_taken_for_it(url: str) -> None:
    assert PLAIN_URL.fullmatch(url) is None
    assert PLAIN_URL.fullmatch(canonical_key(IMAGE, url)) is not None


def test_a_url_of_a_view_that_drops_parameters_is_taken_apart() -> None:
    assert canonical_key(SIGNED, "http://a.example/x?sig=1") == "http://a.example/x"
