"""The Envoy of `deploy/envoy`, before EmbArks of this machine."""

import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from embark.servers import free_port

DEPLOYED = Path(__file__).parents[1] / "deploy" / "envoy" / "envoy.yaml"


def configuration(port: int, addresses: Sequence[str]) -> dict[str, Any]:
    """What is deployed, but for where it listens and whom it calls: its checks, its retries, its way to balance."""
    deployed = yaml.safe_load(DEPLOYED.read_text())["static_resources"]
    (listener,) = (each for each in deployed["listeners"] if each["name"] == "embark")
    (cluster,) = (each for each in deployed["clusters"] if each["name"] == "embark")
    listener["address"] = _place("127.0.0.1", port)
    cluster["type"] = "STATIC"
    del cluster["dns_refresh_rate"]
    places = [_place(*address.rsplit(":", 1)) for address in addresses]
    cluster["load_assignment"]["endpoints"] = [{"lb_endpoints": [{"endpoint": {"address": place}} for place in places]}]
    return {"static_resources": {"listeners": [listener], "clusters": [cluster]}}


def _place(host: str, port: int | str) -> dict[str, Any]:
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextmanager
def envoy(command: str, addresses: Sequence[str], folder: Path) -> Iterator[str]:
    """The address of a running one, which may not be ready yet.

    Args:
        command: path of `envoy`.
        addresses: `host:port` of the EmbArks.
        folder: for its configuration and log.
    """
    port = free_port()
    file = folder / "envoy.yaml"
    file.write_text(yaml.safe_dump(configuration(port, addresses)))
    with (folder / "envoy.txt").open("wb") as log:
        # Others may run one on this machine: what it shares with its successor is of no use here.
        arguments = ["-c", str(file), "--concurrency", "1", "--disable-hot-restart"]
        process = subprocess.Popen([command, *arguments], stdout=log, stderr=log)  # noqa: S603
        try:
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(30)
