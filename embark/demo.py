"""`embark demo`: the main job on real servers, from an empty archive to hits, history and a report; narrated.

Everything runs on free ports, in a folder of its own, and is stopped at the end. Each step says what must hold; the
demo holds if all of them do.
"""

import contextlib
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from embark.child_process import ChildProcess, ProcessDied
from embark.demo_history import read_history
from embark.demo_lookups import IMAGE_VIEW, LARGE_IMAGE_VIEW, LATE_VIEW, TEXT_VIEW, Lookups, LookupsDiffer
from embark.demo_result import DemoResult, EncoderShown, Step
from embark.photographs import PhotographServer
from embark.repo import open_store, write_repo
from embark.report import PROMISED_MS, write_report
from embark.servers import LocalServers, ServersError, free_port
from embark.settings import Settings
from embark.starting import start_servers
from encoders.client import RetinaAway, RetinaClient
from feature_repo.views import encoder_specs
from serving.client import ClientError, EmbArkClient, ViewUnknown
from training.photographs import photographs

LATE_ENCODER = """
ENCODERS.append(
    EncoderSpec(
        name="resnet18",
        version="v1",
        modality="image",
        dim=512,
        network="torchvision:resnet18",
        fallback_weights="seeded:0",
    )
)
"""
AT_ONCE_MS = 200.0  # a ranker's budget; a busy machine is slower than promised, but it never waits for an encoder
READY_SECONDS = 120.0
REGISTERED_SECONDS = 10.0
APPLY_SECONDS = 240.0


class NotHeld(Exception):
    """What a step promises does not hold; the message says what was seen instead."""


