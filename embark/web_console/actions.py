"""What the console can change: ask for a key, send requests of dead letters again."""

import threading
from collections.abc import Callable, Mapping

import numpy as np

from embark.lookups import client_tls
from embark.repo import open_store
from embark.settings import Settings
from embark.web_console.letters import LetterBox
from feature_repo.embeddings import Status
from feature_repo.failures import FailureMarks
from materializer.dead_letter_actions import NoSuchLetter
from serving.client import EmbArkClient

SAID = {
    Status.HIT: "It is archived already.",
    Status.OOV: "Asked for: KFC has it embedded, and this page shows when it is there.",
    Status.FAILED: "It is known not to be embeddable, so a look-up does not ask for it: retry its dead letter.",
    Status.UNAVAILABLE: "EmbArk does not reach the online store now: nothing was asked for.",
}


class Actions:
    """Safe to share between threads.

    Args:
        settings: where EmbArk and the archive are.
        marks: answers the failure marks.
    """

    def __init__(self, settings: Settings, marks: Callable[[], FailureMarks]) -> None:
        self._settings = settings
        self._marks = marks
        self._letters = LetterBox(open_store(settings.repo))
        self._lock = threading.Lock()

    def ask(self, view: str, key: str) -> str:
        """Looks a key up, which asks for it where it is missing; what came of it, in a sentence.

        Raises:
            ClientError: EmbArk did not answer, or refuses.
        """
        settings = self._settings
        with EmbArkClient(
            settings.embark_address.split(","), token=settings.client_token or None, tls=client_tls(settings)
        ) as client:
            answer = client.lookup(view, [key])
        return SAID[Status(int(np.asarray(answer.status)[0]))]

    def retry(self, chosen: Mapping[str, str]) -> str:
        """Sends requests of dead letters again; how many, in a sentence.

        Args:
            chosen: `position`, or `reason` with or without `view`.

        Raises:
            RetryStopped, StoreUnavailable, KafkaUnavailable: not all could be sent.
        """
        with self._lock:
            try:
                if position := chosen.get("position"):
                    sent = self._letters.retry(self._marks, positions=[position])
                else:
                    view = chosen.get("view") or None
                    sent = self._letters.retry(self._marks, view=view, reason=chosen["reason"])
            except NoSuchLetter as error:  # it was purged since the page was made
                return f"Nothing was sent again: {error}"
        if not sent:
            return "Nothing could be sent again: the letters hold no request."
        return f"{sent} request{'s' * (sent != 1)} sent again; the letters stay in their topic until they are purged."
