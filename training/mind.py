"""Reads MIND, Microsoft's news recommendation data, as it is handed out: two files of tab-separated columns.

    behaviors.tsv   impression id, user, time (11/15/2019 8:55:22 AM), news read before, news shown (`N1-1 N2-0`)
    news.tsv        news id, category, subcategory, title, abstract, URL, entities of the title, of the abstract

Each news shown is an impression of its own, `-1` at its end a click. The test set withholds these ends: `clicked` is
null there. MIND has no pictures.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from training.impressions import CLICKED, TIME, Impressions, ImpressionsError

BEHAVIORS = ["impression_id", "user_id", "time", "history", "shown"]
NEWS = ["item_id", "category", "subcategory", "title", "abstract", "url", "title_entities", "abstract_entities"]
TIMES = "%m/%d/%Y %I:%M:%S %p"  # without a zone: taken as UTC


def read_mind(folder: Path | str) -> Impressions:
    """The impressions of one set (`MINDsmall_train`, …).

    Returns:
        Impressions with `text` (the title), `category`, `subcategory`, `item_id`, `user_id`, `hour`, `impression_id`
        (of the list that it was shown in) and `position` in that list. A news without a title has none.

    Raises:
        FileNotFoundError: a file is missing.
        ImpressionsError: a file has other columns, or news are shown that `news.tsv` does not have.
    """
    home = Path(folder)
    news = _read(home / "news.tsv", NEWS).drop_duplicates("item_id").set_index("item_id")
    behaviors = _read(home / "behaviors.tsv", BEHAVIORS)
    try:
        times = pd.to_datetime(behaviors["time"], format=TIMES, utc=True)
    except ValueError as error:
        raise ImpressionsError(f"{home / 'behaviors.tsv'}: {error}") from error
    lists = behaviors["shown"].fillna("").str.split()
    counts = lists.map(len).to_numpy()
    of = np.repeat(np.arange(len(behaviors)), counts)  # (impressions,) row of behaviors
    shown = pd.Series([each for one in lists for each in one], dtype=str)
    parts = shown.str.extract(r"^(?P<item>[^-\s]+)(?:-(?P<click>[01]))?$")
    if parts["item"].isna().any():
        raise ImpressionsError(
            f"{home / 'behaviors.tsv'} shows {shown[parts['item'].isna()].iloc[0]!r}, which is no news"
        )
    place = news.index.get_indexer(pd.Index(parts["item"]))
    if (place < 0).any():
        raise ImpressionsError(f"{home / 'news.tsv'} lacks {parts['item'][place < 0].iloc[0]!r}, which was shown")
    titles = news["title"].str.strip().replace("", None).to_numpy()[place]
    shown_at = times.to_numpy()[of]
    starts = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return Impressions(
        pa.table(
            {
                TIME: pa.array(shown_at),
                CLICKED: pa.array(parts["click"].map({"0": 0, "1": 1}).astype("Int8")),
                "item_id": pa.array(parts["item"]),
                "user_id": pa.array(behaviors["user_id"].to_numpy()[of]),
                "text": pa.array(titles, pa.string(), from_pandas=True),
                "category": pa.array(news["category"].to_numpy()[place], pa.string(), from_pandas=True),
                "subcategory": pa.array(news["subcategory"].to_numpy()[place], pa.string(), from_pandas=True),
                "hour": pa.array(times.dt.hour.to_numpy()[of].astype(np.int8)),
                "position": pa.array(np.arange(len(of)) - starts[of]),
                "impression_id": pa.array(behaviors["impression_id"].to_numpy()[of]),
            }
        )
    )


def _read(path: Path, names: list[str]) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(f"MIND's {path.name} is not in {path.parent}")
    # Quotes are part of titles, and "NA" is a word.
    table = pd.read_csv(path, sep="\t", header=None, dtype=str, quoting=3, keep_default_na=False)
    if table.shape[1] != len(names):
        raise ImpressionsError(f"{path} has {table.shape[1]} columns, {len(names)} are expected: {names}")
    return table.set_axis(names, axis=1)
