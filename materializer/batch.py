"""What goes through KFC's stages together."""

from dataclasses import dataclass, field

from encoders.spec import EncoderSpec
from materializer.archive import EmbeddedBatch
from materializer.asked import Asked
from materializer.failures import Failure
from materializer.group import Taken
from materializer.messages import Announcement


@dataclass(kw_only=True, slots=True)
class Batch:
    """Requests that go through the stages together.

    Attributes:
        number: they are committed in its order.
        taken: their records.
        asked: the requests, one a view and key, without those that are in a batch before this one.
        wanted: of these, by view, those that nobody has an answer to.
        known: what is told of the others, once more: whoever answered them may have died before it told.
        embedded: by view, what Retina made of them.
        failures: what got no embedding.
        abandoned: why it is not finished, if it is not; nothing of it is committed then.
    """

    number: int
    taken: Taken
    asked: list[Asked]
    failures: list[Failure]
    wanted: list[tuple[EncoderSpec, list[Asked]]] = field(default_factory=list)
    known: list[Announcement] = field(default_factory=list)
    embedded: list[tuple[EncoderSpec, EmbeddedBatch]] = field(default_factory=list)
    abandoned: str = ""
