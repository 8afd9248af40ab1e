"""An agent of Nomad, server and client in one, on loopback, and what a test asks of it."""

import json
import os
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from embark.servers.ports import free_port

SECONDS = 600.0  # for anything: a busy machine is slow, and no failure

CONFIG = """
bind_addr = "127.0.0.1"
disable_update_check = true
log_level = "WARN"
ports { http = %(http)d rpc = %(rpc)d serf = %(serf)d }
client {
  network_interface = "lo"
  cpu_total_compute = 100000 # what the jobs reserve is for hosts, not for this one
  memory_total_mb = 100000
}
plugin "raw_exec" { config { enabled = true } }
telemetry { disable_hostname = true }
"""


def until(holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
    """Waits until `holds()`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.2)


@dataclass(frozen=True, slots=True)
class Service:
    """A registered instance of a service."""

    address: str
    port: int
    allocation: str

    @property
    def url(self) -> str:
        return f"http://{self.address}:{self.port}"

    @property
    def pid(self) -> int | None:
        """Of the allocation's process; None while there is none."""
        found = [
            each.pid for each in psutil.process_iter() if _environment(each).get("NOMAD_ALLOC_ID") == self.allocation
        ]
        return min(found, default=None)


@dataclass(frozen=True, slots=True)
class Agent:
    """A running agent."""

    binary: Path
    address: str

    def run(self, job: Path, **variables: object) -> None:
        """Submits a job and waits until what it asks for is there and healthy."""
        chosen = [f"-var={name}={_hcl(value)}" for name, value in variables.items()]
        self._command("job", "run", "-detach", *chosen, str(job))

    def scale(self, job: str, count: int) -> None:
        """Has a job's one group run `count` times."""
        self._command("job", "scale", "-detach", job, str(count))

    def services(self, name: str) -> list[Service]:
        """The registered instances of a service."""
        try:
            found = self.get(f"/v1/service/{name}")
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return []
            raise
        return [Service(each["Address"], each["Port"], each["AllocID"]) for each in found]

    def settled(self, job: str, count: int) -> bool:
        """Whether `count` allocations of the newest version run and are healthy, no other runs, nothing is deployed."""
        if any(each["Status"] in ("running", "pending", "blocked") for each in self._of(job, "deployments")):
            return False
        version = self.get(f"/v1/job/{job}")["Version"]
        alive = [each for each in self._of(job, "allocations") if each["ClientStatus"] in ("pending", "running")]
        current = [
            each
            for each in alive
            if each["ClientStatus"] == "running"
            and each["JobVersion"] == version
            and (each["DeploymentStatus"] or {"Healthy": True})["Healthy"]
        ]
        return len(current) == len(alive) == count

    def state(self, job: str) -> str:
        """What a person would look at where a wait was in vain."""
        lines = [
            f"{each['ID'][:8]} v{each['JobVersion']} {each['ClientStatus']} {each['DeploymentStatus']} "
            + "; ".join(f"{e['Type']}: {e['DisplayMessage']}" for t in (each["TaskStates"] or {}).values()
                        for e in t["Events"])
            for each in self._of(job, "allocations")
        ]  # fmt: skip
        return "\n".join([*lines, *(f"{d['Status']}: {d['StatusDescription']}" for d in self._of(job, "deployments"))])

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"{self.address}{path}", timeout=30) as answer:
            return json.load(answer)

    def _of(self, job: str, what: str) -> list[Any]:
        found: list[Any] = self.get(f"/v1/job/{job}/{what}")
        return found

    def _command(self, *words: str) -> None:
        done = subprocess.run(
            [self.binary, *words],
            env=os.environ | {"NOMAD_ADDR": self.address},
            capture_output=True,
            text=True,
            check=False,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"nomad {' '.join(words)}: {done.stdout}{done.stderr}"


@contextmanager
def running_agent(binary: Path, folder: Path, environment: Mapping[str, str]) -> Iterator[Agent]:
    """An agent in development mode, whose jobs end with it."""
    ports = {name: free_port() for name in ("http", "rpc", "serf")}
    config = folder / "agent.hcl"
    config.write_text(CONFIG % ports)
    agent = Agent(binary, f"http://127.0.0.1:{ports['http']}")
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [binary, "agent", "-dev", "-config", config], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        until(lambda: process.poll() is not None or _ready(agent), "Nomad does not answer")
        assert process.poll() is None, (folder / "agent.log").read_text()[-2000:]
        yield agent
    finally:
        children = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in children:  # in development mode an agent that ends stops its tasks; its helpers may linger
            if child.is_running():
                child.kill()
        psutil.wait_procs(children, 30)


def _ready(agent: Agent) -> bool:
    try:
        nodes = agent.get("/v1/nodes")
    except OSError:
        return False
    return any(node["Status"] == "ready" and "raw_exec" in node["Drivers"] for node in nodes)


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:  # it ended meanwhile, or is not ours
        return {}


def _hcl(value: object) -> str:
    return json.dumps(value) if isinstance(value, bool | list) else str(value)
