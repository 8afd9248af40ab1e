"""Secrets are shown to the host that they are for, and to nobody else."""

import asyncio
import hashlib
import hmac
import ssl
from typing import Any

import pytest

from encoders.fetch import Fetcher
from encoders.signing import HostSecret, Signer
from tests.encoders import web
from tests.encoders.web import LOOPBACK, Web, redirect_to, serving

NOW = 1_800_000_000


def fetch(url: str, secrets: dict[str, HostSecret], **settings: Any) -> bytes:
    async def run() -> bytes:
        fetcher = Fetcher(allowed_networks=LOOPBACK, secrets=secrets, clock=lambda: NOW + 0.5, **settings)
        async with fetcher:
            return await fetcher.fetch(url)

    return asyncio.run(run())


def shown(site: Web, header: str = "authorization") -> list[str | None]:
    """What each request to a site said in a header."""
    return [headers.get(header) for _, headers in site.seen]


def test_a_token_is_sent_to_its_host_alone() -> None:
    with serving({"/a": b"picture"}) as ours, serving({"/a": b"picture"}) as other:
        secrets = {f"127.0.0.1:{ours.port}": HostSecret(secret="Bearer t", allow_http=True)}  # noqa: S106
        assert fetch(ours.url("/a"), secrets) == b"picture"
        assert fetch(other.url("/a"), secrets) == b"picture"
        assert shown(ours) == ["Bearer t"]
        assert shown(other) == [None]


def test_a_secret_goes_nowhere_in_the_clear_unless_it_is_allowed() -> None:
    secret = HostSecret(secret="Bearer t")  # noqa: S106
    with serving({"/a": b"picture"}) as site:
        fetch(site.url("/a"), {f"127.0.0.1:{site.port}": secret})
        assert shown(site) == [None]
    with serving({"/a": b"picture"}, tls=True) as site:
        fetch(
            f"https://pictures.example:{site.port}/a",
            {f"pictures.example:{site.port}": secret},
            resolve=lambda host, port: ["127.0.0.1"],
            tls=ssl.create_default_context(cafile=str(web.CERTIFICATE)),
        )
        assert shown(site) == ["Bearer t"]


def test_a_redirect_to_another_host_loses_the_secret_for_good() -> None:
    with serving({}) as ours, serving({}) as other:
        ours.pages |= {"/a": redirect_to("/b"), "/b": redirect_to(other.url("/c")), "/d": b"picture"}
        other.pages |= {"/c": redirect_to(ours.url("/d"))}
        both = {
            f"127.0.0.1:{ours.port}": HostSecret(secret="ours", allow_http=True),  # noqa: S106
            f"127.0.0.1:{other.port}": HostSecret(secret="other", allow_http=True),  # noqa: S106
        }
        assert fetch(ours.url("/a"), both) == b"picture"
        assert shown(ours) == ["ours", "ours", None]
        assert shown(other) == [None]


def test_a_signature_covers_time_host_and_path() -> None:
    with serving({"/a": b"picture"}) as site:
        host = f"127.0.0.1:{site.port}"
        signed = HostSecret(secret="key", scheme="hmac-sha256", header="X-Signature", allow_http=True)  # noqa: S106
        fetch(site.url("/a?w=1"), {host: signed})
        expected = hmac.new(b"key", f"{NOW}\n{host}\n/a?w=1".encode(), hashlib.sha256).hexdigest()
        assert shown(site, "x-signature") == [f"t={NOW},v1={expected}"]


@pytest.mark.parametrize(
    "wrong",
    [{"secret": ""}, {"secret": "a\r\nX: b"}, {"secret": "a", "header": "Host"}, {"secret": "a", "header": "a b"}],
)
def test_what_makes_no_header_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"header|secret"):
        HostSecret(**wrong)  # type: ignore[arg-type]


def test_a_host_is_written_as_requests_name_it() -> None:
    for host in ("https://a.example", "A.example", "a.example/x", ""):
        with pytest.raises(ValueError, match="no host in lower case"):
            Signer({host: HostSecret(secret="s")})  # noqa: S106
    assert "very secret" not in repr(HostSecret(secret="very secret"))  # noqa: S106
