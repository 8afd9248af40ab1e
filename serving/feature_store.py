"""Feast's own store with EmbArk's answers: OOV defaults for what is missing, and requests for it."""

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from feast import FeatureService, FeatureStore
from feast.online_response import OnlineResponse
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus, GetOnlineFeaturesResponse
from feast.protos.feast.types.Value_pb2 import RepeatedValue, Value

from encoders.spec import EncoderSpec
from feature_repo.embeddings import OOV_KEY, OovEmbedding, Status, all_missing, oov_zeros
from feature_repo.failures import CassandraFailureMarks, FailureMarks
from feature_repo.online.columns import Vectors
from feature_repo.session import StoreUnavailable, connect, store_errors
from feature_repo.views import EMBEDDING, EMBEDDING_ID, request_topic
from serving.entity_rows import REFUSED, Asked, Reading, as_columns, readings
from serving.oov import REFRESH_SECONDS
from serving.requests import ProducerOnDemand, RequestQueue, RequestSink, open_producer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Named:
    """What features stand for at one moment."""

    features: list[str] | FeatureService = field(compare=False)  # a service as it is registered
    views: tuple[str, ...]
    asked: list[Asked]

    def keyed(self, entity_rows: Any) -> "_Keyed | None":
        """Entity rows with canonical keys; None where no view is an encoder's, or there are no rows.

        Raises:
            ValueError: the rows have different columns.
        """
        if len(entity_rows) == 0 or all(each.spec is None for each in self.asked):
            return None
        rows = as_columns(entity_rows)
        return _Keyed(rows, readings(self.asked, rows))


@dataclass(frozen=True, slots=True)
class _Keyed:
    """The columns of entity rows as they were given, and the fewest reads that give each view its keys."""

    rows: dict[str, list[Any]]
    readings: list[Reading]


