"""The layouts of MicroLens_1M (the multimodal CTR challenge) and MIND, as small files of the same columns."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from training.impressions import ImpressionsError
from training.microlens import read_microlens
from training.mind import read_mind


def write_microlens(folder: Path) -> None:
    home = folder / "MicroLens_1M_x1"
    home.mkdir()
    shown = pd.DataFrame(
        {
            "user_id": [7, 7, 8],
            "item_seq": [np.array([0, 1], dtype=np.int64)] * 3,
            "item_id": [3, 1, 2],
            "likes_level": [5, 4, 3],
            "views_level": [1, 2, 3],
            "label": [1, 0, 1],
        }
    )
    shown.to_parquet(home / "train.parquet")
    shown.head(1).to_parquet(home / "valid.parquet")
    shown.drop(columns="label").assign(ID=range(3)).to_parquet(home / "test.parquet")
    ids = [2, 0, 3, 1]  # 0 is padding; the order is not promised
    pd.DataFrame(
        {
            "item_id": ids,
            "item_tags": [[i] * 4 + [9] for i in ids],
            "item_emb_d128": [np.full(128, i, dtype=np.float32) for i in ids],
        }
    ).to_parquet(home / "item_info.parquet")
    pd.DataFrame({"item_id": [1, 2, 3], "item_title": ["one", "two", "three"], "views_level": 0}).to_parquet(
        folder / "item_feature.parquet"
    )
    pd.DataFrame(
        {"item_id": [3, 2, 1], "item_emb_d128_v3": [np.full(128, -i, dtype=np.float32) for i in (3, 2, 1)]}
    ).to_parquet(folder / "item_emb.parquet")


def test_the_multimodal_ctr_challenge_is_read_as_it_is_handed_out(tmp_path: Path) -> None:
    write_microlens(tmp_path)
    challenge = read_microlens(tmp_path, "http://covers.example/c")
    train = challenge.train
    assert train.clicked.tolist() == [1, 0, 1]
    assert train.values("text") == ["three", "one", "two"]
    assert train.values("image_url") == [f"http://covers.example/c/{i}.jpg" for i in (3, 1, 2)]
    assert train.values("tag_1") == [3, 1, 2]
    assert train.values("tag_5") == [9, 9, 9]
    assert train.categorical == ("tag_1", "tag_2", "tag_3", "tag_4", "tag_5", "likes_level", "views_level")
    assert challenge.test.table["clicked"].null_count == 3
    assert max(train.values("event_timestamp")) < min(challenge.valid.values("event_timestamp"))  # type: ignore[type-var]
    assert challenge.item_ids.tolist() == [1, 2, 3]
    assert challenge.embeddings["item_emb_d128"][:, 0].tolist() == [1, 2, 3]
    assert challenge.embeddings["item_emb_d128_v3"][:, 0].tolist() == [-1, -2, -3]


def test_the_challenge_without_titles_has_pictures_alone_and_a_missing_file_is_named(tmp_path: Path) -> None:
    write_microlens(tmp_path)
    (tmp_path / "item_feature.parquet").unlink()
    assert read_microlens(tmp_path / "MicroLens_1M_x1").train.keys == ("image_url",)
    (tmp_path / "MicroLens_1M_x1" / "valid.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"valid\.parquet"):
        read_microlens(tmp_path)


NEWS = [
    ["N1", "sports", "golf", 'PGA Tour "winners"', "abstract", "https://n.example/1", "[]", "[]"],
    ["N2", "news", "newsworld", "NA", "", "https://n.example/2", "[]", "[]"],
    ["N3", "lifestyle", "", "", "", "https://n.example/3", "[]", "[]"],
]
BEHAVIORS = [
    ["1", "U13740", "11/11/2019 9:05:58 AM", "N1 N2", "N1-1 N2-0"],
    ["2", "U91836", "11/12/2019 6:11:30 PM", "", "N3-0"],
]


def write_tsv(path: Path, rows: list[list[str]]) -> None:
    path.write_text("".join("\t".join(row) + "\n" for row in rows))


def test_mind_gives_one_impression_for_each_news_shown(tmp_path: Path) -> None:
    write_tsv(tmp_path / "news.tsv", NEWS)
    write_tsv(tmp_path / "behaviors.tsv", BEHAVIORS)
    impressions = read_mind(tmp_path)
    assert impressions.values("item_id") == ["N1", "N2", "N3"]
    assert impressions.values("text") == ['PGA Tour "winners"', "NA", None]
    assert impressions.clicked.tolist() == [1, 0, 0]
    assert impressions.values("user_id") == ["U13740", "U13740", "U91836"]
    assert impressions.values("hour") == [9, 9, 18]
    assert impressions.values("position") == [0, 1, 0]
    assert str(impressions.values("event_timestamp")[2]) == "2019-11-12 18:11:30+00:00"


def test_minds_test_set_withholds_clicks_and_what_does_not_fit_is_named(tmp_path: Path) -> None:
    write_tsv(tmp_path / "news.tsv", NEWS)
    write_tsv(tmp_path / "behaviors.tsv", [[*BEHAVIORS[0][:4], "N1 N2"]])
    assert read_mind(tmp_path).table["clicked"].null_count == 2
    write_tsv(tmp_path / "behaviors.tsv", [[*BEHAVIORS[0][:4], "N9-1"]])
    with pytest.raises(ImpressionsError, match="lacks 'N9'"):
        read_mind(tmp_path)
    write_tsv(tmp_path / "behaviors.tsv", [[*BEHAVIORS[0][:4], "N1-7"]])
    with pytest.raises(ImpressionsError, match="'N1-7', which is no news"):
        read_mind(tmp_path)
    write_tsv(tmp_path / "news.tsv", [row[:5] for row in NEWS])
    with pytest.raises(ImpressionsError, match="has 5 columns, 8 are expected"):
        read_mind(tmp_path)
