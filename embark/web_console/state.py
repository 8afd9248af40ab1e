"""The state of the archive, as the page and `--json` show it: put together from its readings."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any, Self

from feast import FeatureStore
from feast.errors import FeastObjectNotFoundException

from embark.repo import open_store
from embark.settings import Settings
from embark.web_console.archive import ArchiveReader
from embark.web_console.encoders import EncoderReader, EncoderState
from embark.web_console.kept import Kept, Shown
from embark.web_console.letters import LetterBox, Letters
from embark.web_console.near import Nearby
from embark.web_console.newest import Embedded, Latest, Newest, requested
from embark.web_console.parts import Part
from embark.web_console.trail import Trail
from embark.web_console.vitals import EMBARK, KFC, RETINA, Vitals, vitals_of
from encoders.spec import EncoderSpec
from feature_repo.directory import EncoderDirectory
from feature_repo.views import encoder_specs

ENCODERS_SECONDS = 5.0  # between two readings
NEWEST_SECONDS = 2.0
LETTERS_SECONDS = 5.0
FIRST_SECONDS = 4.0  # for which a page waits for what was never read


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """All that the page shows."""

    project: str
    vitals: Vitals
    encoders: Shown[list[EncoderState]]
    newest: Shown[Latest]
    letters: Shown[Letters]

    def to_json(self) -> dict[str, Any]:
        """For programs; times in seconds, moments in seconds since 1970, but of dead letters in microseconds."""
        return {
            "project": self.project,
            "vitals": asdict(self.vitals),
            "encoders": _json(self.encoders, [each.to_json() for each in self.encoders.value or []]),
            "newest": _json(self.newest, asdict(self.newest.value) if self.newest.value else None),
            "dead_letters": _json(self.letters, asdict(self.letters.value) if self.letters.value else None),
        }


def _json(shown: Shown[Any], value: Any) -> dict[str, Any]:
    return {"value": None if shown.value is None else value, "problem": shown.problem, "read_at": shown.read_at}


class Observed:
    """The archive, observed: what keeps the state fresh. Starts its threads on entry.

    Args:
        settings: where all of it is.

    Raises:
        NoRepo: there is no feature repo.
    """

    def __init__(self, settings: Settings) -> None:
        stores = [open_store(settings.repo) for _ in range(5)]  # one a thread: a registry's cache belongs to one
        self.project = str(stores[0].project)
        self.directory = EncoderDirectory(lambda: registered(stores[0]))
        self.trail = Trail(parts_of(settings))
        self.archive = ArchiveReader(stores[1])
        self.near = Nearby(self.archive, self._items)
        encoders = EncoderReader(stores[2], settings.retina_address)
        newest = Newest(self.archive, [lambda _: requested(stores[3]), Embedded(stores[3])], self.near.of)
        letters = LetterBox(stores[4])
        self.encoders = Kept("encoders", lambda: encoders.read(self.specs), every=ENCODERS_SECONDS)
        self.newest = Kept("newest items", lambda: newest.read(self.specs), every=NEWEST_SECONDS)
        self.letters = Kept("dead letters", lambda: self._with_statuses(letters.read()), every=LETTERS_SECONDS)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for each in (self.directory, self.trail, self.encoders, self.newest, self.letters):
                stack.enter_context(each)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    @property
    def specs(self) -> Mapping[str, EncoderSpec]:
        """The registered encoders by view."""
        return self.directory.specs

    def state(self) -> State:
        """What is known now; the first time, it waits for some seconds."""
        return State(
            project=self.project,
            vitals=vitals_of(self.trail),
            encoders=self.encoders.get(FIRST_SECONDS),
            newest=self.newest.get(FIRST_SECONDS),
            letters=self.letters.get(FIRST_SECONDS),
        )

    def read_now(self) -> State:
        """All of it read at once, in the caller's thread, without any thread of its own."""
        return State(
            project=self.project,
            vitals=vitals_of(self.trail),
            encoders=self.encoders.read_now(),
            newest=self.newest.read_now(),
            letters=self.letters.read_now(),
        )

    def _items(self, view: str) -> int | None:
        states = self.encoders.get().value or []
        return next((each.items for each in states if each.spec.view == view), None)

    def _with_statuses(self, letters: Letters) -> Letters:
        statuses: dict[tuple[str, str], str] = {}
        for view, spec in self.specs.items():
            keys = list(dict.fromkeys(each.key for each in letters.newest if each.view == view and each.key))
            for key, state in zip(keys, self.archive.states(spec, keys), strict=True):
                statuses[view, key] = state.status
        return letters.with_statuses(statuses)


def registered(store: FeatureStore) -> dict[str, EncoderSpec]:
    """The registered encoders by view; none where nothing was applied yet."""
    try:
        return encoder_specs(store, allow_cache=False)
    except (FileNotFoundError, FeastObjectNotFoundException):
        return {}


def parts_of(settings: Settings) -> list[Part]:
    """The three parts, where the settings say that they tell their metrics; each setting may list several addresses."""
    embark = [each for first in split(settings.embark_metrics) for each in ports_from(first, settings.processes)]
    return [
        Part(EMBARK, embark, "EMBARK_EMBARK_METRICS"),
        Part(KFC, split(settings.kfc_metrics), "EMBARK_KFC_METRICS"),
        Part(RETINA, split(settings.retina_metrics), "EMBARK_RETINA_METRICS"),
    ]


def split(addresses: str) -> list[str]:
    """Addresses separated by commas."""
    return [each.strip() for each in addresses.split(",") if each.strip()]


def ports_from(first: str, processes: int) -> list[str]:
    """The addresses of EmbArk's processes on one machine: each has a port of its own, from the first one on."""
    host, _, port = first.rpartition(":")
    return [f"{host}:{int(port) + process}" for process in range(processes)]
