"""What the demo saw: the JSON of `embark demo --json` and the content of its report."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One step of the demo, whether it held, and what was seen."""

    name: str
    held: bool
    seconds: float
    detail: str


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderShown:
    """A registered encoder."""

    view: str
    modality: str
    dim: int
    network: str
    weights: str
    pretrained: bool
    fingerprint: str
    registered_while_running: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Latency:
    """Percentiles of answers over gRPC, one key a call, in milliseconds."""

    p50: float
    p95: float
    p99: float
    n: int

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Self:
        p50, p95, p99 = np.percentile(milliseconds, [50, 95, 99])
        return cls(p50=round(p50, 2), p95=round(p95, 2), p99=round(p99, 2), n=len(milliseconds))


@dataclass(frozen=True, kw_only=True, slots=True)
class ItemShown:
    """One key of one view: what it was answered, and when that changed."""

    view: str
    key: str
    title: str
    expected: str  # HIT or FAILED
    timeline: list[tuple[float, str]]  # seconds since it was first asked for, status from then on
    seconds_to_hit: float | None
    failure: str | None

    @property
    def status(self) -> str:
        """The last answer."""
        return self.timeline[-1][1]


@dataclass(frozen=True, kw_only=True, slots=True)
class Impression:
    """One historical look-up, as training makes it."""

    view: str
    key: str
    at: str  # ISO 8601
    reading: str
    expected: bool
    found: bool
    equals_served: bool | None  # None where nothing was found


@dataclass(kw_only=True, slots=True)
class DemoResult:
    """All of it; filled while the demo runs."""

    steps: list[Step] = field(default_factory=list)
    servers: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    encoders: list[EncoderShown] = field(default_factory=list)
    latency_ms: dict[str, Latency] = field(default_factory=dict)
    items: list[ItemShown] = field(default_factory=list)
    history_rows: dict[str, int] = field(default_factory=dict)
    impressions: list[Impression] = field(default_factory=list)
    neighbours: dict[str, dict[str, list[tuple[str, float]]]] = field(default_factory=dict)
    downloads: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def held(self) -> bool:
        """Whether every step held."""
        return bool(self.steps) and all(step.held for step in self.steps)

    def to_json(self) -> dict[str, Any]:
        """Plain values, ready for `json.dumps`."""
        return {"held": self.held, **asdict(self)}
