"""Topics and messages, and nothing about them anywhere else."""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self, get_args

from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError

from encoders.keys import MAX_KEY_BYTES

logger = logging.getLogger(__name__)

Priority = Literal["live", "bulk"]
Kind = Literal["embedded", "failed", "invalidated"]

MAX_MESSAGE_BYTES = 8 * MAX_KEY_BYTES  # a key of 8 KiB, each byte escaped in JSON at worst six-fold, and the rest
PARTITIONS = 6  # at most so many workers share the work; raising it later moves keys between partitions
REQUEST_DAYS = 7  # > the longest outage to survive: what is older than this when KFC returns is lost
DEAD_LETTER_DAYS = 30  # to look at them, and to send them again by hand
MAX_DEAD_LETTER_BYTES = 4 * 1024 * 1024  # > Kafka's limit of 1 MiB for a request, and the headers
ANNOUNCED_SECONDS = 3600  # > the longest that a reader is away from Kafka and keeps what it has cached
ANNOUNCED_TOGETHER = 64  # in one message: 3 MiB of the longest keys with every byte escaped, 10 KiB of usual ones


class MalformedMessage(ValueError):
    """The bytes are no request; the message says what is wrong with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Topics:
    """Names of the topics, all derived from the request topic that the registry names.

    `live` holds what look-ups missed, `bulk` what a backfill asks for, `retry` what failed and may succeed later,
    `dead_letters` what never will. `embedded` tells whoever keeps copies of embeddings which ones have changed.
    """

    live: str

    @property
    def bulk(self) -> str:
        return f"{self.live}.bulk"

    @property
    def retry(self) -> str:
        return f"{self.live}.retry"

    @property
    def dead_letters(self) -> str:
        return f"{self.live}.dead-letters"

    @property
    def embedded(self) -> str:
        return f"{self.live}.embedded"

    @property
    def all(self) -> tuple[str, ...]:
        return (self.live, self.bulk, self.retry, self.dead_letters, self.embedded)

    @property
    def group(self) -> str:
        """The consumer group of the workers."""
        return f"{self.live}.materializer"

    def configs(self, *, partitions: int, replication: int) -> dict[str, dict[str, Any]]:
        """How each topic is to be: partitions, replicas and settings, in the shape that Kafka's admin client takes."""
        common = {
            # One replica may be down and nothing stops; with `acks=all` none of what was acknowledged is lost.
            "min.insync.replicas": str(max(1, replication - 1)),
            "cleanup.policy": "delete",
            # The broker's own time, the same in every replay and never ahead: requests are clamped to it, retries
            # are due at most so long after it, and no sender's clock shortens the retention.
            "message.timestamp.type": "LogAppendTime",
        }
        requests = common | {"retention.ms": str(REQUEST_DAYS * 86_400_000)}
        dead = common | {
            "retention.ms": str(DEAD_LETTER_DAYS * 86_400_000),
            "max.message.bytes": str(MAX_DEAD_LETTER_BYTES),
        }
        # Kafka removes whole segments: one of a week, its default, would keep all of a week.
        kept = str(ANNOUNCED_SECONDS * 1000)
        announced = common | {
            "retention.ms": kept,
            "segment.ms": kept,
            "max.message.bytes": str(MAX_DEAD_LETTER_BYTES),
        }
        return {
            self.live: {"num_partitions": partitions, "replication_factor": replication, "configs": requests},
            self.bulk: {"num_partitions": partitions, "replication_factor": replication, "configs": requests},
            self.retry: {"num_partitions": partitions, "replication_factor": replication, "configs": requests},
            # One partition: they are few, and are read in order.
            self.dead_letters: {"num_partitions": 1, "replication_factor": replication, "configs": dead},
            # One partition: each reader reads all of it, in the order in which it was written.
            self.embedded: {"num_partitions": 1, "replication_factor": replication, "configs": announced},
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedRequest:
    """Asks for the embedding of one key.

    Attributes:
        view: feature view of the encoder.
        key: canonical URL or text.
        requested_at: event time, microseconds since 1970: when the key was first asked for. A retry keeps it.
        attempt: how often it has been tried before.
        priority: `live` for a look-up's miss, `bulk` for a backfill.
        not_before: microseconds since 1970; a retry is not due earlier.
        refresh: recompute it, though it is archived; what is there is served until then, and kept if this fails.
    """

    view: str
    key: str
    requested_at: int
    attempt: int = 0
    priority: Priority = "live"
    not_before: int = 0
    refresh: bool = False

    def again(self, *, not_before: int) -> Self:
        """The same request, to be tried once more from `not_before` on."""
        return replace(self, attempt=self.attempt + 1, not_before=not_before)

    @property
    def partition_key(self) -> bytes:
        """Equal for equal view and key, so that repeated requests meet in one worker."""
        return f"{self.view}\0{self.key}".encode()

    def encode(self) -> bytes:
        """The message: JSON in UTF-8."""
        return json.dumps(
            {
                "view": self.view,
                "key": self.key,
                "requested_at": self.requested_at,
                "attempt": self.attempt,
                "priority": self.priority,
                "not_before": self.not_before,
                "refresh": self.refresh,
            },
            ensure_ascii=False,
        ).encode()

    @classmethod
    def decode(cls, message: bytes | None) -> Self:
        """The request in a message.

        Raises:
            MalformedMessage: no JSON object, or a field that is missing or of another type.
        """
        if message is not None and len(message) > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"the message has {len(message)} bytes, {MAX_MESSAGE_BYTES} are allowed")
        fields = _fields(message)
        return cls(
            view=_field(fields, "view", str),
            key=_field(fields, "key", str),
            requested_at=_field(fields, "requested_at", int),
            attempt=_field(fields, "attempt", int, 0),
            priority="bulk" if _field(fields, "priority", str, "live") == "bulk" else "live",
            not_before=_field(fields, "not_before", int, 0),
            refresh=_field(fields, "refresh", bool, False),
        )


