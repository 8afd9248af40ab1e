"""Who may see the console, and who may change something through it."""

import hashlib
import hmac
import secrets
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

SESSION_SECONDS = 8 * 3600.0
MOST_SESSIONS = 100
TRIES = 10  # wrong tokens within TRIES_SECONDS, by whomever; then nobody may sign in for a while
TRIES_SECONDS = 60.0


class TooManyTries(Exception):
    """Too many wrong tokens came in: nobody may sign in for a minute."""


@dataclass(slots=True)
class Session:
    """Somebody who has shown the token.

    Attributes:
        name: random; what the cookie holds.
        csrf: what each form must carry.
        ends_at: by the clock.
        notices: what the next page tells.
    """

    name: str
    csrf: str
    ends_at: float
    notices: list[str] = field(default_factory=list)


class Access:
    """Safe to share between threads.

    Args:
        token: that must be shown before anything is changed; empty: nothing can be.
        open_to_read: whether reading needs no token.
        clock: seconds, of any origin.
    """

    def __init__(self, token: str, *, open_to_read: bool, clock: Callable[[], float] = time.monotonic) -> None:
        self._token = token.encode()
        self._key = secrets.token_bytes(32)  # of this process: a restart signs everybody out
        self._clock = clock
        self._lock = threading.Lock()
        self._sessions: OrderedDict[str, Session] = OrderedDict()
        self._wrong: deque[float] = deque(maxlen=TRIES)
        self.open_to_read = open_to_read

    @property
    def has_token(self) -> bool:
        """Whether anybody can sign in."""
        return bool(self._token)

    def sign_in(self, token: str) -> Session | None:
        """A new session, or None for a wrong token.

        Raises:
            TooManyTries: nobody may try for now.
        """
        now = self._clock()
        with self._lock:
            if len(self._wrong) == TRIES and now - self._wrong[0] < TRIES_SECONDS:
                raise TooManyTries
            if not self._token or not hmac.compare_digest(token.encode(errors="replace"), self._token):
                self._wrong.append(now)
                return None
            name = secrets.token_urlsafe(32)
            session = Session(name=name, csrf=self.signed("csrf", name), ends_at=now + SESSION_SECONDS)
            self._sessions[name] = session
            while len(self._sessions) > MOST_SESSIONS:
                self._sessions.popitem(last=False)
            return session

    def session(self, name: str) -> Session | None:
        """The session that a cookie names, unless it has ended."""
        with self._lock:
            session = self._sessions.get(name)
            if session is not None and session.ends_at <= self._clock():
                del self._sessions[name]
                return None
            return session

    def sign_out(self, name: str) -> None:
        """Ends a session."""
        with self._lock:
            self._sessions.pop(name, None)

    def signed(self, use: str, text: str) -> str:
        """A signature of a text for one use, which only this process can make."""
        message = f"{use}\0{text}".encode(errors="surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()

    def is_signed(self, use: str, text: str, signature: str) -> bool:
        """Whether a signature is that of the text; takes the same time however wrong it is."""
        return hmac.compare_digest(self.signed(use, text).encode(), signature.encode(errors="replace"))
