"""What every answer carries and every question must: headers for browsers, hosts that are ours, no foreign forms."""

from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# Scripts and style sheets are files of ours. Plotly places its drawings by style attributes, which run nothing.
POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src-elem 'self'",
        "style-src-attr 'unsafe-inline'",
        "img-src 'self'",
        "connect-src 'self'",
        "form-action 'self'",
        "base-uri 'none'",
        "frame-ancestors 'none'",
    ]
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}
LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """ASGI middleware.

    Args:
        app: what it guards.
        hosts: names by which browsers may ask, without ports; None: any. A page of a stranger, whose name was made to
            lead here (DNS rebinding), asks by its own name, and is refused.
    """

    def __init__(self, app: ASGIApp, hosts: frozenset[str] | None) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        why = self._why_not(scope["method"], Headers(scope=scope))
        if why:
            await PlainTextResponse(why, status_code=403)(scope, receive, with_headers)
        else:
            await self._app(scope, receive, with_headers)

    def _why_not(self, method: str, headers: Headers) -> str:
        host = headers.get("host", "")
        if self._hosts is not None and name_of(host) not in self._hosts:
            return "this console does not answer under this name: set EMBARK_CONSOLE_HOSTS\n"
        if method in ("GET", "HEAD"):
            return ""
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return "this form comes from another site\n"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return "this form comes from another site\n"
        return ""


def name_of(host: str) -> str:
    """The name in a Host header, without its port and in lower case."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