@dataclass(frozen=True, slots=True)
class Announcement:
    """Tells that what look-ups answer for a key has changed, or may have: a replay announces again.

    Attributes:
        kind: `embedded`: it has a row. `failed`: it was given up and marked; a row that it had before is still
            there. `invalidated`: its row was removed, with every earlier event.
        view: feature view of the encoder.
        key: canonical URL or text.
        event_time: of the row, microseconds since 1970; of a failure, that of the request; of an invalidation, that of
            the row that was removed (0 where there was none): what a reader read with a later event time is newer.
        embedding_id: of the row that was written or removed; 0 where that is not known, and of a failure.
    """

    kind: Kind
    view: str
    key: str
    event_time: int
    embedding_id: int


def encode_announcements(announcements: Iterable[Announcement]) -> Iterator[bytes]:
    """The messages that tell them: those of one kind and view together, JSON in UTF-8, a column a field."""
    groups: dict[tuple[str, str], list[Announcement]] = {}
    for each in announcements:
        groups.setdefault((each.kind, each.view), []).append(each)
    for (kind, view), group in groups.items():
        for start in range(0, len(group), ANNOUNCED_TOGETHER):
            some = group[start : start + ANNOUNCED_TOGETHER]
            columns = {
                "keys": [each.key for each in some],
                "event_times": [each.event_time for each in some],
                "embedding_ids": [each.embedding_id for each in some],
            }
            yield json.dumps({"kind": kind, "view": view} | columns, ensure_ascii=False, separators=(",", ":")).encode()


def decode_announcements(message: bytes | None) -> list[Announcement]:
    """The announcements in a message.

    Raises:
        MalformedMessage: it is none, or a field is missing or of another type.
    """
    fields = _fields(message)
    kind, view = _field(fields, "kind", str), _field(fields, "view", str)
    if kind not in get_args(Kind):
        raise MalformedMessage(f"announcements are {', '.join(get_args(Kind))}, not {kind[:40]!r}")
    keys, times, ids = (
        [_field({name: item}, name, of) for item in _field(fields, name, list)]
        for name, of in (("keys", str), ("event_times", int), ("embedding_ids", int))
    )
    if not len(keys) == len(times) == len(ids):
        raise MalformedMessage(f"{len(keys)} keys, {len(times)} event times and {len(ids)} embedding ids")
    return [Announcement(kind, view, *each) for each in zip(keys, times, ids, strict=True)]


def _fields(message: bytes | None) -> dict[str, Any]:
    if message is None:
        raise MalformedMessage("the message has no value")
    try:
        fields = json.loads(message)
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"no JSON in UTF-8: {error}") from None
    if not isinstance(fields, dict):
        raise MalformedMessage(f"a JSON object is expected, not {type(fields).__name__}")
    return fields


def _field(fields: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value: Any = fields.get(name, default)
    if value is None:
        raise MalformedMessage(f"field {name!r} is missing")
    if type(value) is not kind:  # bool is an int, and no number of microseconds
        raise MalformedMessage(f"field {name!r} is {type(value).__name__}, {kind.__name__} is expected")
    if isinstance(value, str) and not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MalformedMessage(f"field {name!r} holds a lone surrogate: it is no valid Unicode text") from None
    if isinstance(value, int) and not 0 <= value < 2**63:
        raise MalformedMessage(f"field {name!r} is {value}: a 63-bit number of microseconds or attempts is expected")
    return value


def ensure_topics(admin: Any, topics: Topics, *, partitions: int = PARTITIONS, replication: int = 1) -> Sequence[str]:
    """Creates the topics that are missing, and answers their names. Safe to call at once from many processes.

    A topic that exists otherwise than it would be created is left as it is and named in a warning: more partitions move
    keys between workers, and settings may have been changed on purpose.

    Args:
        admin: a `KafkaAdminClient`.
        partitions: of the live and of the retry topic.
        replication: copies of each message; 3 where there are three brokers.

    Raises:
        KafkaError: Kafka does not answer, or refuses.
    """
    wanted = topics.configs(partitions=partitions, replication=replication)
    existing = set(admin.list_topics()) & set(wanted)
    created = []
    for name in wanted:
        if name in existing:
            continue
        try:
            admin.create_topics({name: wanted[name]}, wait_for_metadata=True)
            created.append(name)
        except TopicAlreadyExistsError:
            existing.add(name)  # by another process, just now
    for name in sorted(existing):
        for difference in _differences(admin, name, wanted[name]):
            logger.warning("topic %s is left as it is: %s", name, difference)
    return created


def _differences(admin: Any, name: str, wanted: dict[str, Any]) -> list[str]:
    (described,) = admin.describe_topics([name])
    partitions = len(described["partitions"])
    found = [] if partitions == wanted["num_partitions"] else [("partitions", partitions, wanted["num_partitions"])]
    answer = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name)], config_filter="all")
    settings = answer["topic"][name]
    known = {
        name: settings[name]["value"] for name in wanted["configs"] if name in settings
    }  # defaults may be left out
    found += [
        (name, value, wanted["configs"][name]) for name, value in known.items() if value != wanted["configs"][name]
    ]
    return [f"{what} is {found}, {expected} is expected" for what, found, expected in found]