class Demo:
    """One run, step by step.

    Args:
        settings: log level and device are taken from them; addresses and folders are the demo's own.
        out: where it is narrated.
        folder: for servers, repo and logs; removed at the end unless `keep`.
    """

    def __init__(self, settings: Settings, out: Console, folder: Path, *, keep: bool = False) -> None:
        self._out = out
        self._folder = folder
        self._keep = keep
        self._repo = folder / "feature_repo"
        self._servers = LocalServers(state=folder / "servers", kafka_port=free_port(), cassandra_port=free_port())
        self._settings = Settings.model_validate(
            settings.model_dump()
            | {
                "repo": self._repo,
                "state": folder / "servers",
                "embark_address": f"127.0.0.1:{free_port()}",
                "retina_address": f"127.0.0.1:{free_port()}",
                "fetch_networks": ["127.0.0.0/8"],  # the photographs are served from this machine
            }
        )
        self.result = DemoResult(
            versions={
                "python": platform.python_version(),
                **{name: version(name) for name in ("feast", "torch", "torchvision")},
            }
        )

    def run(self, report: Path | None) -> DemoResult:
        """All steps; the first that does not hold ends it, and what was started is stopped in any case."""
        shutil.rmtree(self._folder, ignore_errors=True)
        with contextlib.ExitStack() as stack:
            try:
                self._steps(stack)
            except (NotHeld, LookupsDiffer, ProcessDied, ServersError, ClientError) as failure:
                self._out.print(f"  [red]does not hold:[/] {escape(str(failure))}")
            finally:
                if report is not None:
                    write_report(report, self.result, {p.name: p.jpeg for p in photographs()})
                    self._out.print(f"report: {report.resolve()}")
        self._out.print("stopped what was started")
        if not self._keep and self.result.held:
            shutil.rmtree(self._folder, ignore_errors=True)
        return self.result

    def _steps(self, stack: contextlib.ExitStack) -> None:
        with self._step("Start Kafka and Cassandra") as seen:
            stack.callback(self._servers.down)
            start_servers(self._servers, self._out, indent="  ")
            self.result.servers = {s.name.partition("-")[0]: s.version for s in self._servers.status()}
            seen(", ".join(f"{name} {v}" for name, v in self.result.servers.items()))
        with self._step("Register the encoders with `feast apply`") as seen:
            write_repo(
                self._repo,
                project="demo",
                kafka=self._servers.kafka_bootstrap,
                cassandra_hosts=self._servers.cassandra_hosts,
                cassandra_port=self._servers.cassandra_port,
            )
            self._feast_apply()
            self._show_encoders(while_running=False)
            seen(", ".join(e.view for e in self.result.encoders))
        with self._step("Start Retina, KFC and EmbArk, and a shop's web server") as seen:
            site = stack.enter_context(PhotographServer())
            parts = self._start_parts(stack)
            client = stack.enter_context(EmbArkClient(self._settings.embark_address))
            seen(f"{len(photographs())} photographs at {site.base}")
        lookups = Lookups(site, client, self._out, parts)
        with self._step("Look everything up: nothing is known, and answered at once") as seen:
            self.result.latency_ms["oov"] = latency = lookups.first_look([TEXT_VIEW, IMAGE_VIEW, LARGE_IMAGE_VIEW])
            slow = "" if latency.p50 < PROMISED_MS else f"; {PROMISED_MS:g} ms are promised where nothing else works"
            seen(f"{len(lookups.items)} keys; OOV answers p50 {latency.p50} ms, p99 {latency.p99} ms{slow}")
            self._require(lookups.all_oov_at_first(), "a key that was never seen was not OOV at first")
            self._require(latency.p50 < AT_ONCE_MS, f"OOV answers took {latency.p50} ms at p50: not at once")
        with self._step("Watch them turn into hits") as seen:
            lookups.watch()
            self.result.items = lookups.shown()
            self._require(not (late := lookups.not_as_expected()), f"not as expected: {late}")
            slowest = max(item.seconds_to_hit or 0.0 for item in self.result.items)
            seen(f"{lookups.hits()} hits, the slowest after {slowest:.1f} s; {lookups.failures()} failed with reasons")
        with self._step("Look the hits up again") as seen:
            self.result.latency_ms["hit"] = latency = lookups.hit_latency()
            seen(f"p50 {latency.p50} ms, p99 {latency.p99} ms over {latency.n} calls")
        with self._step("The same through Feast's get_online_features") as seen:
            seen(lookups.same_through_feast(self._repo))
        with self._step("Register one more encoder while everything runs") as seen:
            with (self._repo / "catalog.py").open("a") as catalog:
                catalog.write(LATE_ENCODER)
            self._feast_apply()
            waited = self._wait_until_served(client)
            self._show_encoders(while_running=True)
            lookups.first_look([LATE_VIEW])
            lookups.watch()
            self.result.items = lookups.shown()
            self._require(not (late := lookups.not_as_expected()), f"not as expected: {late}")
            seen(f"{LATE_VIEW} served {waited:.1f} s after `feast apply`, without a restart, and filled")
        with self._step("Read history as of any time") as seen:
            read_history(open_store(self._repo), lookups, self.result)
            wrong = [i for i in self.result.impressions if i.found != i.expected or i.equals_served is False]
            self._require(not wrong, f"{len(wrong)} of {len(self.result.impressions)} impressions are not as expected")
            rows = ", ".join(f"{view} {count}" for view, count in self.result.history_rows.items())
            seen(f"{len(self.result.impressions)} impressions as expected; rows: {rows}")
        with self._step("Each picture was downloaded once an encoder") as seen:
            self.result.downloads = dict(site.requests)
            encoders = len([e for e in self.result.encoders if e.modality == "image"])
            often = {p: n for p, n in site.requests.items() if p.startswith("/photographs/") and n > encoders}
            self._require(not often, f"downloaded more often than {encoders} times: {often}")
            seen(f"{len(site.requests)} URLs, {sum(site.requests.values())} downloads for {encoders} encoders")
        self.result.neighbours = lookups.neighbours()

    @contextlib.contextmanager
    def _step(self, name: str) -> Iterator[Callable[[str], None]]:
        self._out.print(f"[bold]{len(self.result.steps) + 1}. {name}[/]")
        start, details = time.monotonic(), list[str]()
        try:
            yield details.append
        except BaseException as failure:
            self._note_step(name, start, False, f"{type(failure).__name__}: {failure}")
            raise
        self._note_step(name, start, True, "; ".join(details))
        self._out.print(
            f"  [green]holds[/] ({self.result.steps[-1].seconds:.1f} s): {escape(self.result.steps[-1].detail)}"
        )

    def _note_step(self, name: str, start: float, held: bool, detail: str) -> None:
        seconds = round(time.monotonic() - start, 2)
        self.result.steps.append(Step(name=name, held=held, seconds=seconds, detail=detail))

    def _require(self, holds: bool, otherwise: str) -> None:
        if not holds:
            raise NotHeld(otherwise)

    def _feast_apply(self) -> None:
        """Feast's own command, as a user types it."""
        done = subprocess.run(  # noqa: S603 - our own command
            [Path(sys.executable).with_name("feast"), "apply"],
            cwd=self._repo,
            capture_output=True,
            text=True,
            timeout=APPLY_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise NotHeld(f"`feast apply` failed: {(done.stdout + done.stderr).strip()[-600:]}")
        for line in done.stdout.splitlines():
            if line.startswith("embark:"):
                self._out.print(f"  [yellow]{escape(line.removeprefix('embark: '))}[/]")

    def _show_encoders(self, *, while_running: bool) -> None:
        known = {e.view for e in self.result.encoders}
        for spec in encoder_specs(open_store(self._repo), allow_cache=False).values():
            if spec.view in known:
                continue
            shown = EncoderShown(
                view=spec.view,
                modality=spec.modality,
                dim=spec.dim,
                network=spec.network,
                weights=spec.pinned,
                pretrained=spec.pretrained,
                fingerprint=spec.fingerprint,
                registered_while_running=while_running,
            )
            self.result.encoders.append(shown)
            if not spec.pretrained:
                self.result.notes.append(f"{spec.view} has seeded weights ({spec.pinned}): it is NOT pretrained")

    def _start_parts(self, stack: contextlib.ExitStack) -> list[ChildProcess]:
        environment, logs = self._settings.as_environment(), self._folder / "logs"
        retina, materialize, serve = (
            stack.enter_context(ChildProcess(name, [name], environment, logs / f"{name}.txt"))
            for name in ("retina", "materialize", "serve")
        )
        retina.wait_until(self._retina_answers, READY_SECONDS)
        serve.wait_until(self._embark_answers, READY_SECONDS)
        materialize.check()
        return [retina, materialize, serve]

    def _retina_answers(self) -> bool:
        with RetinaClient(self._settings.retina_address) as client:
            try:
                return len(client.encoders(timeout=1.0).encoders) == len(self.result.encoders)
            except RetinaAway:
                return False

    def _embark_answers(self) -> bool:
        with EmbArkClient(self._settings.embark_address) as client:
            return client.answers(TEXT_VIEW)

    def _wait_until_served(self, client: EmbArkClient) -> float:
        start = time.monotonic()
        while time.monotonic() - start < REGISTERED_SECONDS:
            with contextlib.suppress(ViewUnknown):
                client.lookup(LATE_VIEW, [])
                return time.monotonic() - start
            time.sleep(0.1)
        raise NotHeld(f"{LATE_VIEW} is not served {REGISTERED_SECONDS:.0f} s after `feast apply`")
