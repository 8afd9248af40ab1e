"""Histories of encoders for tests: a feature store in a folder, rows pushed to it, and a slow reading of the rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
from feast import Entity, FeatureService, FeatureStore, FeatureView
from feast.value_type import ValueType
from numpy.typing import NDArray

from encoders.spec import EncoderSpec
from feature_repo.embeddings import embedding_id
from feature_repo.offline_store import EmbeddingOfflineStore, ensure_readable
from feature_repo.views import feature_view
from tests.feature_repo.history import open_store
from training.history import Reading

SECOND = 1_000_000
NOON = 1_767_268_800 * SECOND  # µs: 2026-01-01 12:00 UTC

IMAGE = EncoderSpec(
    name="tiny", version="v1", modality="image", dim=3, network="torchvision:resnet18", pinned="seeded:0"
)
TEXT = EncoderSpec(name="text_lstm", version="v1", modality="text", dim=2, network="text_lstm", pinned="seeded:0")


@dataclass(frozen=True, slots=True)
class Embedded:
    """A row of history; times in seconds after noon."""

    key: str
    event: int
    created: int
    value: float

    def vector(self, spec: EncoderSpec) -> NDArray[np.float32]:
        return np.full(spec.dim, self.value, dtype=np.float32)

    def id(self, spec: EncoderSpec) -> int:
        return embedding_id(spec.view, self.key, NOON + self.event * SECOND, self.vector(spec))


def table_of(spec: EncoderSpec, rows: Sequence[Embedded]) -> pa.Table:
    """The rows with the columns of an encoder's view."""
    utc = pa.timestamp("us", tz="UTC")
    return pa.table(
        {
            spec.join_key: pa.array([row.key for row in rows], pa.string()),
            "embedding": pa.array([row.vector(spec) for row in rows], pa.list_(pa.float32())),
            "embedding_id": pa.array([row.id(spec) for row in rows], pa.int64()),
            "content_hash": pa.array(["" for _ in rows], pa.string()),
            "event_timestamp": pa.array([NOON + row.event * SECOND for row in rows]).cast(utc),
            "created_timestamp": pa.array([NOON + row.created * SECOND for row in rows]).cast(utc),
        }
    )


@dataclass(frozen=True, slots=True)
class Archived:
    """An applied feature store over histories in a folder, with the service `ctr` of its views."""

    store: FeatureStore
    views: dict[str, FeatureView] = field(default_factory=dict)

    @classmethod
    def at(cls, folder: Path, specs: Sequence[EncoderSpec] = (IMAGE, TEXT)) -> "Archived":
        folder.mkdir(exist_ok=True)
        store = open_store(folder)
        entities = {
            s.modality: Entity(name=s.modality, join_keys=[s.join_key], value_type=ValueType.STRING) for s in specs
        }
        views = {spec.view: feature_view(spec, entities[spec.modality], folder) for spec in specs}
        for view in views.values():
            ensure_readable(view)
        service = FeatureService(name="ctr", features=[view[["embedding", "embedding_id"]] for view in views.values()])
        store.apply([*entities.values(), *views.values(), service])
        return cls(store, views)

    def push(self, spec: EncoderSpec, rows: Sequence[Embedded]) -> None:
        """Appends the rows as one part."""
        EmbeddingOfflineStore.offline_write_batch(self.store.config, self.views[spec.view], table_of(spec, rows), None)


def slow_reading(
    rows: Sequence[Embedded], key: str | None, moment: int, reading: Reading, spec: EncoderSpec
) -> Embedded | None:
    """The row that an impression of `key` at `moment` (seconds after noon) reads; None: the OOV embedding."""

    def rank(row: Embedded) -> tuple[int, int, int]:
        return row.event, row.created, row.id(spec)

    of_key = [row for row in rows if row.key == key]
    seen = [r for r in of_key if r.event <= moment and (reading != "as_served" or r.created <= moment)]
    if seen:
        return max(seen, key=rank)
    if reading == "as_of_content" and of_key:
        oldest = min(row.event for row in of_key)
        return max((row for row in of_key if row.event == oldest), key=rank)
    return None
