import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.downloads import WeightsUnavailable
from encoders.encoder import DecodeError
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec, SpecError
from encoders.weights import check_unchanged, pin_weights
from tests.encoders.families import TITLES, contents, in_dtype, loaded, pinned, sentence_model, silent


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> EncoderSpec:
    return sentence_model(tmp_path_factory.mktemp("sentences"))


def test_texts_are_embedded_as_the_library_embeds_them(tiny: EncoderSpec) -> None:
    from sentence_transformers import SentenceTransformer

    encoder = loaded(tiny)
    with torch.inference_mode():
        expected = SentenceTransformer(tiny.weights, device="cpu").encode(TITLES)
    vectors = encoder.encode([encoder.prepare(text) for text in contents(tiny)])
    np.testing.assert_allclose(vectors, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-2)])
def test_an_embedding_does_not_depend_on_its_batch(dtype: str, tolerance: float, tiny: EncoderSpec) -> None:
    encoder = loaded(in_dtype(tiny, dtype))
    inputs = [encoder.prepare(text) for text in contents(tiny)]
    together = encoder.encode(inputs)
    alone = np.concatenate([encoder.encode([one]) for one in inputs])
    assert (np.linalg.norm(together - alone, axis=1) < tolerance * np.linalg.norm(alone, axis=1)).all()
    assert encoder.encode(inputs).tobytes() == together.tobytes()


def test_texts_are_prepared_on_many_threads_at_once(tiny: EncoderSpec) -> None:
    encoder = loaded(tiny)
    texts = contents(tiny) * 20
    with ThreadPoolExecutor(8) as threads:
        prepared = list(threads.map(encoder.prepare, texts))
    assert all(torch.equal(one, encoder.prepare(text)) for one, text in zip(prepared, texts, strict=True))


def test_only_the_first_tokens_count(tiny: EncoderSpec) -> None:
    long = b"red " * 100
    assert len(loaded(tiny).prepare(long)) == 32
    assert len(loaded(replace(tiny, preprocessing="tokens:8")).prepare(long)) == 8
    with pytest.raises(SpecError, match="at most tokens:32"):
        pinned(replace(tiny, preprocessing="tokens:33"))


def test_bytes_that_are_no_utf8_are_refused(tiny: EncoderSpec) -> None:
    with pytest.raises(DecodeError, match="UTF-8"):
        loaded(tiny).prepare(b"\xff")


def test_the_hubs_model_is_pinned_with_its_commit_and_all_its_files(tiny: EncoderSpec, tmp_path: Path) -> None:
    folder = tmp_path / "models--sentence-transformers--tiny" / "snapshots" / "c0ffee"
    shutil.copytree(tiny.weights, folder)
    asked: list[str] = []

    def downloaded(address: str) -> Path:
        asked.append(address)
        return folder

    spec = pin_weights(replace(tiny, weights="DEFAULT"), silent, download=downloaded)
    assert spec.pinned.startswith("hf://sentence-transformers/tiny@c0ffee#")
    assert load_encoder(spec, "cpu", download=downloaded).spec == spec
    assert asked == ["hf://sentence-transformers/tiny", "hf://sentence-transformers/tiny@c0ffee"]
    (folder / "1_Pooling" / "config.json").write_text('{"embedding_dimension": 32, "pooling_mode": "max"}')
    assert load_encoder(spec, "cpu", download=downloaded).spec.fingerprint != spec.fingerprint


def test_a_folder_that_has_changed_is_noticed_at_apply(tiny: EncoderSpec, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny.weights, folder)
    spec = pinned(replace(tiny, weights=str(folder)))
    check_unchanged(spec)
    (folder / "modules.json").write_text((folder / "modules.json").read_text() + "\n")
    with pytest.raises(SpecError, match="version v2"):
        check_unchanged(spec)
    shutil.rmtree(folder)
    check_unchanged(spec)  # it lies elsewhere, perhaps
    with pytest.raises(WeightsUnavailable, match="no folder"):
        loaded(spec)


def test_wrong_declarations_say_what_is_allowed(tiny: EncoderSpec, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="dim=33 is not allowed"):
        pinned(replace(tiny, dim=33))
    with pytest.raises(SpecError, match="the path of a folder of a model"):
        pinned(replace(tiny, weights=str(tmp_path / "nothing")))
    (tmp_path / "modules.json").write_text("{")
    with pytest.raises(SpecError, match="is no model of sentence-transformers"):
        pinned(replace(tiny, weights=str(tmp_path)))


def test_without_the_library_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = EncoderSpec(name="s", version="v1", modality="text", dim=32, network="sentence-transformers:tiny")
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(SpecError, match="uv sync --extra sentence-transformers"):
        pin_weights(spec, silent)
