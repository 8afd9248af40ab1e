"""One key on a page of its own: its status in each view, and what is near."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from embark.web_console.archive import ArchiveReader, KeyState
from embark.web_console.near import Near, Nearby
from encoders.keys import MAX_KEY_BYTES
from encoders.spec import EncoderSpec
from feature_repo.embeddings import Status

KINDS = ("auto", "image", "text")
URLS = ("http://", "https://", "file:", "s3://", "data:")


@dataclass(frozen=True, kw_only=True, slots=True)
class InView:
    """The key in one view, and what is near it there."""

    spec: EncoderSpec
    state: KeyState
    near: Near | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Looked:
    """What was found of a key that somebody pasted.

    Attributes:
        kind: as it was asked for; `modality` is what it was taken for.
        views: of the modality, in order of their names.
        problem: why it can be no key at all; empty otherwise.
    """

    key: str
    kind: str
    modality: str
    views: Sequence[InView]
    problem: str = ""

    @property
    def archived(self) -> bool:
        """Whether any view has an embedding of it."""
        return any(each.state.status == Status.HIT.name for each in self.views)


class Parts(Protocol):
    """What is asked: `embark.web_console.state.Observed`."""

    archive: ArchiveReader
    near: Nearby

    @property
    def specs(self) -> Mapping[str, EncoderSpec]: ...


class ItemReader:
    """Safe to share between threads."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def read(self, given: str, kind: str, *, near_in: str = "") -> Looked:
        """What is known of a key.

        Args:
            given: as it was pasted.
            kind: one of KINDS; auto: an image where it looks like a URL, a text else.
            near_in: view that is searched although that is not cheap.
        """
        key, kind = given.strip(), kind if kind in KINDS else "auto"
        modality = kind if kind != "auto" else "image" if key.lower().startswith(URLS) else "text"
        if not key or len(key) > 4 * MAX_KEY_BYTES:
            problem = "Paste a URL or a text." if not key else f"A key has {MAX_KEY_BYTES} bytes at most."
            return Looked(key=key[:200], kind=kind, modality=modality, views=[], problem=problem)
        views = []
        for view, spec in self._parts.specs.items():
            if spec.modality == modality:
                (state,) = self._parts.archive.states(spec, [key])
                near = self._parts.near.of(spec, state, anyway=near_in == view)
                views.append(InView(spec=spec, state=state, near=near))
        problem = "" if views else f"No encoder of {modality}s is registered."
        return Looked(key=key, kind=kind, modality=modality, views=views, problem=problem)
