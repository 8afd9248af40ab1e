"""`embark lookup`: asks EmbArk, waits if told to, and shows the answer."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from embark.settings import Settings
from feature_repo.embeddings import Status
from serving.client import Answer, ClientTls, EmbArkClient

ASK_AGAIN_SECONDS = 0.25
COLOURS = {Status.HIT: "green", Status.OOV: "yellow", Status.FAILED: "red", Status.UNAVAILABLE: "magenta"}


def ask(client: EmbArkClient, view: str, keys: Sequence[str], wait: float = 0.0) -> tuple[Answer, float]:
    """The answer and the milliseconds it took; asked again for up to `wait` seconds while any key is OOV."""
    deadline = time.monotonic() + wait
    while True:
        start = time.perf_counter()
        answer = client.lookup(view, list(keys))
        milliseconds = (time.perf_counter() - start) * 1000
        if not (answer.status == Status.OOV).any() or time.monotonic() + ASK_AGAIN_SECONDS > deadline:
            return answer, milliseconds
        time.sleep(ASK_AGAIN_SECONDS)


def describe(view: str, keys: Sequence[str], answer: Answer, milliseconds: float) -> dict[str, Any]:
    """The answer as JSON: vectors in full."""
    return {
        "view": view,
        "weights": answer.weights,
        "pretrained": not answer.weights.startswith("seeded:"),
        "milliseconds": round(milliseconds, 3),
        "keys": [
            {
                "key": key,
                "status": Status(int(answer.status[i])).name,
                "failure": answer.failures.get(i),
                "embedding_id": int(answer.embedding_id[i]),
                "event_time": int(answer.event_time[i]),
                "embedding": [float(v) for v in answer.vectors[i]],
            }
            for i, key in enumerate(keys)
        ],
    }


def print_answer(out: Console, view: str, keys: Sequence[str], answer: Answer, milliseconds: float) -> None:
    """A row a key: status, length and norm of what was answered, why it failed."""
    table = Table(box=None, pad_edge=False)
    for column in ("status", "key", "embedding", "why"):
        table.add_column(column, overflow="fold")
    for i, key in enumerate(keys):
        status = Status(int(answer.status[i]))
        vector = answer.vectors[i]
        table.add_row(
            f"[{COLOURS[status]}]{status.name}[/]",
            escape(key),
            f"{len(vector)} values, norm {np.linalg.norm(vector):.3f}",
            escape(answer.failures.get(i, "")),
        )
    out.print(table)
    seeded = " (NOT pretrained)" if answer.weights.startswith("seeded:") else ""
    out.print(f"{view}, weights {answer.weights}{seeded}, answered in {milliseconds:.1f} ms")


def client_tls(settings: Settings) -> ClientTls | None:
    """What a client of EmbArk needs to trust it and be trusted; None: plain text."""
    if settings.client_ca is None and settings.client_certificate is None:
        return None
    return ClientTls(ca=settings.client_ca, certificate=settings.client_certificate, key=settings.client_key)
