"""The web application: pages, what they ask for, and what they change. Rendered here; scripts only make them live."""

import functools
import gzip
import json
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import plotly.offline
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from embark.console import is_expected
from embark.thumbnail import Source
from embark.web_console.access import Access, Session, TooManyTries
from embark.web_console.actions import Actions
from embark.web_console.figures import charts
from embark.web_console.guard import Guard
from embark.web_console.items import ItemReader
from embark.web_console.pages import STATIC, Pages
from embark.web_console.state import Observed
from embark.web_console.thumbnails import Thumbnails

COOKIE = "embark_console"
FORM_BYTES = 64 << 10  # a key of 8 KiB, every byte of it escaped, and the rest
MOST_FIELDS = 20
PICTURE_SECONDS = 3600
PLOTLY_SECONDS = 7 * 86400


class ConsoleApp:
    """The handlers of the console.

    Args:
        observed: the archive.
        actions: what may be changed; used only for those who have shown the token.
        access: who that is.
        open_source: what downloads pictures, made on the event loop that it is to belong to.
        hosts: names under which browsers may ask, without ports; None: any.
        secure: whether browsers come by TLS.
    """

    def __init__(
        self,
        observed: Observed,
        actions: Actions,
        access: Access,
        open_source: Callable[[], AbstractAsyncContextManager[Source]],
        *,
        hosts: frozenset[str] | None,
        secure: bool,
    ) -> None:
        self._observed = observed
        self._actions = actions
        self._access = access
        self._open_source = open_source
        self._secure = secure
        self._items = ItemReader(observed)
        self._pages = Pages(access)
        self._thumbnails: Thumbnails | None = None
        self.starlette = Starlette(
            routes=[
                Route("/", self.overview),
                Route("/item", self.item),
                Route("/ask", self.ask, methods=["POST"]),
                Route("/retry", self.retry, methods=["POST"]),
                Route("/sign-in", self.sign_in, methods=["GET", "POST"]),
                Route("/sign-out", self.sign_out, methods=["POST"]),
                Route("/picture", self.picture),
                Route("/api/state", self.api_state),
                Route("/plotly.js", self.plotly),
                Route("/health", self.health),
                Mount("/static", StaticFiles(directory=STATIC)),
            ],
            middleware=[Middleware(Guard, hosts=hosts)],
            exception_handlers={HTTPException: self.refused},
            lifespan=self._lifespan,
        )

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with self._open_source() as source:
            self._thumbnails = Thumbnails(source)
            yield

    # ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────

    async def overview(self, request: Request) -> Response:
        """The state of the archive."""
        session = self._reader(request)
        state = await run_in_threadpool(self._observed.state)
        trail = self._observed.trail
        drawn = await run_in_threadpool(charts, trail.moments, [part.name for part in trail.parts])
        return self._page("overview", session, state=state, charts=drawn)

    async def item(self, request: Request) -> Response:
        """A key: its status in each view, and what is near."""
        session = self._reader(request)
        given = request.query_params
        found = await run_in_threadpool(
            self._items.read, given.get("key", ""), given.get("kind", "auto"), near_in=given.get("near", "")
        )
        return self._page("item", session, item=found)

    async def api_state(self, request: Request) -> Response:
        """The state for programs, as `embark console --json` prints it."""
        self._reader(request)
        state = await run_in_threadpool(self._observed.state)
        # Not Starlette's own JSON, which has no escape for half a surrogate pair.
        return Response(json.dumps(state.to_json(), allow_nan=False), media_type="application/json")

    async def picture(self, request: Request) -> Response:
        """The thumbnail of a key that one of our pages shows: its address is signed, so no other site can have any."""
        key = request.query_params.get("key", "")
        if not self._access.is_signed("picture", key, request.query_params.get("sign", "")):
            raise HTTPException(403, "this address was not made by this console")
        assert self._thumbnails is not None  # noqa: S101 - from the start of the application on
        jpeg = await self._thumbnails.of(key)
        if jpeg is None:
            return Response(status_code=404)
        headers = {"Cache-Control": f"private, max-age={PICTURE_SECONDS}"}
        return Response(jpeg, media_type="image/jpeg", headers=headers)

    async def plotly(self, request: Request) -> Response:
        """The charting library, out of its own wheel."""
        headers = {"Cache-Control": f"private, max-age={PLOTLY_SECONDS}", "Vary": "Accept-Encoding"}
        if "gzip" in request.headers.get("accept-encoding", ""):
            headers["Content-Encoding"] = "gzip"
            content = await run_in_threadpool(zipped_plotly)
        else:
            content = plotly.offline.get_plotlyjs().encode()
        return Response(content, media_type="text/javascript", headers=headers)

    async def health(self, request: Request) -> Response:
        """Whether the console itself runs."""
        return PlainTextResponse("ok\n")

    # ── changing ─────────────────────────────────────────────────────────────────────────────────────────────────────

    async def sign_in(self, request: Request) -> Response:
        """The form for the token, and what it sends."""
        if request.method == "GET":
            return self._page("sign_in", self._session(request), to=request.query_params.get("to", "/"), problem="")
        form = await self._form(request)
        to = ours(form.get("to", "/"))
        try:
            session = self._access.sign_in(form.get("token", ""))
        except TooManyTries as error:
            return self._page("sign_in", None, status=429, to=to, problem=str(error) or TooManyTries.__doc__)
        if session is None:
            return self._page("sign_in", None, status=403, to=to, problem="This is not the token.")
        answer = RedirectResponse(to, status_code=303)
        answer.set_cookie(COOKIE, session.name, httponly=True, samesite="strict", secure=self._secure, path="/")
        return answer

    async def sign_out(self, request: Request) -> Response:
        """Ends the session."""
        session, _ = await self._changer(request)
        self._access.sign_out(session.name)
        answer = RedirectResponse("/", status_code=303)
        answer.delete_cookie(COOKIE, path="/")
        return answer

    async def ask(self, request: Request) -> Response:
        """Asks EmbArk for a key, as any look-up does."""
        session, form = await self._changer(request)
        view, key = form.get("view", ""), form.get("key", "")
        if view not in self._observed.specs:
            raise HTTPException(400, f"no encoder is registered under {view!r}")
        session.notices.append(await self._told(self._actions.ask, view, key))
        kind = self._observed.specs[view].modality
        return RedirectResponse(f"/item?{urlencode({'key': key, 'kind': kind})}", status_code=303)

    async def retry(self, request: Request) -> Response:
        """Sends requests of dead letters again: of one position, or of a view and reason."""
        session, form = await self._changer(request)
        if not form.get("position") and not form.get("reason"):
            raise HTTPException(400, "which ones? A position or a reason is missing")
        session.notices.append(await self._told(self._actions.retry, form))
        self._observed.letters.again()
        return RedirectResponse("/#dead-letters", status_code=303)

    async def _told(self, act: Callable[..., str], *arguments: Any) -> str:
        """What became of an action, in a sentence."""
        try:
            return await run_in_threadpool(act, *arguments)
        except Exception as error:
            if not is_expected(error):
                raise
            return f"That did not work: {error}"

    # ── who is there ─────────────────────────────────────────────────────────────────────────────────────────────────

    def _session(self, request: Request) -> Session | None:
        return self._access.session(request.cookies.get(COOKIE, ""))

    def _reader(self, request: Request) -> Session | None:
        """Who reads: a session, or None for anybody.

        Raises:
            HTTPException: nobody who may.
        """
        session = self._session(request)
        if session is None and not self._access.open_to_read:
            raise HTTPException(401, "sign in with the token first")
        return session

    async def _changer(self, request: Request) -> tuple[Session, Mapping[str, str]]:
        """Who changes something, and what they send.

        Raises:
            HTTPException: nobody who may, or a form that is not of this console.
        """
        session = self._session(request)
        if session is None:
            raise HTTPException(403, "sign in with the token first")
        form = await self._form(request)
        if not self._access.is_signed("csrf", session.name, form.get("csrf", "")):
            raise HTTPException(403, "this form was not made by this console: go back and load the page again")
        return session, form

    async def _form(self, request: Request) -> Mapping[str, str]:
        content = b""
        async for chunk in request.stream():
            content += chunk
            if len(content) > FORM_BYTES:
                raise HTTPException(413, "the form is too large")
        try:
            fields = parse_qs(content.decode(), keep_blank_values=True, max_num_fields=MOST_FIELDS)
        except ValueError:
            raise HTTPException(400, "this is no form") from None
        return {name: values[0] for name, values in fields.items()}

    # ── answers ──────────────────────────────────────────────────────────────────────────────────────────────────────

    def _page(self, name: str, session: Session | None, *, status: int = 200, **values: Any) -> HTMLResponse:
        page = self._pages.render(name, session=session, project=self._observed.project, **values)
        return HTMLResponse(page.encode(errors="replace"), status_code=status)  # a key may hold half a surrogate pair

    async def refused(self, request: Request, error: Exception) -> Response:
        """An error as a page, or as JSON for programs; who has to sign in is led there."""
        assert isinstance(error, HTTPException)  # noqa: S101 - of Starlette
        if request.url.path.startswith("/api/"):
            return JSONResponse({"error": error.detail}, status_code=error.status_code)
        if error.status_code == 401:
            to = request.url.path + (f"?{request.url.query}" if request.url.query else "")
            return RedirectResponse(f"/sign-in?{urlencode({'to': to})}", status_code=303)
        return self._page(
            "refused", self._session(request), status=error.status_code, code=error.status_code, detail=error.detail
        )


@functools.cache
def zipped_plotly() -> bytes:
    """A third of 5 MB. Pages are not compressed: beside what a stranger writes, their length would tell of the rest."""
    return gzip.compress(plotly.offline.get_plotlyjs().encode())


def ours(to: str) -> str:
    """Where to go after signing in: a path of this console, whatever a link says."""
    parts = urlsplit(to)
    safe = to.startswith("/") and not to.startswith(("//", "/\\")) and not parts.netloc and not parts.scheme
    return to if safe and all(" " <= each < "\x7f" for each in to) else "/"
