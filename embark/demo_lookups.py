"""The demo's look-ups: what was asked, what was answered, and when that changed."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from feast.protos.feast.serving.ServingService_pb2 import FieldStatus
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from embark.child_process import ChildProcess
from embark.demo_result import ItemShown, Latency
from embark.photographs import PhotographServer
from feature_repo.embeddings import Status
from serving.client import EmbArkClient
from serving.feature_store import EmbArkFeatureStore
from training.photographs import photographs

IMAGE_VIEW = "mobilenet_v3_small__v1"
LARGE_IMAGE_VIEW = "inception_v3__v1"
TEXT_VIEW = "text_lstm__v1"
LATE_VIEW = "resnet18__v1"
HIT_SECONDS = 180.0  # Inception v3 embeds a dozen pictures a second on two cores
ASK_AGAIN_SECONDS = 0.25
HIT_SAMPLES = 300
NEIGHBOURS = 3
UNSEEN_TITLE = "A title that nobody has asked for yet"


class LookupsDiffer(Exception):
    """Two ways of asking answered differently; the message says how."""


@dataclass(slots=True)
class Item:
    """A key of a view that is being watched."""

    view: str
    key: str
    title: str
    name: str
    expected: Status
    reason: str = ""  # that a failure is to have
    asked_at: float = 0.0  # seconds since 1970
    timeline: list[tuple[float, Status]] = field(default_factory=list)
    vector: NDArray[np.float32] | None = None
    failure: str | None = None

    def note(self, status: Status) -> None:
        if not self.timeline or self.timeline[-1][1] != status:
            self.timeline.append((round(time.time() - self.asked_at, 3), status))

    def was_served(self, vector: NDArray[np.float32]) -> bool:
        """Whether the last hit was this very vector."""
        return self.vector is not None and np.array_equal(vector, self.vector)

    @property
    def as_expected(self) -> bool:
        settled = bool(self.timeline) and self.timeline[-1][1] == self.expected
        return settled and (self.expected != Status.FAILED or (self.failure or "").startswith(self.reason))


class Lookups:
    """Asks EmbArk for the catalogue, view by view.

    Args:
        site: serves the photographs.
        client: of EmbArk.
        out: shows progress.
        parts: the processes behind it; one that dies ends the demo.
    """

    def __init__(
        self, site: PhotographServer, client: EmbArkClient, out: Console, parts: Sequence[ChildProcess]
    ) -> None:
        self._site = site
        self._client = client
        self._out = out
        self._parts = parts
        self.items: list[Item] = []

    def first_look(self, views: Sequence[str]) -> Latency:
        """Asks for every key of `views` for the first time, one a call; how long the answers took."""
        milliseconds = []
        for view in views:
            for item in self._catalogue(view):
                item.asked_at = time.time()
                start = time.perf_counter()
                answer = self._client.lookup(view, [item.key])
                milliseconds.append((time.perf_counter() - start) * 1000)
                self._note(item, Status(int(answer.status[0])), answer.failures.get(0), answer.vectors[0])
                self.items.append(item)
        return Latency.of(milliseconds)

    def all_oov_at_first(self) -> bool:
        """Whether no key was known before it was asked for; a key that can be none is refused at once."""
        return all(item.timeline[0][1] == Status.OOV or item.reason == "KeyRefused" for item in self.items)

    def watch(self) -> None:
        """Asks again until every key is what it is expected to be, at most for HIT_SECONDS."""
        deadline = time.monotonic() + HIT_SECONDS
        bars = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*bars, console=self._out) as progress:
            views = list(dict.fromkeys(item.view for item in self.items))
            tasks = {v: progress.add_task(v, total=sum(item.view == v for item in self.items)) for v in views}
            while True:
                self._check()
                for view, task in tasks.items():
                    of_view = [item for item in self.items if item.view == view]
                    self._ask([item for item in of_view if not item.as_expected])
                    progress.update(task, completed=sum(item.as_expected for item in of_view))
                if all(item.as_expected for item in self.items) or time.monotonic() > deadline:
                    return
                time.sleep(ASK_AGAIN_SECONDS)

    def not_as_expected(self) -> list[str]:
        """What is not what it should be by now."""
        return [
            f"{i.view} {i.key}: {i.timeline[-1][1].name} {i.failure or ''}" for i in self.items if not i.as_expected
        ]

    def hits(self) -> int:
        return sum(item.timeline[-1][1] == Status.HIT for item in self.items)

    def failures(self) -> int:
        return sum(item.timeline[-1][1] == Status.FAILED for item in self.items)

    def hit_latency(self) -> Latency:
        """How long hits take, one a call."""
        known = self.of_status(Status.HIT)
        milliseconds = []
        for i in range(HIT_SAMPLES):
            item = known[i % len(known)]
            start = time.perf_counter()
            self._client.lookup(item.view, [item.key])
            milliseconds.append((time.perf_counter() - start) * 1000)
        return Latency.of(milliseconds)

    def same_through_feast(self, repo: Path) -> str:
        """Asks for the hits, and for one title nobody has seen, through Feast.

        Raises:
            LookupsDiffer: Feast's way answers otherwise than EmbArk does.
        """
        store = EmbArkFeatureStore(repo_path=str(repo))
        try:
            for view, column in ((IMAGE_VIEW, "image_url"), (TEXT_VIEW, "text")):
                known = [item for item in self.of_status(Status.HIT) if item.view == view]
                rows = [{column: item.key} for item in known]
                proto = store.get_online_features([f"{view}:embedding"], rows).proto
                position = list(proto.metadata.feature_names.val).index("embedding")
                for item, value in zip(known, proto.results[position].values, strict=True):
                    if not item.was_served(np.array(value.float_list_val.val, dtype=np.float32)):
                        raise LookupsDiffer(f"{view} {item.key}: Feast's vector is another one")
            asked = store.get_online_features([f"{TEXT_VIEW}:embedding"], [{"text": UNSEEN_TITLE}]).proto
            position = list(asked.metadata.feature_names.val).index("embedding")
            (value,), (status,) = asked.results[position].values, asked.results[position].statuses
            if status != FieldStatus.NOT_FOUND or any(value.float_list_val.val):
                raise LookupsDiffer(f"an unknown title was answered {FieldStatus.Name(status)}, not OOV")
        finally:
            store.close_requests()
        deadline = time.monotonic() + HIT_SECONDS
        while int(self._client.lookup(TEXT_VIEW, [UNSEEN_TITLE]).status[0]) != Status.HIT:
            self._check()
            if time.monotonic() > deadline:
                raise LookupsDiffer("what was missed through Feast was not embedded")
            time.sleep(ASK_AGAIN_SECONDS)
        return "equal vectors; a title missed through Feast was answered OOV, asked for, and is a hit now"

    def of_status(self, status: Status) -> list[Item]:
        """The items that were last answered so."""
        return [item for item in self.items if item.timeline[-1][1] == status]

    def shown(self) -> list[ItemShown]:
        """The items for the report."""
        found = []
        for item in self.items:
            hit = next((seconds for seconds, status in item.timeline if status == Status.HIT), None)
            found.append(
                ItemShown(
                    view=item.view,
                    key=item.key,
                    title=item.title,
                    expected=item.expected.name,
                    timeline=[(seconds, status.name) for seconds, status in item.timeline],
                    seconds_to_hit=hit,
                    failure=item.failure,
                )
            )
        return found

    def neighbours(self) -> dict[str, dict[str, list[tuple[str, float]]]]:
        """View → key → its nearest keys by cosine similarity of centred embeddings."""
        found: dict[str, dict[str, list[tuple[str, float]]]] = {}
        for view in dict.fromkeys(item.view for item in self.items):
            known = [item for item in self.of_status(Status.HIT) if item.view == view]
            vectors = np.stack([item.vector for item in known if item.vector is not None])
            centred = vectors - vectors.mean(axis=0)  # what all have in common tells nothing
            unit = centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
            cosine = unit @ unit.T
            np.fill_diagonal(cosine, -2.0)
            nearest = np.argsort(-cosine, axis=1)[:, :NEIGHBOURS]
            found[view] = {
                item.key: [(known[j].key, round(float(cosine[i, j]), 3)) for j in nearest[i]]
                for i, item in enumerate(known)
            }
        return found

    def _check(self) -> None:
        for part in self._parts:
            part.check()

    def _catalogue(self, view: str) -> list[Item]:
        if view == TEXT_VIEW:
            return [
                Item(view=view, key=p.title, title=p.title, name=p.name, expected=Status.HIT) for p in photographs()
            ]
        urls = self._site.urls
        items = [
            Item(view=view, key=urls[p.name], title=p.title, name=p.name, expected=Status.HIT) for p in photographs()
        ]
        if view == IMAGE_VIEW:
            flaky = self._site.flaky_url
            items.append(Item(view, flaky, "A picture whose server fails the first time", "cat", Status.HIT))
            items += [Item(view, p.url, p.title, "", Status.FAILED, p.reason) for p in self._site.planted()]
        return items

    def _ask(self, items: Sequence[Item]) -> None:
        if not items:
            return
        answer = self._client.lookup(items[0].view, [item.key for item in items])
        for i, item in enumerate(items):
            self._note(item, Status(int(answer.status[i])), answer.failures.get(i), answer.vectors[i])

    def _note(self, item: Item, status: Status, failure: str | None, vector: NDArray[np.float32]) -> None:
        item.note(status)
        item.failure = failure
        if status == Status.HIT:
            item.vector = vector
