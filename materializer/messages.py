"""Topics and messages, and nothing about them anywhere else."""

import json
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from encoders.keys import MAX_KEY_BYTES

Priority = Literal["live", "bulk"]

MAX_MESSAGE_BYTES = 8 * MAX_KEY_BYTES  # a key of 8 KiB, each byte escaped in JSON at worst six-fold, and the rest


class MalformedMessage(ValueError):
    """The bytes are no request; the message says what is wrong with them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Topics:
    """Names of the topics, all derived from the request topic that the registry names.

    `live` holds what look-ups missed, `retry` what failed and may succeed later, `dead_letters` what never will.
    """

    live: str

    @property
    def retry(self) -> str:
        return f"{self.live}.retry"

    @property
    def dead_letters(self) -> str:
        return f"{self.live}.dead-letters"

    @property
    def all(self) -> tuple[str, ...]:
        return (self.live, self.retry, self.dead_letters)


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
    """

    view: str
    key: str
    requested_at: int
    attempt: int = 0
    priority: Priority = "live"
    not_before: int = 0

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
            },
            ensure_ascii=False,
        ).encode()

    @classmethod
    def decode(cls, message: bytes | None) -> Self:
        """The request in a message.

        Raises:
            MalformedMessage: no JSON object, or a field that is missing or of another type.
        """
        if message is None:
            raise MalformedMessage("the message has no value")
        if len(message) > MAX_MESSAGE_BYTES:
            raise MalformedMessage(f"the message has {len(message)} bytes, {MAX_MESSAGE_BYTES} are allowed")
        try:
            fields = json.loads(message)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"no JSON in UTF-8: {error}") from None
        if not isinstance(fields, dict):
            raise MalformedMessage(f"a JSON object is expected, not {type(fields).__name__}")
        return cls(
            view=_field(fields, "view", str),
            key=_field(fields, "key", str),
            requested_at=_field(fields, "requested_at", int),
            attempt=_field(fields, "attempt", int, 0),
            priority="bulk" if _field(fields, "priority", str, "live") == "bulk" else "live",
            not_before=_field(fields, "not_before", int, 0),
        )


def _field(fields: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    value: Any = fields.get(name, default)
    if value is None:
        raise MalformedMessage(f"field {name!r} is missing")
    if type(value) is not kind:  # bool is an int, and no number of microseconds
        raise MalformedMessage(f"field {name!r} is {type(value).__name__}, {kind.__name__} is expected")
    if isinstance(value, int) and not 0 <= value < 2**63:
        raise MalformedMessage(f"field {name!r} is {value}: a 63-bit number of microseconds or attempts is expected")
    return value
