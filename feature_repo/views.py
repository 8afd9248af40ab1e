"""Feast objects derived from encoder declarations, and the declarations read back from the registry."""

import contextlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import timedelta
from pathlib import Path
from typing import Any

from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, KafkaSource, PushSource
from feast.data_format import JsonFormat, ParquetFormat
from feast.errors import FeastObjectNotFoundException
from feast.types import Array, Float32, Int64, String
from feast.value_type import ValueType

from encoders.spec import EncoderSpec, SpecError
from encoders.weights import check_unchanged, pin_weights
from feature_repo.offline_store import ensure_readable
from feature_repo.services import SWITCH_TAG, kept

REQUEST_SOURCE = "embed_requests"  # data source in the registry: where embeddings are asked for
REQUEST_FIELDS = {
    "view": "string",
    "key": "string",
    "requested_at": "timestamp",
    "attempt": "int",
    "priority": "string",
    "not_before": "timestamp",
    "refresh": "boolean",
}

EMBEDDING = "embedding"
EMBEDDING_ID = "embedding_id"
CONTENT_HASH = "content_hash"
EVENT_TIME = "event_timestamp"
CREATED_TIME = "created_timestamp"

HISTORY = "data/history"  # below the repo

JOIN_KEYS = {"image": "image_url", "text": "text"}


# What the operator's settings allow while a repo is applied: Feast imports its definitions itself, without arguments
ALLOWED_MODULES: ContextVar[Sequence[str]] = ContextVar("allowed_modules", default=())


@contextlib.contextmanager
def allowing(modules: Sequence[str]) -> Iterator[None]:
    """Within it, encoders of these Python modules may be registered, and so run."""
    before = ALLOWED_MODULES.set(tuple(modules))
    try:
        yield
    finally:
        ALLOWED_MODULES.reset(before)


class NothingApplied(Exception):
    """The registry holds no encoders yet; the message says what to run."""


def push_source_name(view: str) -> str:
    return f"{view}__push"


def feast_objects(
    encoders: Sequence[EncoderSpec],
    services: Mapping[str, Sequence[str]],
    *,
    kafka: str,
    repo: Path,
    history: str = HISTORY,
    s3_endpoint: str = "",
) -> dict[str, Any]:
    """Everything that `feast apply` is to register, by name: assign it to the globals of a definitions module.

    Args:
        encoders: the declarations; each becomes a push source and a feature view.
        services: name of a feature service → names of the views that a model uses together. One that `embark migrate`
            switched over stays so while its declaration is the one that was switched away from.
        kafka: bootstrap servers of the request topic, `host:port[,host:port]`.
        repo: the folder of `feature_store.yaml`.
        history: folder of all histories, from `repo`, or the URI of one, as `s3://bucket/history`.
        s3_endpoint: URL of a server that speaks S3, in the place of Amazon's.

    Networks of a team's own (`python:<module>:<factory>`) run where `allowing` names their modules.

    Raises:
        SpecError: two encoders of one name and version, an unknown view in a service, weights that cannot be had, a
            declaration that differs from the one registered under the same version, or a file or module that has
            changed since.
    """
    store = FeatureStore(repo_path=str(repo))
    registered, before = _registered_before(store)
    entities = {m: Entity(name=m, join_keys=[k], value_type=ValueType.STRING) for m, k in JOIN_KEYS.items()}
    views: dict[str, FeatureView] = {}
    for declared in encoders:
        if declared.view in views:
            raise SpecError(f"encoder {declared.view!r} is declared twice")
        spec = _pinned(declared, registered.get(declared.view))
        views[spec.view] = feature_view(spec, entities[spec.modality], repo, history=history, s3_endpoint=s3_endpoint)
        ensure_readable(views[spec.view])
    feature_services: dict[str, FeatureService] = {}
    for name, members in services.items():
        unknown = sorted(set(members) - set(views))
        if unknown:
            raise SpecError(f"service {name!r} names {', '.join(unknown)}; declared are {', '.join(views) or 'none'}")
        switch = kept(name, members, before.get(name), set(views))
        if switch is not None and list(members) != switch.declares_now:
            print(
                f"embark: service {name!r} stays switched: name {switch.new} in the place of {switch.old} in catalog.py"
            )
            feature_services[name] = before[name]
            continue
        feature_services[name] = FeatureService(
            name=name,
            features=[views[m][[EMBEDDING, EMBEDDING_ID]] for m in members],
            tags={SWITCH_TAG: before[name].tags[SWITCH_TAG]} if switch is not None else {},
        )
    requests = KafkaSource(
        name=REQUEST_SOURCE,
        kafka_bootstrap_servers=kafka,
        topic=f"{store.project}.requests",  # projects may share a cluster
        timestamp_field="requested_at",
        message_format=JsonFormat(schema_json=json.dumps(REQUEST_FIELDS)),
        description="Look-ups that missed: what KFC embeds",
        batch_source=FileSource(  # Feast demands one; requests live on the topic alone, and nothing is written here
            name=f"{REQUEST_SOURCE}__none", path=str(repo.resolve() / "data" / "none"), timestamp_field="requested_at"
        ),
    )
    objects = {**entities, **views, **feature_services, REQUEST_SOURCE: requests}
    return {f"embark_{name}": each for name, each in objects.items()}  # never shadows a module's own names


