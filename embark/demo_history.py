"""The demo's history: what training finds for impressions before, between and after an embedding came to be."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from feast import FeatureStore

from embark.demo_lookups import IMAGE_VIEW, LARGE_IMAGE_VIEW, LATE_VIEW, TEXT_VIEW, Item, Lookups
from embark.demo_result import DemoResult, Impression
from feature_repo.embeddings import Status
from feature_repo.offline_store import parts_folder

SHOWN = 4  # items of each view
JUST_AFTER = 0.002  # seconds from the first answer to the impression: before anything can be embedded


def read_history(store: FeatureStore, lookups: Lookups, result: DemoResult) -> None:
    """Joins impressions to history with `get_historical_features` and compares with what was served.

    Three moments an item: a minute before it was first asked for (nothing is known), just after (its content was known,
    but the archive held nothing: `filter_by_created_timestamp` tells the two apart), and now.
    """

    def impressed(item: Item) -> float:
        return item.asked_at + item.timeline[0][0] + JUST_AFTER

    for view, column in ((IMAGE_VIEW, "image_url"), (LARGE_IMAGE_VIEW, "image_url"), (TEXT_VIEW, "text")):
        items = [item for item in lookups.of_status(Status.HIT) if item.view == view][:SHOWN]
        now = datetime.now(UTC).timestamp()
        moments = [
            ("before it was known", {i.key: i.asked_at - 60 for i in items}, False, False),
            ("just after it was asked for, as served", {i.key: impressed(i) for i in items}, True, False),
            (
                "just after it was asked for, as of content",
                {i.key: impressed(i) for i in items},
                False,
                True,
            ),
            ("now", dict.fromkeys((i.key for i in items), now), False, True),
            ("now, as served", dict.fromkeys((i.key for i in items), now), True, True),
        ]
        for reading, at, as_served, expected in moments:
            result.impressions += _impressions(store, items, column, reading, at, as_served, expected)
    for view in (IMAGE_VIEW, LARGE_IMAGE_VIEW, TEXT_VIEW, LATE_VIEW):
        folder = parts_folder(store.get_feature_view(view))
        if folder is not None:
            result.history_rows[view] = pq.ParquetDataset(folder).read(columns=["embedding_id"]).num_rows


def _impressions(
    store: FeatureStore,
    items: list[Item],
    column: str,
    reading: str,
    at: dict[str, float],
    as_served: bool,
    expected: bool,
) -> list[Impression]:
    view = items[0].view
    times = pd.to_datetime([at[item.key] for item in items], unit="s", utc=True).as_unit("us")
    entities = pd.DataFrame({column: [item.key for item in items], "event_timestamp": times})
    job = store.get_historical_features(entities, [f"{view}:embedding"], filter_by_created_timestamp=as_served)
    embeddings = job.to_df().set_index(column)["embedding"]
    found = []
    for item, time in zip(items, times, strict=True):
        vector = embeddings.loc[item.key]
        there = vector is not None and np.ndim(vector) == 1
        equal = item.was_served(np.asarray(vector, dtype=np.float32)) if there else None
        found.append(
            Impression(
                view=view,
                key=item.key,
                at=time.isoformat(),
                reading=reading,
                expected=expected,
                found=there,
                equals_served=equal,
            )
        )
    return found
