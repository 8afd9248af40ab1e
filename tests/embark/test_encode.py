import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from feast import FeatureStore

from embark.encode import encode
from embark.encoders import encoders, sample
from embark.servers import free_port
from embark.settings import Settings
from encoders.loading import load_encoder
from encoders.spec import EncoderSpec
from feature_repo.views import encoder_specs, feast_objects
from tests.encoders.families import LSTM, image_checkpoint
from tests.encoders.pictures import file_of, photographs
from tests.encoders.web import serving

LOOPBACK = ("--allow-network", "127.0.0.0/8")


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """A repo with a small encoder of each modality, and a Retina address where nobody is."""
    folder = tmp_path_factory.mktemp("repo")
    (folder / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\n"
        "online_store: {type: sqlite, path: online.db}\n"
        "offline_store: {type: feature_repo.offline_store.EmbeddingOfflineStore}\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(folder))
    declared = [LSTM, image_checkpoint(folder)]
    store.apply(list(feast_objects(declared, {}, kafka="broker:9092", repo=folder).values()))
    return Settings(repo=folder, retina_address=f"127.0.0.1:{free_port()}", device="cpu")


def registered(settings: Settings, view: str) -> EncoderSpec:
    return encoder_specs(FeatureStore(repo_path=str(settings.repo)), allow_cache=False)[view]


def run(command: click.Command, settings: Settings, *arguments: object, given: str | None = None) -> Result:
    return CliRunner().invoke(command, [str(each) for each in arguments], obj=settings, input=given)


def test_files_and_urls_are_embedded_in_order_and_failures_are_named(settings: Settings, tmp_path: Path) -> None:
    jpegs = {name: file_of(picture) for name, picture in photographs().items()}
    (tmp_path / "cat.jpg").write_bytes(jpegs["cat"])
    (tmp_path / "page.jpg").write_bytes(b"<html>")
    with serving({"/coffee.jpg": jpegs["coffee"]}) as site:
        inputs = [
            tmp_path / "cat.jpg",
            site.url("/gone.jpg"),
            site.url("/coffee.jpg"),
            tmp_path / "page.jpg",
            tmp_path / "missing.jpg",
            "http://10.0.0.1/inside.jpg",
            "ftp://a.example/x.jpg",
        ]
        path = tmp_path / "out.parquet"
        done = run(encode, settings, "--view", "conv__v1", "--out", path, "--json", *LOOPBACK, *inputs)
    assert done.exit_code == 1, done.output
    summary = json.loads(done.stdout)
    assert (summary["inputs"], summary["embedded"], summary["failed"]) == (7, 2, 5)
    assert [f["reason"] for f in summary["failures"]] == [
        "NotFound", "DecodeError", "NotFound", "Blocked", "KeyRefused"
    ]  # fmt: skip
    assert summary["pretrained"]
    table = pq.read_table(path)
    rows = table.to_pylist()
    assert [row["input"] for row in rows] == [str(each) for each in inputs]
    spec = registered(settings, "conv__v1")
    encoder = load_encoder(spec, "cpu")
    for row, name in ((rows[0], "cat"), (rows[2], "coffee")):
        expected = encoder.encode([encoder.prepare(jpegs[name])])[0]
        np.testing.assert_allclose(np.array(row["embedding"], dtype=np.float32), expected, rtol=1e-4, atol=1e-6)
        assert row["error"] is None
        assert len(row["content_hash"]) == 32
    assert rows[1]["embedding"] is None
    assert rows[1]["error"].startswith("NotFound: the server answers 404")
    assert table.schema.metadata[b"embark.fingerprint"].decode() == spec.fingerprint


def test_texts_of_a_pipe_or_a_file_become_a_matrix(settings: Settings, tmp_path: Path) -> None:
    titles = ["a red bicycle", "a cup of coffee", "a red bicycle"]
    (tmp_path / "titles.txt").write_text("\n".join(titles) + "\n\n")
    matrices = []
    for given, stdin in (("-", "\n".join(titles)), (tmp_path / "titles.txt", None)):
        done = run(encode, settings, "--view", LSTM.view, "--out", tmp_path / "titles.npy", given, given=stdin)
        assert done.exit_code == 0, done.output
        assert "3 embedded" in done.stdout
        assert "NOT pretrained" in done.stdout
        matrices.append(np.load(tmp_path / "titles.npy"))
    assert matrices[0].shape == (3, LSTM.dim)
    assert matrices[0].dtype == np.float32
    assert np.array_equal(matrices[0], matrices[1])
    assert np.array_equal(matrices[0][0], matrices[0][2])


def test_failed_rows_of_a_matrix_are_nan_and_nothing_else_is_left(settings: Settings, tmp_path: Path) -> None:
    done = run(encode, settings, "--view", "conv__v1", "--out", tmp_path / "a.npy", tmp_path / "none.jpg")
    assert done.exit_code == 1
    assert "NotFound" in done.stdout
    assert np.isnan(np.load(tmp_path / "a.npy")).all()
    assert [path.name for path in tmp_path.iterdir()] == ["a.npy"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--view", "nope__v1", "--out", "a.npy", "x"], "known are: conv__v1, lstm__v1"),
        (["--view", LSTM.view, "--out", "a.csv", "x"], ".parquet or .npy"),
        (["--view", LSTM.view, "--out", "no/such/folder/a.npy", "x"], "there is no folder"),
        (["--view", LSTM.view, "--out", "a.npy", "no-such-file.txt"], "no-such-file.txt"),
    ],
)
def test_a_wrong_call_says_what_is_wrong(
    arguments: list[str], message: str, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run(encode, settings, *arguments)
    assert done.exit_code != 0
    assert message in " ".join(done.output.split())
    assert list(tmp_path.iterdir()) == []


def test_the_registered_encoders_are_listed_where_no_retina_answers(settings: Settings) -> None:
    done = run(encoders, settings, "--json")
    assert done.exit_code == 0, done.output
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    assert [(each["view"], each["modality"], each["dim"]) for each in listed] == [
        ("conv__v1", "image", 16),
        ("lstm__v1", "text", 32),
    ]
    assert [each["pretrained"] for each in listed] == [True, False]
    assert all(each["retina"] is None for each in listed)
    assert listed[0]["fingerprint"] == registered(settings, "conv__v1").fingerprint
    assert settings.retina_address in done.stderr
    shown = run(encoders, settings).stdout
    assert "NOT pretrained" in shown
    assert "does not answer" in shown


def test_speeds_are_those_of_this_machine(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embark.encoders.MEASURE_SECONDS", 0.05)
    listed = json.loads(run(encoders, settings, "--json", "--measure").stdout)
    assert all(each["keys_per_second"] > 0 for each in listed)
    assert len(sample(registered(settings, "conv__v1"))) == 36


def test_an_empty_registry_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "feature_store.yaml").write_text(
        "project: shop\nprovider: local\nregistry: registry.db\nonline_store: {type: sqlite, path: online.db}\n"
        "entity_key_serialization_version: 3\n"
    )
    done = run(encoders, Settings(repo=tmp_path, retina_address=f"127.0.0.1:{free_port()}"))
    assert done.exit_code == 0, done.output
    assert "embark apply" in done.stdout
