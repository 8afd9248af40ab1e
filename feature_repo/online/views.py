"""What the store knows of a feature view: its table, its keys, and how old a row may be."""

import functools
import struct
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value, ValueType

from encoders.keys import KeyRefused, canonical_key
from encoders.spec import TAG_PREFIX, EncoderSpec
from feature_repo.embeddings import OOV_KEY
from feature_repo.online.table import OnlineTable

FIRST_EVENT = -(2**63)  # no row is older
_LENGTH = struct.Struct("<I").pack
MAX_KEY_BYTES = 65535  # of a Cassandra partition key


@dataclass(frozen=True, slots=True)
class OnlineView:
    """A feature view as the online store sees it.

    Attributes:
        name: as the registry has it.
        table: where its rows are.
        encoder: its encoder; None for any other view.
    """

    name: str
    table: OnlineTable
    encoder: EncoderSpec | None

    def serialize(self, key: EntityKey) -> bytes:
        """The key as the table holds it; that of an encoder's view in its canonical form (decision 6).

        Raises:
            KeyRefused: no input of that encoder can have this key.
        """
        if len(key.entity_values) == 1 and key.entity_values[0].WhichOneof("val") == "string_val":
            return self.serialize_text(key.join_keys[0], key.entity_values[0].string_val)
        return bytes(serialize_entity_key(key, entity_key_serialization_version=3))

    def serialize_text(self, join_key: str, text: str) -> bytes:
        """As `serialize`, of a key that is one text."""
        if self.encoder is not None and text != OOV_KEY:
            text = canonical_key(self.encoder, text)
        return text_key(join_key, text)

    def find(self, keys: Sequence[EntityKey]) -> list[bytes | None]:
        """Serialized keys to look up; None for one that no row can have."""
        found: list[bytes | None] = []
        for key in keys:
            try:
                found.append(self.serialize(key))
            except KeyRefused:
                found.append(None)
        return _possible(found)

    def find_rows(self, rows: Sequence[Mapping[str, Value]]) -> list[bytes | None]:
        """As `find`, of rows of join key → value."""
        if self.encoder is None and rows and len(rows[0]) == 1:
            (name,) = rows[0]
            values = [row[name] for row in rows]
            if all(value.WhichOneof("val") == "string_val" for value in values):
                return _possible(text_keys(name, [value.string_val for value in values]))
        return self.find([EntityKey(join_keys=row.keys(), entity_values=row.values()) for row in rows])


class Views:
    """The views that were asked for, kept by what they declare. Safe to share between threads."""

    def __init__(self) -> None:
        self._known: dict[Any, OnlineView] = {}

    def of(self, keyspace: str, project: str, view: Any, *, versioned: bool) -> OnlineView:
        """The view, worked out once for each declaration of it.

        Raises:
            ValueError: a feature that no column can hold.
        """
        declared = tuple(
            (f.name, f.dtype, f.vector_length, f.vector_index, f.vector_search_metric) for f in view.features
        )
        encoder = (getattr(view, "tags", None) or {}).get(TAG_PREFIX + "encoder")
        identity = (keyspace, project, compute_versioned_name(view, versioned), encoder, declared)
        known = self._known.get(identity)
        if known is None:
            known = OnlineView(
                name=view.name,
                table=OnlineTable.of(keyspace, project, view, versioned=versioned),
                encoder=EncoderSpec.from_tags(view.tags) if encoder is not None else None,
            )
            self._known[identity] = known
        return known


def text_keys(join_key: str, keys: Sequence[str]) -> list[bytes | None]:
    """Serialized keys of a view with one join key of strings, as `serialize_entity_key` makes them (version 3).

    None for one that no row can have: half a surrogate pair has no UTF-8, and Cassandra's keys end at 65,535 bytes.
    """
    head, encoded = _text_head(join_key), map(_utf8, keys)
    return _possible([None if each is None else head + _LENGTH(len(each)) + each for each in encoded])


def text_key(join_key: str, text: str) -> bytes:
    """The serialized key of a view with one join key of strings."""
    encoded = text.encode()
    return _text_head(join_key) + _LENGTH(len(encoded)) + encoded


@functools.lru_cache(maxsize=1024)
def _text_head(join_key: str) -> bytes:
    name = join_key.encode()
    return struct.pack("<III", 1, ValueType.STRING, len(name)) + name + struct.pack("<I", ValueType.STRING)


def _utf8(text: str) -> bytes | None:
    try:
        return text.encode()
    except UnicodeEncodeError:
        return None


def _possible(keys: Sequence[bytes | None]) -> list[bytes | None]:
    return [key if key is not None and len(key) <= MAX_KEY_BYTES else None for key in keys]


def oldest_visible(view: Any, *, expire_rows: bool) -> int:
    """Event time in µs before which a row counts as missing, as it does in history; no time without `expire_rows`."""
    ttl = getattr(view, "ttl", None)
    if not ttl or not expire_rows:
        return FIRST_EVENT
    age: int = ttl // timedelta(microseconds=1)
    return time.time_ns() // 1000 - age