def encoder_specs(store: FeatureStore, *, allow_cache: bool = True) -> dict[str, EncoderSpec]:
    """The registered encoders by view name, in order of name."""
    specs = (EncoderSpec.from_tags(v.tags) for v in store.list_feature_views(allow_cache=allow_cache))
    return {s.view: s for s in sorted((s for s in specs if s is not None), key=lambda s: s.view)}


def request_topic(store: FeatureStore) -> tuple[str, str]:
    """Bootstrap servers and topic under which embeddings are asked for, as registered.

    Raises:
        NothingApplied: nothing has been registered in this project.
    """
    try:
        options = store.get_data_source(REQUEST_SOURCE).kafka_options
    except (FileNotFoundError, FeastObjectNotFoundException) as error:
        raise NothingApplied(
            f"project {store.project!r} has no encoders yet: run `embark up`, then `feast apply` in the feature repo"
        ) from error
    return options.kafka_bootstrap_servers, options.topic


def _pinned(declared: EncoderSpec, before: EncoderSpec | None) -> EncoderSpec:
    if before is None:
        return pin_weights(declared, lambda line: print(f"embark: {line}"), allowed_modules=ALLOWED_MODULES.get())
    if not declared.declares_the_same_as(before):
        raise SpecError(
            f"encoder {declared.view!r} is registered with another declaration (fingerprint {before.fingerprint}): "
            f"its embeddings would no longer be comparable. Declare version v{int(declared.version[1:]) + 1} beside it."
        )
    # What a version stands for was settled when it was first applied: a later download must not change it.
    pinned = declared.pin(before.pinned)
    check_unchanged(pinned)
    return pinned


def feature_view(
    spec: EncoderSpec, entity: Entity, repo: Path, *, history: str = HISTORY, s3_endpoint: str = ""
) -> FeatureView:
    """The feature view of an encoder whose weights are pinned; its history lies below `repo`, or at a URI."""
    parts = FileSource(
        name=f"{spec.view}__history",
        path=(
            f"{history.rstrip('/')}/{spec.view}"
            if "://" in history
            else str(repo.resolve() / history / spec.view)  # absolute: duckdb resolves against the cwd
        ),
        s3_endpoint_override=s3_endpoint or None,
        file_format=ParquetFormat(),
        timestamp_field=EVENT_TIME,
        created_timestamp_column=CREATED_TIME,
    )
    return FeatureView(
        name=spec.view,
        entities=[entity],
        schema=[
            Field(name=spec.join_key, dtype=String),
            Field(name=EMBEDDING, dtype=Array(Float32), vector_length=spec.dim),
            Field(name=EMBEDDING_ID, dtype=Int64),
            Field(name=CONTENT_HASH, dtype=String),
        ],
        source=PushSource(name=push_source_name(spec.view), batch_source=parts),
        ttl=timedelta(0),  # never by event time: age is counted from the created time (decision 3)
        online=True,
        tags=spec.to_tags(),
        description=f"{spec.network}, {spec.pinned}",
    )


def _registered_before(store: FeatureStore) -> tuple[dict[str, EncoderSpec], dict[str, FeatureService]]:
    try:
        services = store.registry.list_feature_services(store.project)
        return encoder_specs(store, allow_cache=False), {each.name: each for each in services}
    except (FileNotFoundError, FeastObjectNotFoundException):
        return {}, {}
