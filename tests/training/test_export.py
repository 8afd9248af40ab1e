"""A component that leaves the model computes outside of it what it computed inside."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from encoders.encoder import Encoder
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from encoders.weights import pin_weights
from tests.training.logs import COLOURS, TITLES, impressions, picture, write_log
from training.config import Config, load_config
from training.examples import Examples, Inputs, Rows, examples
from training.export import Exported, declaration, declare, export
from training.inputs import inputs
from training.predict import predict
from training.prepare import prepare
from training.saved import ModelError, Trained, load_model
from training.train import train


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    write_log(folder)
    return folder


@pytest.fixture(scope="module")
def trained(log: Path) -> Trained:
    config: Config = load_config(log / "ctr.toml")
    return train(config, prepare(config), log / "run").trained


def looked_up(whole: Examples, part: str, vectors: np.ndarray) -> Examples:
    """The same examples, with a part's embeddings in the place of what its network takes."""
    table = Rows((np.concatenate([np.zeros_like(vectors[:1]), vectors]),))
    return replace(whole, parts=dict(whole.parts) | {part: Inputs(table=table, row_N=whole.parts[part].row_N)})


def in_retina(exported: Exported) -> Encoder:
    """The exported encoder, declared, pinned and loaded as `feast apply` and Retina do."""
    declared: EncoderSpec = eval(exported.declaration)  # noqa: S307 - as the catalog holds it
    return load_encoder(pin_weights(declared, lambda line: None), "cpu")


def test_encoder_and_rest_together_score_as_the_whole_did(trained: Trained, tmp_path: Path) -> None:
    """Both components, one after the other: what Retina answers for each distinct input is what the rest looks up."""
    shown = impressions(400, seed=9)
    whole = examples(shown, inputs(shown, trained.config, None), trained.vocabularies)
    expected = predict(trained.model, whole)
    image = export(trained, "image", "ctr_image", "v1", tmp_path)
    retina = in_retina(image)
    # the distinct pictures in the order in which they first come
    first = list(dict.fromkeys(i for i in shown.values("item_id")))
    prepared = [retina.prepare(picture(COLOURS[int(str(i)) % 2])) for i in first]
    composed = load_model(image.model)
    assert composed.config.views == {"image": "ctr_image__v1"}
    with_vectors = looked_up(whole, "image", retina.encode(prepared))
    found = predict(composed.model, with_vectors)
    assert (found.moments()[0] - expected.moments()[0]).abs().max() < 1e-4
    assert (found.moments()[1] - expected.moments()[1]).abs().max() < 1e-4

    text = export(composed, "text", "ctr_text", "v2", tmp_path)
    reader = in_retina(text)
    titles = list(dict.fromkeys(shown.values("text")))
    vectors = reader.encode([reader.prepare(str(title).encode()) for title in titles])
    both = load_model(text.model)
    assert both.config.learned == ()
    found = predict(both.model, looked_up(with_vectors, "text", vectors))
    assert (found.moments()[0] - expected.moments()[0]).abs().max() < 1e-4
    assert set(map(str, titles)) == set(TITLES)


def test_the_learned_oov_embedding_goes_with_the_rest(trained: Trained, tmp_path: Path) -> None:
    composed = load_model(export(trained, "text", "words", "v1", tmp_path).model)
    assert trained.model.part("text").oov_embedding.abs().max() > 0
    assert torch.equal(composed.model.part("text").oov_embedding, trained.model.part("text").oov_embedding)


def test_a_declaration_is_what_the_catalog_takes(trained: Trained, tmp_path: Path) -> None:
    exported = export(trained, "image", "ctr_image", "v1", tmp_path)
    catalog = tmp_path / "catalog.py"
    catalog.write_text("ENCODERS = []\n")
    declare(catalog, exported.declaration)
    declared: dict[str, object] = {"EncoderSpec": dict}
    exec(catalog.read_text(), declared)  # noqa: S102 - a file that this test wrote
    assert declared["ENCODERS"] == [
        {
            "name": "ctr_image",
            "version": "v1",
            "modality": "image",
            "dim": 6,
            "network": f"checkpoint:{exported.encoder}",
        }
    ]
    assert "'" not in declaration("a", "v1", "text", 3, Path("/with 'quotes'")).replace("'quotes'", "")


@pytest.mark.parametrize(
    ("component", "name", "version", "said"),
    [
        ("image", "Ours", "v1", "--name 'Ours' is not allowed: lower-case words"),
        ("image", "ours", "1", "--version '1' is not allowed: v1, v2"),
    ],
)
def test_a_wrong_name_or_version_is_refused(
    trained: Trained, tmp_path: Path, component: str, name: str, version: str, said: str
) -> None:
    with pytest.raises(ModelError, match=said):
        export(trained, component, name, version, tmp_path)


def test_a_version_never_changes_and_only_what_was_learned_is_exported(trained: Trained, tmp_path: Path) -> None:
    exported = export(trained, "image", "ours", "v1", tmp_path)
    with pytest.raises(ModelError, match="a version never changes: export as v2"):
        export(trained, "image", "ours", "v1", tmp_path)
    with pytest.raises(ModelError, match="this model's image is 'ours__v1', not learned; learned are: text"):
        export(load_model(exported.model), "image", "ours", "v2", tmp_path)
