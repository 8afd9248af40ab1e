import subprocess
import sys
import unicodedata
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from encoders.encoder import DecodeError, Encoder
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from encoders.text import BUCKETS, KnownTokens, TextNetwork, token_index, tokens

ROOT = Path(__file__).parents[2]
SPEC = EncoderSpec(name="t", version="v1", modality="text", dim=32, network="text_lstm", pinned="seeded:0")
TITLES = ["A red bicycle", "a red bicycle, as good as new", "Coffee & cake", "猫の写真", "🚲", "x " * 500, "?"]


@cache
def loaded() -> Encoder:
    return load_encoder(SPEC, "cpu")


@pytest.fixture
def encoder() -> Encoder:
    return loaded()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A red Bicycle!", ["a", "red", "bicycle", "!"]),
        ("snake_case x2", ["snake_case", "x2"]),
        ("3.5 kg", ["3", ".", "5", "kg"]),
        ("don't", ["don", "'", "t"]),
        ("Übergröße ÉCLAIR", ["übergröße", "éclair"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs are marks, and belong to the word
        ("猫の写真", ["猫", "の", "写", "真"]),
        ("iPhone手机壳", ["iphone", "手", "机", "壳"]),
        ("nice 🚲🚲", ["nice", "🚲", "🚲"]),
        ("\t\n ", []),
    ],
)
def test_texts_fall_into_words_and_signs(text: str, expected: list[str]) -> None:
    assert list(tokens(text)) == expected


@given(st.text())
def test_no_character_but_white_space_is_lost(text: str) -> None:
    lowered = text.lower()
    assert "".join(tokens(text)) == "".join(c for c in lowered if not c.isspace())


@given(st.text(st.characters(codec="ascii")))
def test_a_text_falls_apart_in_the_same_way_where_it_is_not_ascii_alone(text: str) -> None:
    assert list(tokens(f"{text} é")) == [*tokens(text), "é"]


@given(st.text(st.characters(codec="utf-8"), min_size=1))
def test_indices_are_within_the_table_and_never_padding(token: str) -> None:
    assert 1 <= token_index(token) <= BUCKETS


def test_hashes_are_the_same_for_ever() -> None:
    assert [token_index(token) for token in ("a", "bicycle", "猫")] == [30785, 19328, 9529]


def test_an_embedding_does_not_depend_on_its_batch(encoder: Encoder) -> None:
    inputs = [encoder.prepare(title.encode()) for title in TITLES]
    together = encoder.encode(inputs)
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    assert together.shape == (len(TITLES), 32)
    assert together.dtype == np.float32
    np.testing.assert_allclose(together, alone, atol=1e-5, rtol=0)
    assert encoder.encode(inputs).tobytes() == together.tobytes()


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=200))
def test_any_text_has_a_finite_embedding(text: str) -> None:
    encoder = loaded()
    vector = encoder.encode([encoder.prepare(text.encode())])
    assert np.isfinite(vector).all()
    assert np.abs(vector).max() > 0


def test_different_texts_have_different_embeddings_and_like_ones_like_ones(encoder: Encoder) -> None:
    vectors = encoder.encode([encoder.prepare(t.encode()) for t in TITLES])
    distances = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    assert distances[~np.eye(len(TITLES), dtype=bool)].min() > 1e-2
    assert distances[0].argsort()[1] == 1


def test_word_order_and_padding_matter_as_they_should(encoder: Encoder) -> None:
    dog_bites, man_bites = (encoder.prepare(t) for t in (b"dog bites man", b"man bites dog"))
    vectors = encoder.encode([dog_bites, man_bites])
    assert np.abs(vectors[0] - vectors[1]).max() > 1e-3


def test_only_the_first_tokens_count() -> None:
    short = load_encoder(
        EncoderSpec(
            name="t",
            version="v1",
            modality="text",
            dim=8,
            network="text_lstm",
            preprocessing="tokens:3",
            pinned="seeded:0",
        ),
        "cpu",
    )
    assert short.prepare(b"a b c d e").tolist() == short.prepare(b"a b c").tolist()
    assert len(load_encoder(SPEC, "cpu").prepare(b"x " * 500)) == 64


def test_bytes_that_are_no_utf8_are_refused(encoder: Encoder) -> None:
    with pytest.raises(DecodeError, match="UTF-8"):
        encoder.prepare(b"\xff\xfe")


def test_texts_are_read_whole_as_packed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = TextNetwork(32).eval()
        count_B = torch.tensor([5, 1, 30, 30, 17])
        index_BT = torch.randint(1, BUCKETS, (5, 30)) * (torch.arange(30) < count_B[:, None])
    packed_BD = network(index_BT, count_B)  # with gradients, as training reads
    with torch.inference_mode():
        torch.testing.assert_close(network(index_BT, count_B), packed_BD.detach(), atol=1e-5, rtol=1e-5)
        whole_BTE, packed_BTE = network._read_whole(index_BT, count_B), network._read_packed(index_BT, count_B)
        for whole_TE, packed_TE, count in zip(whole_BTE, packed_BTE, count_B, strict=True):
            torch.testing.assert_close(whole_TE[:count], packed_TE[:count], atol=1e-5, rtol=1e-5)
    assert packed_BD.requires_grad


def test_bfloat16_runs() -> None:
    spec = EncoderSpec(
        name="t", version="v1", modality="text", dim=32, network="text_lstm", dtype="bfloat16", pinned="seeded:0"
    )
    half, full = load_encoder(spec, "cpu"), load_encoder(SPEC, "cpu")
    inputs = [full.prepare(title.encode()) for title in TITLES]
    exact = full.encode(inputs)
    assert np.abs(half.encode(inputs) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_seed_gives_the_same_bytes_in_another_process(encoder: Encoder) -> None:
    code = (
        "from encoders.loading import load_encoder; from encoders.spec import EncoderSpec\n"
        "spec = EncoderSpec(name='t', version='v1', modality='text', dim=32, network='text_lstm', pinned='seeded:0')\n"
        "encoder = load_encoder(spec, 'cpu')\n"
        "print(encoder.encode([encoder.prepare(b'a red bicycle')]).tobytes().hex())"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert bytes.fromhex(done.stdout) == encoder.encode([encoder.prepare(b"a red bicycle")]).tobytes()


def test_case_is_folded_as_unicode_says(encoder: Encoder) -> None:
    upper = unicodedata.normalize("NFC", "ÉCLAIR")
    assert encoder.prepare(upper.encode()).tolist() == encoder.prepare("éclair".encode()).tolist()


def test_the_indices_of_tokens_that_are_kept_are_those_that_are_hashed_and_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("encoders.text.KNOWN_TOKENS", 3)
    known = KnownTokens(1000)
    seen = ["a", "b", "a", "c" * 33, "c", "d", "a", "e"]
    assert [known[token] for token in seen] == [token_index(token, 1000) for token in seen]
    assert list(known) == ["d", "a", "e"]
