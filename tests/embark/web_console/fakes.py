"""An archive in memory, for tests of the console without servers."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from embark.settings import Settings
from embark.web_console.archive import KeyState, Neighbour, NotArchived
from embark.web_console.encoders import EncoderState
from embark.web_console.kept import Shown
from embark.web_console.letters import Letter, Letters
from embark.web_console.near import Nearby
from embark.web_console.newest import Item, Latest
from embark.web_console.state import State, parts_of
from embark.web_console.trail import Trail
from embark.web_console.vitals import vitals_of
from encoders.encoder import NotFound
from encoders.spec import EncoderSpec
from serving.answers import EmbArkUnavailable

IMAGE_VIEW, TEXT_VIEW = "pictures__v1", "titles__v1"
IMAGE = EncoderSpec(
    name="pictures", version="v1", modality="image", dim=4, network="torchvision:resnet18", pinned="seeded:0"
)
TEXT = EncoderSpec(name="titles", version="v1", modality="text", dim=4, network="text_lstm", pinned="seeded:0")
EVIL = """<script>alert(1)</script><img src=x onerror=alert(1)>x" onmouseover="alert(1)' {{7*7}}"""
ARCHIVED = ("http://a.example/cat.jpg", "http://a.example/dog.jpg", EVIL)


class FakeArchive:
    """Knows `ARCHIVED`; what holds `gone` has failed, all else was never asked for."""

    def __init__(self) -> None:
        self.searches = 0

    def states(self, spec: EncoderSpec, keys: Sequence[str]) -> list[KeyState]:
        return [self._state(spec.view, key) for key in keys]

    def _state(self, view: str, key: str) -> KeyState:
        if key in ARCHIVED:
            number = ARCHIVED.index(key) + 1
            return KeyState(view=view, key=key, status="HIT", embedding_id=number, event_time=1_700_000_000_000_000)
        return (
            KeyState(view=view, key=key, status="FAILED", why=EVIL)
            if "gone" in key
            else KeyState(view=view, key=key, status="OOV")
        )

    def near(self, spec: EncoderSpec, key: str, count: int) -> list[Neighbour]:
        self.searches += 1
        if key == ARCHIVED[1]:
            raise NotArchived("removed since")
        return [Neighbour(key=each, similarity=0.5) for each in ARCHIVED if each != key][:count]

    def has_index(self, spec: EncoderSpec) -> bool:
        return False


class FakeObserved:
    """What `Observed` is to the application."""

    project = "shop"

    def __init__(self) -> None:
        self.specs: Mapping[str, EncoderSpec] = {IMAGE_VIEW: IMAGE, TEXT_VIEW: TEXT}
        self.archive = FakeArchive()
        self.near = Nearby(self.archive, lambda view: 3)
        self.trail = Trail(parts_of(Settings()))
        self.letters = self

    def again(self) -> None:
        """As of `Kept`."""

    def state(self) -> State:
        def item(modality: str, key: str) -> Item:
            spec = IMAGE if modality == "image" else TEXT
            (state,) = self.archive.states(spec, [key])
            return Item(key=key, modality=modality, at=1.7e9, states=[state], near=self.near.of(spec, state))

        letters = [
            Letter(position=f"t:0:{i}", view=view, key=EVIL, reason=EVIL, detail=EVIL, failed_at=1, status="FAILED")
            for i, view in enumerate((IMAGE_VIEW, EVIL))
        ]
        encoders = [
            EncoderState(spec=IMAGE, running=None, items=1, known=3, uncounted=""),
            EncoderState(spec=TEXT, running=None, items=None, known=None, uncounted=EVIL),
        ]
        return State(
            project=self.project,
            vitals=vitals_of(self.trail),
            encoders=Shown(value=encoders, problem=EVIL, read_at=1.0),
            newest=Shown(
                value=Latest(
                    found=[
                        item("image", ARCHIVED[0]),
                        item("text", EVIL),
                        item("image", "http://a.example/gone\ud800"),
                    ],
                    missing=EVIL,
                )
            ),
            letters=Shown(
                value=Letters(total=2, counts=[(EVIL, EVIL, 1), (IMAGE_VIEW, "NotFound", 1)], newest=letters)
            ),
        )


class FakeActions:
    """Remembers what was to be done."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.broken = False

    def ask(self, view: str, key: str) -> str:
        if self.broken:
            raise EmbArkUnavailable("EmbArk does not answer")
        self.done.append(("ask", view, key))
        return "done: ask"

    def retry(self, chosen: Mapping[str, str]) -> str:
        self.done.append(("retry", dict(chosen)))
        return "done: retry"


class FakeSource:
    """A web of two pictures."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.files = {"http://a.example/cat.jpg": png(1000, 500), "http://a.example/page": b"<html>log in"}

    async def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.files:
            raise NotFound("404")
        return self.files[url]


def png(width: int, height: int) -> bytes:
    """A picture, with a text in it that no thumbnail may hand on."""
    from PIL.PngImagePlugin import PngInfo

    told = PngInfo()
    told.add_text("Comment", "<script>alert(1)</script>")
    out = io.BytesIO()
    Image.fromarray(np.zeros((height, width, 3), dtype=np.uint8)).save(out, "PNG", pnginfo=told)
    return out.getvalue()
