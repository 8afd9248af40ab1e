"""What is asked for in a run: good requests, and poison among them; all of it follows from a seed."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from encoders.client import Outcome
from encoders.keys import MAX_KEY_BYTES
from encoders.spec import EncoderSpec
from materializer.messages import EmbedRequest, Priority

OLD, NEW = (
    EncoderSpec(name="text_lstm", version=version, modality="text", dim=dim, network="text_lstm", weights="seeded:0")
    for version, dim in (("v1", 32), ("v2", 48))
)
SPECS = {spec.view: spec for spec in (OLD, NEW)}
EVENT = 1_767_268_800_000_000  # µs since 1970; event times count up from here
BULK = 0.3  # share of requests that a backfill makes
REPEATED = 0.01  # share of requests that are sent twice, as a producer does that got no acknowledgement
GONE = Outcome(reason="NotFound", detail="404")
SLOW = Outcome(reason="Timeout", detail="slow", retryable=True)


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a run; `reason` of the dead letter that it is to become, empty for a good request."""

    priority: Priority
    key: bytes
    value: bytes
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """The messages in the waves in which they are sent, and the good requests among them."""

    waves: list[list[Message]]
    good: list[EmbedRequest]

    @property
    def poison(self) -> list[Message]:
        return [message for wave in self.waves for message in wave if message.reason]


def outcome_of(key: str, tried: int) -> Outcome | None:
    """What Retina is to answer for a key, if not its embedding; `tried` counts its tries by this process."""
    if "gone" in key:
        return GONE
    return SLOW if "slow" in key and not tried else None


def plan(random: Random, count: int, waves: int) -> Plan:
    """`count` good requests over both views, and in every wave poison of each kind."""
    good = [_good(random, number) for number in range(count)]
    cut = [good[i::waves] for i in range(waves)]
    return Plan([_wave(random, number, part) for number, part in enumerate(cut)], good)


def _good(random: Random, number: int) -> EmbedRequest:
    kind = "slow" if random.random() < 0.01 else "fine"
    return EmbedRequest(
        view=random.choice((OLD, NEW)).view,
        key=f"{kind} title {number}",
        requested_at=EVENT + number,
        priority="bulk" if random.random() < BULK else "live",
    )


def _wave(random: Random, wave: int, good: Sequence[EmbedRequest]) -> list[Message]:
    messages = [_message(request) for request in good]
    messages += [message for message in messages if random.random() < REPEATED]
    for number in range(random.randint(1, 3)):
        name = f"{wave}-{number}"
        garbage = random.randbytes(random.randint(1, 200)) + b"\xff"
        messages.append(Message(_priority(random), random.randbytes(4), garbage, "MalformedMessage"))
        unknown = EmbedRequest(view="never__v1", key=f"unknown {name}", requested_at=EVENT)
        refused = EmbedRequest(view=OLD.view, key=f"refused {name} " + "x" * MAX_KEY_BYTES, requested_at=EVENT)
        messages += [_message(unknown, "UnknownView"), _message(refused, "KeyRefused")]
        for spec in (OLD, NEW):
            request = EmbedRequest(view=spec.view, key=f"gone {name}", requested_at=EVENT, priority=_priority(random))
            messages.append(_message(request, GONE.reason))
    random.shuffle(messages)
    return messages


def _message(request: EmbedRequest, reason: str = "") -> Message:
    return Message(request.priority, request.partition_key, request.encode(), reason)


def _priority(random: Random) -> Priority:
    return "bulk" if random.random() < BULK else "live"
