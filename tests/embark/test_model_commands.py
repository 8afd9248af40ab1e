"""`embark train`, `evaluate`, `export` and `rank`, one after the other, on a tiny log."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner, Result

from embark import rank as rank_command
from embark.cli import cli
from feature_repo.embeddings import Status
from serving.client import Answer
from tests.training.logs import write_log
from training.config import load_config
from training.saved import load_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("commands")
    write_log(home, count=300)
    return home


def embark(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments], catch_exceptions=False)


@pytest.fixture(scope="module")
def run(folder: Path) -> Path:
    done = embark("train", folder / "ctr.toml", "--run", folder / "run", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert (found["stopped"], len(found["epochs"])) == (False, 3)
    return folder / "run"


def test_a_run_goes_on_or_is_begun_anew(folder: Path, run: Path) -> None:
    again = embark("train", folder / "ctr.toml", "--run", run)
    assert again.exit_code == 0
    assert "best in epoch" in again.stdout
    (folder / "other.toml").write_text((folder / "ctr.toml").read_text().replace("width = 16", "width = 8"))
    refused = embark("train", folder / "other.toml", "--run", run)
    assert refused.exit_code == 1
    assert "holds a run of another config (model.width differ)" in refused.stderr
    other = folder / "other-run"
    assert embark("train", folder / "ctr.toml", "--run", other).exit_code == 0
    assert embark("train", folder / "other.toml", "--run", other, "--restart").exit_code == 0
    assert load_model(other).config.model.width == 8


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train", "nowhere.toml"], "nowhere.toml: No such file or directory"),
        (["export", "{run}", "--component", "image", "--name", "No", "--version", "v1"], "--name 'No' is not allowed"),
        (["rank", "{run}", "--from", "{folder}/test.parquet"], "bring it into the archive with `embark export`"),
    ],
)
def test_mistakes_are_one_line(folder: Path, run: Path, arguments: list[str], said: str) -> None:
    done = embark(*(each.format(run=run, folder=folder) for each in arguments))
    assert done.exit_code == 1
    assert said in " ".join(done.stderr.split())


def test_an_evaluation_is_figures_and_pictures(run: Path) -> None:
    done = embark("evaluate", run, "--baselines", "--json")
    assert done.exit_code == 0, done.output
    report: dict[str, Any] = json.loads((run / "evaluation" / "report.json").read_text())
    assert set(report["slices"]) == {"all", "embedded", "oov"}  # the last item's picture does not exist
    clicks, density = report["slices"]["all"]["clicks"], report["slices"]["all"]["density"]
    assert clicks["impressions"] == 300
    assert sum(report["slices"][name]["clicks"]["impressions"] for name in ("embedded", "oov")) == 300
    assert 0 < clicks["log_loss"] < 1
    assert 0.8 < density["coverage_90%"] <= 1
    assert set(report["baselines"]) == {
        "logistic regression on ids",
        "no image",
        "no text",
        "the true CTR (the limit)",
    }
    assert report["baselines"]["the true CTR (the limit)"]["log_loss"] < clicks["log_loss"]
    assert len(report["learning_curve"]) == 3
    pictures = sorted(path.name for path in (run / "evaluation").glob("*.png"))
    assert pictures == ["calibration.png", "clicks.png", "coverage.png", "learning_curve.png"]
    assert "logistic regression on ids" in embark("evaluate", run).stdout


class FakeClient:
    """Stands where `EmbArkClient` does: a vector for each key, OOV for the third title."""

    def __init__(self, address: str, dims: Mapping[str, int]) -> None:
        self._dims = dims

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None: ...

    def lookup_many(
        self, views: Sequence[str], columns: Mapping[str, Sequence[str]], timeout: float
    ) -> dict[str, Answer]:
        return {view: self._answer(view, columns["image_url" if "image" in view else "text"]) for view in views}

    def _answer(self, view: str, keys: Sequence[str]) -> Answer:
        status = np.array([Status.OOV if "secrets" in key else Status.HIT for key in keys], np.uint8)
        return Answer(
            vectors=np.ones((len(keys), self._dims[view]), np.float32),
            status=status,
            embedding_id=np.arange(len(keys)),
            event_time=np.zeros(len(keys), np.int64),
            failures={},
            weights="seeded:0",
        )


def test_a_model_whose_components_are_encoders_ranks(folder: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = folder / "repo"
    repo.mkdir()
    (repo / "catalog.py").write_text("ENCODERS = []\n")
    monkeypatch.setenv("EMBARK_REPO", str(repo))
    first = embark("export", run, "--component", "image", "--name", "ctr_image", "--version", "v1", "--declare")
    assert first.exit_code == 0, first.output
    assert 'network="checkpoint:' in (repo / "catalog.py").read_text()
    composed = run / "on_ctr_image__v1"
    second = embark("export", composed, "--component", "text", "--name", "ctr_text", "--version", "v1", "--json")
    model = json.loads(second.stdout)["model"]

    monkeypatch.setattr(
        "serving.client.EmbArkClient", lambda address: FakeClient(address, {"ctr_image__v1": 6, "ctr_text__v1": 5})
    )
    shown = pd.read_parquet(folder / "test.parquet").drop_duplicates("item_id")[["image_url", "text", "publisher"]]
    shown.to_csv(folder / "candidates.csv", index=False)
    asked = ("rank", model, "--from", folder / "candidates.csv", "--context", "hour=1", "--budget", "60")
    done = embark(*asked, "--top", "3", "--explore", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    scores = [each["score"] for each in found["candidates"]]
    assert len(scores) == 3
    assert scores == sorted(scores, reverse=True)
    assert found["candidates"][0]["score"] > found["candidates"][0]["ctr"]
    assert set(found["candidates"][0]["embedding_id"]) == {"ctr_image__v1", "ctr_text__v1"}
    table = embark(*asked)
    assert f"{len(shown)} candidates in" in table.stdout
    assert "text OOV" in table.stdout
    assert "the model's context has no place" in embark(*asked, "--context", "place=here").stderr
    assert "is no COLUMN=VALUE" in embark(*asked, "--context", "hour").stderr


def test_candidates_are_read_from_a_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("image_url,text\nhttps://a.example/1.jpg,\n,NA\n"))
    assert rank_command.read_candidates(rank_command.PIPE) == [
        {"image_url": "https://a.example/1.jpg", "text": None},
        {"image_url": None, "text": "NA"},
    ]


def test_the_config_of_the_documentation_is_one(tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent.parent / "docs" / "model.md").read_text()
    (tmp_path / "ctr.toml").write_text(text.split("```toml\n")[1].split("```")[0])
    config = load_config(tmp_path / "ctr.toml")
    assert config.views == {"image": "mobilenet_v3_small__v1"}
    assert config.learned == ("text",)
