"""The metrics of EmbArk, KFC and Retina, scraped as Prometheus would: what each counted since it was last asked."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import httpcore
from prometheus_client.parser import text_string_to_metric_families

SECONDS = 2.0  # for one answer; a part that takes longer is away
MAX_BYTES = 4 << 20  # of one: some hundred encoders have as many
PREFIXES = ("embark_", "kfc_")
COUNTED = ("_total", "_bucket", "_count", "_sum")  # how the names of what only grows end
ANYWHERE = ("0.0.0.0", "[::]")  # noqa: S104 - what listens there is asked on this machine

Series = tuple[str, tuple[tuple[str, str], ...]]  # name and labels, sorted
Reading = Mapping[Series, float]
Fetch = Callable[[str], str]


class PartAway(Exception):
    """A part did not tell its metrics; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a part told when it was last asked.

    Attributes:
        counts: growth of what only grows since the time before, of all its processes together.
        gauges: the largest of all its processes; what one does not know (NaN) is left out.
        seconds: in which the counts grew; 0 where there was no time before.
        answered: how many of its processes answered.
        away: address → why nothing came from there.
    """

    counts: Reading = field(default_factory=dict)
    gauges: Reading = field(default_factory=dict)
    seconds: float = 0.0
    answered: int = 0
    away: Mapping[str, str] = field(default_factory=dict)


class Part:
    """One of the three parts, at one address or several. For one thread at a time.

    Args:
        name: for people: EmbArk, KFC, Retina.
        addresses: `host:port` of the metrics of each of its processes; none: it is not known where.
        setting: what tells the address, for a message.
        fetch: URL → text.
        clock: seconds, of any origin.
    """

    def __init__(
        self,
        name: str,
        addresses: Sequence[str],
        setting: str,
        *,
        fetch: Fetch | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.addresses = tuple(addresses)
        self.setting = setting
        self._fetch = fetch or fetched
        self._clock = clock
        self._before: dict[str, tuple[float, Reading]] = {}

    def look(self) -> Step:
        """Asks all of its processes at once."""
        if not self.addresses:
            return Step()
        with ThreadPoolExecutor(len(self.addresses)) as pool:
            told = dict(zip(self.addresses, pool.map(self._told, self.addresses), strict=True))
        counts: dict[Series, float] = {}
        gauges: dict[Series, float] = {}
        seconds = 0.0
        for address, answer in told.items():
            if isinstance(answer, str):
                continue
            now, reading = answer
            then, before = self._before.get(address, (now, reading))
            self._before[address] = (now, reading)
            seconds = max(seconds, now - then)
            for series, value in reading.items():
                if series[0].endswith(COUNTED):
                    counts[series] = counts.get(series, 0.0) + grown(before.get(series, 0.0), value)
                elif not math.isnan(value):
                    gauges[series] = max(gauges.get(series, value), value)
        away = {address: answer for address, answer in told.items() if isinstance(answer, str)}
        return Step(counts=counts, gauges=gauges, seconds=seconds, answered=len(told) - len(away), away=away)

    def _told(self, address: str) -> tuple[float, Reading] | str:
        try:
            return self._clock(), parsed(self._fetch(f"http://{reached(address)}/metrics"))
        except PartAway as error:
            return str(error)


def grown(before: float, now: float) -> float:
    """By how much a counter has grown; one that is smaller than before began anew with its process."""
    return now - before if now >= before else now


def reached(address: str) -> str:
    """Where to ask for what listens at an address."""
    host, _, port = address.rpartition(":")
    return f"127.0.0.1:{port}" if host in ANYWHERE else address


def parsed(text: str) -> Reading:
    """The series of our parts in Prometheus's text.

    Raises:
        PartAway: it is no such text.
    """
    try:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name.startswith(PREFIXES)
        }
    except (ValueError, IndexError, KeyError) as error:
        raise PartAway(f"it tells no metrics: {error}") from error


def fetched(url: str) -> str:
    """What a URL answers, in limited time and size; proxies are not asked.

    Raises:
        PartAway: nothing, or no metrics.
    """
    timeouts = dict.fromkeys(("connect", "read", "write", "pool"), SECONDS)
    content = b""
    try:
        with (
            httpcore.ConnectionPool() as pool,
            pool.stream("GET", url, extensions={"timeout": timeouts}) as answer,
        ):
            if answer.status != 200:
                raise PartAway(f"it answers {answer.status}")
            for chunk in answer.iter_stream():
                content += chunk
                if len(content) > MAX_BYTES:
                    raise PartAway(f"it tells more than {MAX_BYTES >> 20} MB")
    except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException, OSError) as error:
        raise PartAway(f"it does not answer ({type(error).__name__})") from error
    return content.decode(errors="replace")
