"""Feast's own store with EmbArk's answers: OOV defaults for what is missing, and requests for it."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from feast import FeatureService, FeatureStore
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from feast.protos.feast.types.Value_pb2 import FloatList, RepeatedValue, Value

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status, all_missing
from feature_repo.failures import CassandraFailureMarks, FailureMarks
from feature_repo.session import connect
from feature_repo.views import EMBEDDING, EMBEDDING_ID, request_topic
from materializer.messages import Topics
from serving.requests import RequestQueue, RequestSink, open_producer


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """What a call asks of one encoder's view."""

    spec: EncoderSpec
    column: str  # of the entity rows: the join key, or what a projection maps it to
    names: dict[str, str]  # feature → its name in the response


class EmbArkFeatureStore(FeatureStore):  # type: ignore[misc]
    """A `FeatureStore` whose online look-ups answer as EmbArk does.

    Where an embedding is missing, its value is the view's OOV embedding, its status stays Feast's NOT_FOUND, and it is
    asked for. Keys are canonicalised first. Views that are not an encoder's are served as Feast serves them.

    Args:
        requests: where missing keys are asked for; by default Kafka as the registry names it.
        marks: keys known to fail; by default those of the online store.
        further arguments: those of `FeatureStore`.
    """

    def __init__(
        self, *args: Any, requests: RequestSink | None = None, marks: FailureMarks | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._opening = threading.Lock()
        self._requests = requests
        self._marks = marks
        self._queue: RequestQueue | None = None

    def get_online_features(
        self,
        features: list[str] | FeatureService,
        entity_rows: list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue],
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> OnlineResponse:
        """As Feast's, with defaults for missing embeddings."""
        asked = self._asked(features, full_feature_names)
        if not asked:
            return super().get_online_features(features, entity_rows, full_feature_names, **kwargs)
        columns = as_columns(entity_rows)
        refused: dict[str, set[int]] = {}
        for each in asked:
            if each.column in columns and each.column not in refused:
                columns[each.column], refused[each.column] = canonical_column(each.spec, columns[each.column])
        response = super().get_online_features(features, columns, full_feature_names, **kwargs)
        for each in asked:
            if each.column in columns:
                self._fill(response, each, columns[each.column], refused[each.column])
        return response

    def close_requests(self) -> None:
        """Publishes what waits to be asked for, and ends the queue that was opened here."""
        if self._queue is not None:
            self._queue.close()
            self._queue, self._requests = None, None

    def _asked(self, features: list[str] | FeatureService, full: bool) -> list[Asked]:
        """The encoder views among the requested features."""
        wanted: dict[str, tuple[str, str, dict[str, str], list[str]]] = {}  # shown name → view, prefix, joins, features
        if isinstance(features, FeatureService):
            for p in self.get_feature_service(features.name, allow_cache=True).feature_view_projections:
                shown = p.name_to_use()
                wanted[shown] = (p.name, p.name_alias or p.name, p.join_key_map, [f.name for f in p.features])
        else:
            for reference in features:
                shown, _, feature = reference.partition(":")
                name = shown.partition("@")[0]
                wanted.setdefault(shown, (name, name, {}, []))[3].append(feature)
        views = {v.name: v for v in self.list_feature_views(allow_cache=True)}
        found = []
        for name, prefix, joins, members in wanted.values():
            spec = EncoderSpec.from_tags(views[name].tags) if name in views else None
            if spec is not None:
                names = {m: f"{prefix}__{m}" if full else m for m in members}
                found.append(Asked(spec=spec, column=joins.get(spec.join_key, spec.join_key), names=names))
        return found

    def _fill(self, response: OnlineResponse, asked: Asked, keys: Sequence[Any], refused: set[int]) -> None:
        position = {name: i for i, name in enumerate(response.proto.metadata.feature_names.val)}
        results = {f: response.proto.results[position[n]] for f, n in asked.names.items() if n in position}
        telling = results.get(EMBEDDING) or results.get(EMBEDDING_ID)
        if telling is None:
            return
        missing = [i for i, status in enumerate(telling.statuses) if status != FieldStatus.PRESENT]
        if not missing:
            return
        oov = all_missing(asked.spec, 1, Status.OOV)
        defaults = {
            EMBEDDING: Value(float_list_val=packed(oov.vectors[0])),
            EMBEDDING_ID: Value(int64_val=int(oov.embedding_id[0])),
        }
        for feature, default in defaults.items():
            if feature in results:
                for i in missing:
                    results[feature].values[i].CopyFrom(default)
        unknown = list(dict.fromkeys(keys[i] for i in missing if i not in refused and isinstance(keys[i], str)))
        requests, marks = self._sinks()
        marked = marks.read(asked.spec.view, unknown)
        for key in unknown:
            if key not in marked:
                requests.offer(asked.spec.view, key)

    def _sinks(self) -> tuple[RequestSink, FailureMarks]:
        with self._opening:
            if self._marks is None:
                self._marks = CassandraFailureMarks(connect(self), self.config.online_store.keyspace, self.project)
            if self._requests is None:
                servers, topic = request_topic(self)
                self._queue = RequestQueue(open_producer(servers), Topics(live=topic).live)
                self._requests = self._queue
            return self._requests, self._marks


def as_columns(
    entity_rows: list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue],
) -> dict[str, list[Any]]:
    """Entity rows, in either of Feast's forms, as columns of plain values."""
    if isinstance(entity_rows, Mapping):
        return {
            name: [plain(v) for v in (column.val if isinstance(column, RepeatedValue) else column)]
            for name, column in entity_rows.items()
        }
    names = dict.fromkeys(name for row in entity_rows for name in row)
    return {name: [plain(row[name]) for row in entity_rows] for name in names}


def plain(value: Any) -> Any:
    """The value in a protobuf `Value`; any other as it is."""
    if isinstance(value, Value):
        kind = value.WhichOneof("val")
        return getattr(value, kind) if kind else None
    return value


def canonical_column(spec: EncoderSpec, keys: Sequence[Any]) -> tuple[list[Any], set[int]]:
    """Canonical keys, and the positions of those that can be none: they stay as they are, and are found nowhere."""
    column, refused = list(keys), set()
    for i, key in enumerate(column):
        if isinstance(key, str):
            try:
                column[i] = canonical_key(spec, key)
            except KeyRefused:
                refused.add(i)
    return column, refused


def packed(vector: np.ndarray) -> FloatList:
    """A `FloatList` by memory copy: on the wire it is a tag, a length and little-endian floats."""
    data = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    length, size = bytearray(b"\x0a"), len(data)
    while size > 0x7F:
        length.append(size & 0x7F | 0x80)
        size >>= 7
    length.append(size)
    return FloatList.FromString(bytes(length) + data)
