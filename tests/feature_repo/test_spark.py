"""History on Spark: local Spark on Debian's Java answers what our own join answers, over the same parts.

    uv run --group spark pytest -m spark

Without pyspark, or where Debian's package cannot be had, this fails and says why: it is deselected by default, so
whoever asks for it wants to know.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from feast import FeatureStore

from embark.servers.debian_java import NoJava, java_home
from feature_repo.offline.compaction import compact
from tests.training.archive import IMAGE, NOON, SECOND, TEXT, Archived, Embedded
from training.history import Reading, historical_embeddings
from training.impressions import Impressions

ROOT = Path(__file__).parent.parent.parent
# A few hundred rows: what costs is each task's start.
QUICK = {"spark.sql.shuffle.partitions": "1", "spark.default.parallelism": "1", "spark.master": "local[1]"}
QUICK |= {"spark.ui.showConsoleProgress": "false", "spark.sql.adaptive.enabled": "false"}
# Feast calls its Spark store experimental at each use; Spark's own libraries warn of pandas to come.
pytestmark = [pytest.mark.spark, pytest.mark.filterwarnings("ignore")]


@pytest.fixture(scope="module")
def java() -> Iterator[None]:
    """Debian's Java, and a Spark that is stopped in the end."""
    try:
        home = java_home(ROOT / ".embark" / "spark-java")
    except NoJava as no:
        pytest.fail(f"Spark is not tested: {no}", pytrace=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAVA_HOME", str(home))
        patch.setenv("SPARK_LOCAL_IP", "127.0.0.1")
        yield
        from pyspark.sql import SparkSession

        session = SparkSession.getActiveSession()
        if session is not None:
            session.stop()


@pytest.fixture(scope="module")
def stores(java: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[FeatureStore, FeatureStore]:
    """Ours and Spark's over one registry and one history: several versions a key, in parts, some of them compacted."""
    folder = tmp_path_factory.mktemp("spark")
    archived = Archived.at(folder)
    draw = np.random.default_rng(0)
    for part in range(8):
        rows = [
            # No two of one key and event time: where they differ in nothing but their bytes, Spark's order is not ours.
            Embedded(f"http://h.example/{key}.jpg", 100 * part + int(draw.integers(99)), 100 * part + 120, float(part))
            for key in draw.permutation(20)[:12]
        ]
        archived.push(IMAGE, rows)
        archived.push(TEXT, [Embedded(f"title {row.key[-5]}", row.event, row.created, row.value) for row in rows[:5]])
        if part == 5:
            compact(archived.views[IMAGE.view], grace_seconds=3600.0, target_bytes=1 << 20)
    settings = yaml.safe_load((ROOT / "feature_repo" / "feature_store.spark.yaml").read_text())
    ours = yaml.safe_load((folder / "ours.yaml").read_text())
    spark_conf = settings["offline_store"]["spark_conf"] | {
        "spark.sql.shuffle.partitions": "2",
        "spark.master": "local[2]",
    }
    ours["offline_store"] = settings["offline_store"] | {"spark_conf": spark_conf}
    (folder / "spark.yaml").write_text(yaml.safe_dump(ours))
    return archived.store, FeatureStore(repo_path=str(folder), fs_yaml_file=folder / "spark.yaml")


def impressions(count: int = 200) -> Impressions:
    draw = np.random.default_rng(1)
    keys = draw.integers(24, size=count)  # four of them are not archived
    return Impressions.of(
        pd.DataFrame(
            {
                "event_timestamp": pd.to_datetime(
                    NOON + draw.integers(-50, 900, size=count) * SECOND, unit="us", utc=True
                ),
                "image_url": [f"http://H.example:80/{key}.jpg#top" for key in keys],  # not canonical
                "text": [f" title {key % 10}" for key in keys],
            }
        )
    )


def test_spark_and_our_join_answer_equal_rows(stores: tuple[FeatureStore, FeatureStore]) -> None:
    entities = impressions().frame.assign(row=np.arange(len(impressions())))
    refs = [f"{IMAGE.view}:embedding", f"{IMAGE.view}:embedding_id", f"{TEXT.view}:embedding"]
    ours, spark = (
        store.get_historical_features(entities, refs, full_feature_names=True).to_arrow().sort_by("row")
        for store in stores
    )
    for name in ("row", *(ref.replace(":", "__") for ref in refs)):
        assert spark[name].to_pylist() == ours[name].to_pylist(), name
    found = ours[f"{IMAGE.view}__embedding_id"]
    assert 0 < found.null_count < len(found)


@pytest.mark.parametrize("reading", ["as_served", "as_of_content"])
def test_training_reads_the_same_history_through_spark(
    stores: tuple[FeatureStore, FeatureStore], reading: Reading
) -> None:
    ours, spark = (historical_embeddings(store, impressions(), [IMAGE.view], reading)[IMAGE.view] for store in stores)
    assert spark.rows.tolist() == ours.rows.tolist()
    assert spark.vectors.tobytes() == ours.vectors.tobytes()
    assert spark.fell_back == ours.fell_back


def test_materialization_pulls_the_same_rows_through_spark(stores: tuple[FeatureStore, FeatureStore]) -> None:
    ours, spark = stores
    view = spark.get_feature_view(IMAGE.view)
    end = pd.Timestamp(NOON + 900 * SECOND, unit="us", tz="UTC").to_pydatetime()
    start = pd.Timestamp(NOON, unit="us", tz="UTC").to_pydatetime()
    pulled = [
        store._get_provider()
        .offline_store.pull_latest_from_table_or_query(
            store.config,
            view.batch_source,
            ["image_url"],
            ["embedding_id"],
            "event_timestamp",
            "created_timestamp",
            start,
            end,
        )
        .to_df()
        for store in (ours, spark)
    ]
    ours_ids, spark_ids = (frame.set_index("image_url")["embedding_id"].sort_index() for frame in pulled)
    assert spark_ids.to_dict() == ours_ids.to_dict()


def test_the_two_stores_of_the_repo_differ_in_nothing_but_the_engine_of_history() -> None:
    plain, spark = (
        yaml.safe_load((ROOT / "feature_repo" / name).read_text())
        for name in ("feature_store.yaml", "feature_store.spark.yaml")
    )
    assert plain.pop("offline_store")["type"] == "feature_repo.offline_store.EmbeddingOfflineStore"
    assert spark.pop("offline_store")["type"] == "feature_repo.spark_store.PartsSparkOfflineStore"
    assert plain == spark
