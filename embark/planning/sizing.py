"""From a workload and rates to machines, money, and what becomes of the three assumptions that the design rests on."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from embark.planning.simulation import Course, hot_hit_rate, simulate
from embark.planning.workload import DAY, EncoderLoad, PlanError, Rates, Workload

SETTLED = 0.25  # of the time is left to a cold start before rates count as settled
RARE = 0.01  # of the look-ups may ask for an embedding, at most, for new inputs to be rare
MINUTES = 300.0  # seconds, within which an item is to be scored again
RECOMPUTING = 0.1  # of the time between two changes may go into computing all embeddings anew, at most
MOST_PARTITIONS = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """Whether an assumption of the design holds for the numbers given, and why."""

    assumption: str
    holds: bool
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What is needed, and what comes of it.

    Attributes:
        machines: how many of each part; `retina <encoder>` for each encoder.
        monthly: dollars of each, at the assumed prices.
        courses: of each encoder's view.
        hot_hits: share of the look-ups that hot caches answer.
    """

    workload: Workload
    rates: Rates
    encoders: Sequence[EncoderLoad]
    machines: dict[str, int]
    monthly: dict[str, float]
    courses: dict[str, Course]
    hot_hits: float
    stored_bytes: float
    recompute_days: dict[str, float]
    verdicts: Sequence[Verdict]

    def to_json(self) -> dict[str, Any]:
        """All but the courses' every step."""
        settled = SETTLED * self.workload.seconds
        return {
            "workload": asdict(self.workload),
            "rates": asdict(self.rates),
            "encoders": [asdict(each) for each in self.encoders],
            "machines": self.machines,
            "monthly_dollars": {**self.monthly, "all": round(sum(self.monthly.values()), 2)},
            "hot_hit_rate": round(self.hot_hits, 4),
            "stored_bytes": round(self.stored_bytes),
            "recompute_days": {name: round(days, 2) for name, days in self.recompute_days.items()},
            "views": {
                name: {
                    "oov_rate": round(course.mean_oov(), 6),
                    "hit_rate": round(1 - course.mean_oov(), 6),
                    "oov_rate_settled": round(course.mean_oov(settled), 6),
                    "hit_rate_settled": round(1 - course.mean_oov(settled), 6),
                    "asked_per_second": round(course.mean_asked(settled), 3),
                    "longest_wait_seconds": round(float(course.waiting.max()), 1),
                    "archived_at_the_end": round(float(course.archived[-1]), 4),
                }
                for name, course in self.courses.items()
            },
            "verdicts": [asdict(each) for each in self.verdicts],
        }


def make_plan(
    workload: Workload,
    encoders: Sequence[EncoderLoad],
    rates: Rates,
    *,
    retinas: int | None = None,
    recompute_days: float = 7.0,
    tolerated: float = 0.01,
) -> Plan:
    """The plan.

    Args:
        retinas: of each encoder; otherwise as many as embed what is asked for once all has settled, and all items
            anew within `recompute_days`.
        tolerated: share of the look-ups that may be OOV.

    Raises:
        PlanError: no encoder, or two of one name.
    """
    if not encoders or len({each.name for each in encoders}) < len(encoders):
        raise PlanError("name at least one encoder, and each once")
    settled = SETTLED * workload.seconds
    unlimited = simulate(workload, math.inf)
    asked = unlimited.mean_asked(settled)
    machines: dict[str, int] = {}
    courses: dict[str, Course] = {}
    recompute: dict[str, float] = {}
    for each in encoders:
        needed = asked + workload.items / (recompute_days * DAY)
        of_it = retinas or max(1, math.ceil(needed / (each.per_second * rates.used)))
        machines[f"retina {each.name}"] = of_it
        capacity = of_it * each.per_second
        courses[each.name] = unlimited if capacity == math.inf else simulate(workload, capacity)
        spare = max(capacity - courses[each.name].mean_asked(settled), 1e-9)
        recompute[each.name] = workload.items / spare / DAY
    hot = hot_hit_rate(workload)
    views, floats = len(encoders), sum(each.dim for each in encoders)
    stored = workload.items * (4 * floats + views * rates.row_overhead)
    cold = workload.lookups * (1 - hot)
    read_seconds = sum(cold * (rates.store_read_us + rates.store_read_us_a_float * e.dim) for e in encoders) / 1e6
    written = views * (asked + workload.items / (recompute_days * DAY))
    workers = max(1, math.ceil(written / (rates.kfc * rates.used)))
    machines |= {
        "cassandra": max(
            rates.replicas,
            math.ceil(stored * rates.replicas / rates.node_bytes),
            math.ceil(read_seconds / rates.used),
            math.ceil(written * rates.replicas / (rates.store_writes * rates.used)),
        ),
        "embark": max(
            2,
            math.ceil(views * (workload.lookups * hot / rates.embark_hot + cold / rates.embark_cold) / rates.used),
        ),
        "kfc": workers,
        "kafka": 3,
        "kafka partitions": min(MOST_PARTITIONS, max(6, 2 * workers)),
    }
    monthly = {
        "cassandra": machines["cassandra"] * rates.price_node,
        "embark": machines["embark"] * rates.price_embark,
        "kfc": machines["kfc"] * rates.price_kfc,
        "kafka": machines["kafka"] * rates.price_broker,
    } | {name: n * rates.price_retina for name, n in machines.items() if name.startswith("retina ")}
    return Plan(
        workload=workload,
        rates=rates,
        encoders=encoders,
        machines=machines,
        monthly=monthly,
        courses=courses,
        hot_hits=hot,
        stored_bytes=stored,
        recompute_days=recompute,
        verdicts=_verdicts(workload, courses, asked, recompute, settled, tolerated),
    )


def _verdicts(
    workload: Workload,
    courses: dict[str, Course],
    asked: float,
    recompute: dict[str, float],
    settled: float,
    tolerated: float,
) -> list[Verdict]:
    worst, course = max(courses.items(), key=lambda each: each[1].mean_oov(settled))
    oov, wait = course.mean_oov(settled), float(course.waiting[course.time > settled].max())
    share = asked / workload.lookups
    slowest, days = max(recompute.items(), key=lambda each: each[1])
    part = days / workload.change_days if workload.change_days else 0.0
    return [
        Verdict(
            assumption="an OOV answer is tolerable: the item is scored again within minutes",
            holds=oov <= tolerated and wait <= MINUTES,
            why=f"{oov:.3%} of look-ups are OOV ({tolerated:.3%} tolerated), for {wait:,.0f} s at most ({MINUTES:.0f});"
            f" {worst} is the worst",
        ),
        Verdict(
            assumption="new inputs are rare beside look-ups",
            holds=share <= RARE,
            why=f"{share:.3%} of look-ups ask for an embedding ({RARE:.0%} is rare), {asked:,.1f} a second",
        ),
        Verdict(
            assumption="embeddings rarely change",
            holds=part <= RECOMPUTING and not (workload.change == "cold" and workload.change_days and oov > tolerated),
            why=f"all of {slowest} anew takes {days:,.1f} days"
            + (
                f", {part:.0%} of the time between two changes ({RECOMPUTING:.0%})"
                if part
                else "; no change is planned"
            ),
        ),
    ]
