"""Topics and messages, and nothing about them anywhere else."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

import msgspec
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import TopicAlreadyExistsError

from encoders.keys import MAX_KEY_BYTES

logger = logging.getLogger(__name__)

Priority = Literal["live", "bulk"]
Kind = Literal["embedded", "failed", "invalidated"]
Number = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # of microseconds, of attempts, an embedding's

MAX_MESSAGE_BYTES = 8 * MAX_KEY_BYTES  # a key of 8 KiB, each byte escaped in JSON at worst six-fold, and the rest
PARTITIONS = 6  # at most so many workers share the work; raising it later moves keys between partitions
REQUEST_DAYS = 7  # > the longest outage to survive: what is older than this when KFC returns is lost
DEAD_LETTER_DAYS = 30  # to look at them, and to send them again by hand
MAX_DEAD_LETTER_BYTES = 4 * 1024 * 1024  # > Kafka's limit of 1 MiB for a request, and the headers
ANNOUNCED_SECONDS = 3600  # > the longest that a reader is away from Kafka and keeps what it has cached
ANNOUNCED_TOGETHER = 64  # in one message: 3 MiB of the longest keys with every byte escaped, 10 KiB of usual ones


M = TypeVar("M")


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
    requested_at: Number
    attempt: Number = 0
    priority: Priority = "live"
    not_before: Number = 0
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
        return msgspec.json.encode(self)

    @staticmethod
    def decode(message: bytes | None) -> "EmbedRequest":
        """The request in a message.

        Raises:
            MalformedMessage: no JSON object, or a field that is missing or of another type.
        """
        if message is not None and len(message) > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"the message has {len(message)} bytes, {MAX_MESSAGE_BYTES} are allowed")
        return _decoded(_REQUESTS, message)


_REQUESTS = msgspec.json.Decoder(EmbedRequest)


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


@dataclass(frozen=True, kw_only=True, slots=True)
class _Together:
    """Announcements of one kind and view, as a message has them: a column a field."""

    kind: Kind
    view: str
    keys: list[str]
    event_times: list[Number]
    embedding_ids: list[Number]


_TOGETHER = msgspec.json.Decoder(_Together)


def encode_announcements(announcements: Iterable[Announcement]) -> Iterator[bytes]:
    """The messages that tell them: those of one kind and view together, JSON in UTF-8."""
    groups: dict[tuple[Kind, str], list[Announcement]] = {}
    for each in announcements:
        groups.setdefault((each.kind, each.view), []).append(each)
    for (kind, view), group in groups.items():
        for start in range(0, len(group), ANNOUNCED_TOGETHER):
            some = group[start : start + ANNOUNCED_TOGETHER]
            yield msgspec.json.encode(
                _Together(
                    kind=kind,
                    view=view,
                    keys=[each.key for each in some],
                    event_times=[each.event_time for each in some],
                    embedding_ids=[each.embedding_id for each in some],
                )
            )


def decode_announcements(message: bytes | None) -> list[Announcement]:
    """The announcements in a message.

    Raises:
        MalformedMessage: it is none, or a field is missing or of another type.
    """
    told = _decoded(_TOGETHER, message)
    if not len(told.keys) == len(told.event_times) == len(told.embedding_ids):
        raise MalformedMessage(
            f"{len(told.keys)} keys, {len(told.event_times)} event times and {len(told.embedding_ids)} embedding ids"
        )
    columns = zip(told.keys, told.event_times, told.embedding_ids, strict=True)
    return [Announcement(told.kind, told.view, *each) for each in columns]


def _decoded(decoder: msgspec.json.Decoder[M], message: bytes | None) -> M:
    if message is None:
        raise MalformedMessage("the message has no value")
    try:
        return decoder.decode(message)
    except msgspec.ValidationError as error:
        raise MalformedMessage(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise MalformedMessage(f"no JSON in UTF-8: {error}") from None


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