class EmbArkFeatureStore(FeatureStore):  # type: ignore[misc]
    """A `FeatureStore` whose online look-ups answer as EmbArk does.

    Where an embedding is missing, its value is the view's OOV embedding, its status stays Feast's NOT_FOUND, and it is
    asked for; neither Kafka nor the failure marks can cost an answer. Keys are canonicalised first. Views that are not
    an encoder's are served as Feast serves them. A feature service is read as it is registered; where it is switched to
    other views meanwhile, it is read again: an answer is never of both.

    Args:
        requests: where missing keys are asked for; by default Kafka as the registry names it.
        marks: keys known to fail; by default those of the online store.
        clock: seconds, of any origin.
        further arguments: those of `FeatureStore`.
    """

    def __init__(
        self,
        *args: Any,
        requests: RequestSink | None = None,
        marks: FailureMarks | None = None,
        clock: Callable[[], float] = time.monotonic,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._opening = threading.Lock()
        self._requests = requests
        self._marks = marks
        self._queue: RequestQueue | None = None
        self._clock = clock
        self._oov: dict[str, tuple[float, OovEmbedding]] = {}  # view → when it was read, and what

    def get_online_features(
        self,
        features: list[str] | FeatureService,
        entity_rows: list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue],
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> OnlineResponse:
        """As Feast's, with defaults for missing embeddings.

        Raises:
            ValueError: the entity rows have different columns.
            further errors: Feast's own.
        """
        while True:
            now = self._now(features, full_feature_names)
            try:
                # 1. canonical keys
                keyed = now.keyed(entity_rows)
                if keyed is None:
                    response = super().get_online_features(now.features, entity_rows, full_feature_names, **kwargs)
                else:
                    response = self._read(now, keyed, full_feature_names, **kwargs)
            except Exception:
                if self._still(now, features, full_feature_names):
                    raise
            else:
                if self._still(now, features, full_feature_names):
                    if keyed is not None:
                        self._complete(response.proto, keyed)
                    return response

    async def get_online_features_async(
        self,
        features: list[str] | FeatureService,
        entity_rows: list[dict[str, Any]] | Mapping[str, Sequence[Any] | RepeatedValue],
        full_feature_names: bool = False,
        **kwargs: Any,
    ) -> OnlineResponse:
        """As `get_online_features`, without blocking the event loop: what Feast's feature server calls."""
        while True:
            now = self._now(features, full_feature_names)
            try:
                keyed = now.keyed(entity_rows)
                if keyed is None:
                    response = await super().get_online_features_async(
                        now.features, entity_rows, full_feature_names, **kwargs
                    )
                else:
                    response = await self._read_async(now, keyed, full_feature_names, **kwargs)
            except Exception:
                if self._still(now, features, full_feature_names):
                    raise
            else:
                if self._still(now, features, full_feature_names):
                    if keyed is not None:
                        await asyncio.to_thread(self._complete, response.proto, keyed)  # the failure marks are read
                    return response

    def _read(self, now: _Named, keyed: _Keyed, full_feature_names: bool, **kwargs: Any) -> OnlineResponse:
        """Step 2 of a look-up: one read of all; another for views of other keys in the same column, which is rare."""
        first, *others = keyed.readings
        response = super().get_online_features(now.features, keyed.rows | first.columns, full_feature_names, **kwargs)
        for reading in others:
            columns = keyed.rows | reading.columns
            again = super().get_online_features(now.features, columns, full_feature_names, **kwargs)
            for each in reading.views:
                take_over(response.proto, again.proto, each.names.values())
        return response

    async def _read_async(self, now: _Named, keyed: _Keyed, full_feature_names: bool, **kwargs: Any) -> OnlineResponse:
        """As `_read`."""
        read = super().get_online_features_async
        first, *others = keyed.readings
        response = await read(now.features, keyed.rows | first.columns, full_feature_names, **kwargs)
        for reading in others:
            again = await read(now.features, keyed.rows | reading.columns, full_feature_names, **kwargs)
            for each in reading.views:
                take_over(response.proto, again.proto, each.names.values())
        return response

    def _complete(self, proto: GetOnlineFeaturesResponse, keyed: _Keyed) -> None:
        """Steps 3 and 4 of a look-up."""
        # 3. defaults, and requests for what is not known to fail
        for reading in keyed.readings:
            for each in reading.views:
                if each.spec is not None:
                    (column,) = each.columns
                    missing = missing_rows(proto, each.names)
                    if missing:
                        fill(proto, missing, self._oov_of(each.spec), each.names)
                    keys = dict.fromkeys(reading.columns[column][i] for i in missing)
                    self._request(each.spec.view, [k for k in keys if isinstance(k, str) and k != REFUSED])
        # 4. a refused key stands in the answer as it was given
        for column, keys_read in keyed.readings[0].columns.items():
            restore(proto, column, keys_read, keyed.rows[column])

    def close_requests(self, timeout: float = 10.0) -> None:
        """Publishes what waits, for up to `timeout` seconds, and ends the queue that was opened here."""
        if self._queue is not None:
            self._queue.close(timeout)
            self._queue, self._requests = None, None

    def _now(self, features: list[str] | FeatureService, full: bool) -> "_Named":
        """What the requested features stand for in the registry."""
        wanted: dict[str, tuple[str, str, dict[str, str], list[str]]] = {}  # shown name → view, prefix, joins, features
        if isinstance(features, FeatureService):
            # Feast reads the views of the object that it is handed, and their features from the registry.
            features = self.get_feature_service(features.name, allow_cache=True)
            for p in features.feature_view_projections:
                shown = p.name_to_use()
                wanted[shown] = (p.name, p.name_alias or p.name, p.join_key_map, [f.name for f in p.features])
        else:
            for reference in features:
                shown, _, feature = reference.partition(":")
                name = shown.partition("@")[0]
                wanted.setdefault(shown, (name, name, {}, []))[3].append(feature)
        views = {v.name: v for v in self.list_feature_views(allow_cache=True)}
        asked = [
            Asked(
                spec=EncoderSpec.from_tags(views[name].tags),
                columns=tuple(joins.get(key, key) for key in views[name].join_keys),
                names={m: f"{prefix}__{m}" if full else m for m in members},
            )
            for name, prefix, joins, members in wanted.values()
            if name in views
        ]
        return _Named(features, tuple(name for name, *_ in wanted.values()), asked)

    def _still(self, now: "_Named", features: list[str] | FeatureService, full: bool) -> bool:
        """Whether features stand for the same: a migration may have switched a service while it was read."""
        return not isinstance(features, FeatureService) or self._now(features, full) == now

    def _oov_of(self, spec: EncoderSpec) -> OovEmbedding:
        """The view's OOV embedding, as the store had it REFRESH_SECONDS ago at most; it costs no answer."""
        read_at, known = self._oov.get(spec.view, (float("-inf"), oov_zeros(spec.view, spec.dim)))
        now = self._clock()
        if now < read_at + REFRESH_SECONDS:
            return known
        try:
            features = [f"{spec.view}:{feature}" for feature in (EMBEDDING, EMBEDDING_ID)]
            proto = super().get_online_features(features, {spec.join_key: [OOV_KEY]}).proto
        except StoreUnavailable as outage:
            logger.warning("the OOV embedding of %s stays as it was: %s", spec.view, outage)
        else:
            known = newer(known, proto)
        self._oov[spec.view] = (now, known)
        return known

    def _request(self, view: str, keys: Sequence[str]) -> None:
        if not keys:
            return
        try:
            marked = self._open_marks().read(view, keys)
        except StoreUnavailable as outage:
            logger.warning("%d missing keys are not asked for: %s", len(keys), outage)  # no storm in an outage
            return
        requests = self._open_requests()
        for key in keys:
            if key not in marked:
                requests.offer(view, key)

    def _open_marks(self) -> FailureMarks:
        with self._opening:
            if self._marks is None:
                session = connect(self)
                with store_errors("failure marks"):
                    self._marks = CassandraFailureMarks(session, self.config.online_store.keyspace, self.project)
            return self._marks

    def _open_requests(self) -> RequestSink:
        with self._opening:
            if self._requests is None:
                servers, topic = request_topic(self)
                self._queue = self._requests = RequestQueue(ProducerOnDemand(lambda: open_producer(servers)), topic)
            return self._requests


def position(proto: GetOnlineFeaturesResponse, name: str) -> int | None:
    """Where a column stands in a response; None: nowhere."""
    names = list(proto.metadata.feature_names.val)
    return names.index(name) if name in names else None


def take_over(proto: GetOnlineFeaturesResponse, other: GetOnlineFeaturesResponse, names: Iterable[str]) -> None:
    """Replaces the columns of these names by those of another response."""
    for name in names:
        here, there = position(proto, name), position(other, name)
        if here is not None and there is not None:
            proto.results[here].CopyFrom(other.results[there])


def newer(known: OovEmbedding, proto: GetOnlineFeaturesResponse) -> OovEmbedding:
    """The OOV embedding in a response for its key alone; the known one where there is none, or an older one."""
    names = {feature: feature for feature in (EMBEDDING, EMBEDDING_ID)}
    if missing_rows(proto, names):
        return known
    columns = filled(proto, names)
    event_time = columns[EMBEDDING].event_timestamps[0].ToMicroseconds()
    if event_time <= known.event_time:
        return known
    return OovEmbedding(
        vector=np.array(columns[EMBEDDING].values[0].float_list_val.val, dtype=np.float32),
        embedding_id=columns[EMBEDDING_ID].values[0].int64_val,
        event_time=event_time,
    )


def filled(
    proto: GetOnlineFeaturesResponse, names: Mapping[str, str]
) -> dict[str, GetOnlineFeaturesResponse.FeatureVector]:
    """Of vector and id, the columns that were requested; `names`: feature → its name in the response."""
    at = {feature: position(proto, names[feature]) for feature in (EMBEDDING, EMBEDDING_ID) if feature in names}
    return {feature: proto.results[i] for feature, i in at.items() if i is not None}


def missing_rows(proto: GetOnlineFeaturesResponse, names: Mapping[str, str]) -> list[int]:
    """The rows in which an embedding is not there whole; `names` as in `filled`."""
    columns = filled(proto, names).values()
    return sorted({i for c in columns for i, status in enumerate(c.statuses) if status != FieldStatus.PRESENT})


def fill(proto: GetOnlineFeaturesResponse, rows: Sequence[int], oov: OovEmbedding, names: Mapping[str, str]) -> None:
    """Writes the OOV embedding and its id into `rows`; `names` as in `filled`."""
    missing = all_missing(oov, 1, Status.OOV)
    defaults = {
        EMBEDDING: Vectors(len(oov.vector)).value(missing.vectors[0]),
        EMBEDDING_ID: Value(int64_val=int(missing.embedding_id[0])),
    }
    for feature, column in filled(proto, names).items():
        for i in rows:
            column.values[i].CopyFrom(defaults[feature])
            column.statuses[i] = FieldStatus.NOT_FOUND  # also where the other half of the row was there


def restore(proto: GetOnlineFeaturesResponse, column: str, keys: Sequence[Any], given: Sequence[Any]) -> None:
    """Puts refused keys of an entity column back; half a surrogate pair, which has no UTF-8, is escaped."""
    at = position(proto, column)
    if at is not None:
        for i, key in enumerate(keys):
            if key == REFUSED:
                proto.results[at].values[i].string_val = given[i].encode(errors="backslashreplace").decode()
