"""`embark oov`, as far as it needs no server; `tests/integration/test_exported_model.py` sets one on real servers."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

from embark.cli import cli
from tests.embark.test_backfill import TEXT, repo  # noqa: F401 - a fixture
from tests.training.logs import write_log
from training.saved import new_model, save_model
from training.vocabulary import Vocabulary


def invoke(folder: Path, *arguments: str | Path) -> Result:
    given = ["oov", "set", "--view", TEXT.view, *map(str, arguments)]
    return CliRunner(env={"EMBARK_REPO": str(folder)}).invoke(cli, given)


def refused(result: Result, code: int = 2) -> str:
    assert result.exit_code == code, result.output
    return " ".join(result.stderr.split())


def test_what_cannot_be_set_is_told_before_any_server_is_asked(repo: Path, tmp_path: Path) -> None:  # noqa: F811
    assert "which one? Give one of" in refused(invoke(repo))
    assert "which one? Give one of" in refused(invoke(repo, "--zeros", "--checkpoint", tmp_path))
    np.save(tmp_path / "short.npy", np.ones(5, dtype=np.float32))
    assert "an embedding of text_lstm__v1 has (256,)" in refused(invoke(repo, "--from", tmp_path / "short.npy"))
    (tmp_path / "words.npy").write_text("no array")
    assert "is no array of numpy" in refused(invoke(repo, "--from", tmp_path / "words.npy"))
    np.savez(tmp_path / "two.npz", a=np.ones(1), b=np.ones(1))
    assert "holds several arrays" in refused(invoke(repo, "--from", tmp_path / "two.npz"))
    other = CliRunner(env={"EMBARK_REPO": str(repo)}).invoke(cli, ["oov", "show", "--view", "no__v1"])
    assert "known are: text_lstm__v1" in refused(other)


@pytest.mark.parametrize("text", ["none", "other__v1"])
def test_a_model_that_takes_nothing_from_the_view_is_told(repo: Path, tmp_path: Path, text: str) -> None:  # noqa: F811
    config = write_log(tmp_path / "log", count=1).changed(image="none", text=text)
    words = {"item": {"publisher": Vocabulary(("p",))}, "context": {"hour": Vocabulary(("1",))}}
    save_model(tmp_path / "model.pt", new_model(config, words, {"text": 256} if config.views else {}))
    said = refused(invoke(repo, "--checkpoint", tmp_path / "model.pt"))
    assert "takes nothing from text_lstm__v1; it has " + ("no view" if text == "none" else text) in said
