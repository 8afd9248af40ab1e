"""`embark token`: a token for a caller, and the table that names its hash."""

import json
import re
import secrets
from collections.abc import Sequence

import click

from serving.callers import ANY_VIEW, digest

NAME = r"[A-Za-z0-9_-]+"
TOKEN_BYTES = 32


def new_token(
    name: str,
    *,
    views: Sequence[str] = (),
    announce: bool = False,
    keys_per_second: float | None = None,
    bytes_per_second: float | None = None,
    max_keys: int | None = None,
    max_bytes: int | None = None,
) -> tuple[str, str]:
    """A new token, and the TOML table of its caller.

    Raises:
        click.BadParameter: the name cannot stand in TOML as it is.
    """
    if not re.fullmatch(NAME, name):
        raise click.BadParameter("letters, digits, - and _ are allowed", param_hint="NAME")
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    lines = [
        f"[callers.{name}]",
        f'token_sha256 = "{digest(secret)}"',
        f"views = {json.dumps(list(views) or [ANY_VIEW])}",  # a list of strings is the same in TOML
        f"announce = {json.dumps(announce)}",
    ]
    limits = {
        "keys_per_second": keys_per_second,
        "bytes_per_second": bytes_per_second,
        "max_keys": max_keys,
        "max_bytes": max_bytes,
    }
    lines += [f"{limit} = {value:.15g}" for limit, value in limits.items() if value is not None]
    return secret, "\n".join(lines) + "\n"
