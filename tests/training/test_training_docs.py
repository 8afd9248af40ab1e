"""`docs/training.md` says what is so: its examples run, and its table of readings is that of the code."""

import re
from pathlib import Path
from typing import get_args

import pandas as pd
import pytest

from tests.training.archive import IMAGE, TEXT, Archived, Embedded
from training.history import Reading

DOCS = (Path(__file__).parent.parent.parent / "docs" / "training.md").read_text()
LOG, SYNTHETIC, HISTORY, _SPARK = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)

DAYS = 8 * 86_400  # s: the embeddings are of the second of the log's four weeks


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_click_logs_are_read_as_written(folder: Path) -> None:
    clicks = pd.DataFrame(
        {"event_timestamp": ["2026-01-01T12:00:00"], "image_url": ["http://h.example/a.jpg"], "clicked": [1]}
    )
    clicks.to_parquet(folder / "clicks.parquet")
    clicks.rename(columns={"clicked": "is_click", "image_url": "cover"}).to_csv(folder / "clicks.csv")
    names: dict[str, object] = {}
    exec(LOG, names)  # noqa: S102 - our own documentation
    assert names["log"].clicked.tolist() == [1]  # type: ignore[attr-defined]


def test_history_is_read_as_written(folder: Path) -> None:
    archived = Archived.at(folder / "repo")
    archived.push(IMAGE, [Embedded(f"http://127.0.0.1:8000/images/{i}.jpg", DAYS, DAYS, float(i)) for i in range(30)])
    small = SYNTHETIC.replace("items=2000", "items=30, side=16").replace("impressions=200_000", "impressions=300")
    names: dict[str, object] = {"store": archived.store}
    exec(small.replace("log.train,", "_ = log.train,"), names)  # noqa: S102 - our own documentation
    names["log"] = names["log"].train  # type: ignore[attr-defined]
    example = HISTORY.replace("inception_v3__v1", IMAGE.view).replace('"as_logged"', '"as_of_content"')
    exec(example, names)  # noqa: S102 - our own documentation
    image = names["image"]
    assert image.oov_share == 0  # type: ignore[attr-defined]
    assert names["history"][TEXT.view].oov_share == 1  # type: ignore[index]
    assert 0 < image.fell_back_share < 1  # type: ignore[attr-defined]


def test_the_table_of_readings_is_complete() -> None:
    assert tuple(re.findall(r"^\| `(as_\w+)` \|", DOCS, re.MULTILINE)) == get_args(Reading)
