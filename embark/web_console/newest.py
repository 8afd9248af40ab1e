"""The items that came last: those that look-ups missed, and those that were embedded."""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.dataset as ds
from feast import FeatureStore
from kafka import TopicPartition

from embark.web_console.archive import KeyState
from embark.web_console.near import Near
from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.offline.columns import TIME, Columns
from feature_repo.offline.newest import HistoryUnreadable
from feature_repo.offline.parts import TIE, current, folder_of
from materializer.messages import EmbedRequest, MalformedMessage
from materializer.process import KafkaUnavailable, topic_reader, topics_of

SHOWN = 12
TAIL = 3 * SHOWN  # requests of a partition that are looked at: some are of keys that are asked for in several views
READ_SECONDS = 10.0
MOST_PARTS = 50  # of a history that are opened for the newest rows


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """A key, and what the views of its modality know of it.

    Attributes:
        at: when it was asked for or embedded, whichever is later, seconds since 1970.
        states: a state a view, in order of their names.
        near: in the first view that has an embedding; None where none has.
    """

    key: str
    modality: str
    at: float
    states: Sequence[KeyState]
    near: Near | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Latest:
    """The newest items.

    Attributes:
        found: newest first.
        missing: why some may be missing: one of the sources did not answer; empty where all did.
    """

    found: Sequence[Item]
    missing: str = ""


class States(Protocol):
    """What is asked: `embark.web_console.archive.ArchiveReader`."""

    def states(self, spec: EncoderSpec, keys: Sequence[str]) -> list[KeyState]: ...


@dataclass(frozen=True, slots=True)
class Newest:
    """Finds the newest items and what is known of them.

    Args:
        archive: what is asked of each.
        sources: answer (view, key, seconds since 1970) of what came last, in any order.
        near: what is near an item, where that is cheap.
    """

    archive: States
    sources: Sequence[Callable[[Mapping[str, EncoderSpec]], Iterable[tuple[str, str, float]]]]
    near: Callable[[EncoderSpec, KeyState], Near | None]

    def read(self, specs: Mapping[str, EncoderSpec]) -> Latest:
        """The newest items, at most `SHOWN`.

        Raises:
            KafkaUnavailable, HistoryUnreadable: no source answers.
            NothingApplied: nothing has been registered in this project.
        """
        # 1. what came, each key once
        came: dict[tuple[str, str], float] = {}
        away: list[Exception] = []
        for source in self.sources:
            try:
                for view, key, at in source(specs):
                    if view in specs:
                        named = specs[view].modality, key
                        came[named] = max(at, came.get(named, at))
            except (KafkaUnavailable, HistoryUnreadable) as error:
                away.append(error)
        if away and len(away) == len(self.sources):
            raise away[0]
        newest = sorted(came, key=lambda named: (-came[named], named))[:SHOWN]
        # 2. what each view of their modality knows
        states: dict[tuple[str, str], list[KeyState]] = {named: [] for named in newest}
        for spec in specs.values():
            keys = [key for modality, key in newest if modality == spec.modality]
            for key, state in zip(keys, self.archive.states(spec, keys), strict=True):
                states[spec.modality, key].append(state)
        # 3. what is near, in the first view that has an embedding
        items = [
            Item(
                key=key,
                modality=modality,
                at=came[modality, key],
                states=states[modality, key],
                near=next(
                    (near for each in states[modality, key] if (near := self.near(specs[each.view], each))), None
                ),
            )
            for modality, key in newest
        ]
        return Latest(found=items, missing="; ".join(map(str, away)))


def requested(store: FeatureStore) -> list[tuple[str, str, float]]:
    """(view, key, seconds since 1970) of the last requests of look-ups.

    Raises:
        KafkaUnavailable: Kafka does not answer.
        NothingApplied: nothing has been registered in this project.
    """
    servers, topics = topics_of(store)
    with topic_reader(servers) as consumer:
        return [(each.view, each.key, each.requested_at / 1e6) for each in _tail(consumer, topics.live)]


def _tail(consumer: Any, topic: str) -> list[EmbedRequest]:
    partitions = [TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic) or ()]
    if not partitions:
        return []
    consumer.assign(partitions)
    first, ends = consumer.beginning_offsets(partitions), consumer.end_offsets(partitions)
    for partition in partitions:
        consumer.seek(partition, max(first[partition], ends[partition] - TAIL))
    found = []
    deadline = time.monotonic() + READ_SECONDS
    while any(consumer.position(p) < ends[p] for p in partitions) and time.monotonic() < deadline:
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                try:
                    found.append(EmbedRequest.decode(record.value))
                except MalformedMessage:  # a dead letter by now
                    continue
    return found


class Embedded:
    """The rows that were embedded last, from the ends of the newest files of history. For one thread.

    Args:
        store: a feature store of its own.
    """

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._before: dict[str, tuple[tuple[str, ...], list[tuple[str, str, float]]]] = {}

    def __call__(self, specs: Mapping[str, EncoderSpec]) -> Iterable[tuple[str, str, float]]:
        """(view, key, seconds since 1970 when it was embedded).

        Raises:
            HistoryUnreadable: the files cannot be read.
        """
        for spec in specs.values():
            folder = folder_of(self._store.get_feature_view(spec.view).batch_source)
            if folder is None:
                continue
            names = tuple(folder.names())
            before, rows = self._before.get(spec.view, ((), []))
            if names != before:
                try:
                    rows = self._last_rows(spec, folder, names)
                except FileNotFoundError:  # a compaction came between: with the next reading
                    continue
                except OSError as error:
                    raise HistoryUnreadable(f"the history of {spec.view} cannot be read: {error}") from error
                self._before[spec.view] = (names, rows)
            yield from rows

    def _last_rows(self, spec: EncoderSpec, folder: Any, names: Sequence[str]) -> list[tuple[str, str, float]]:
        columns = Columns.of(self._store.get_feature_view(spec.view).batch_source)
        key, created = columns.named(spec.join_key), columns.created or columns.event
        there = set(current(folder, names))
        parts = sorted((e for e in folder.entries() if e.name in there), key=lambda e: e.modified, reverse=True)
        rows: list[tuple[str, str, float]] = []
        for part in parts[:MOST_PARTS]:
            fragment = ds.ParquetFileFormat().make_fragment(folder.file(part.name), folder.filesystem)
            groups = [group.id for group in fragment.row_groups][-1:]  # a compacted part is sorted by day
            if not groups or not {key, created, TIE} <= set(fragment.physical_schema.names):
                continue
            table = fragment.subset(row_group_ids=groups).to_table(columns=[key, created, TIE])
            rows += _rows(spec.view, table, key, created)
            if len(rows) >= TAIL:
                break
        return sorted(rows, key=lambda row: -row[2])[:TAIL]


def _rows(view: str, table: pa.Table, key: str, created: str) -> list[tuple[str, str, float]]:
    moments = table[created].cast(TIME, safe=False).cast(pa.int64()).to_pylist()
    return [
        (view, each, moment / 1e6)
        for each, moment, embedding in zip(table[key].to_pylist(), moments, table[TIE].to_pylist(), strict=True)
        if embedding is not None and each != OOV_KEY and moment is not None  # neither removed, nor the OOV embedding
    ]
