"""What an archive is asked for, and what its parts were measured to do."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

DAY = 86_400.0
SINGLE_RANKS = 256  # the most popular items, each in a bin of its own
BINS = 1200  # of the others, by rank: a bin's items differ by less than 2 % in popularity


class PlanError(Exception):
    """A workload or rate that cannot be; the message says which."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderLoad:
    """One registered encoder.

    Attributes:
        dim: floats of an embedding.
        per_second: embeddings that one Retina makes, downloads included.
    """

    name: str
    dim: int
    per_second: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """What is asked for. Every item is looked up in every encoder's view.

    Attributes:
        lookups: keys a second, in each view.
        items: in the catalogue, at any time: a new one takes the place of an old one, at any popularity.
        new_items: a day.
        skew: Zipf's exponent of popularity.
        archived: share of the items that is archived at the start (backfilled), whatever their popularity.
        seconds: simulated.
        change_days: between two changes of an encoder; 0: none.
        change: `migrate` fills the new view before it is served; `cold` serves it at once, empty.
        delay: seconds from a miss to a hit, where no backlog is.
        hot_share: of the items, that EmbArk's hot caches hold together.
    """

    lookups: float
    items: int
    new_items: float
    skew: float = 0.9
    archived: float = 1.0
    seconds: float = 365 * DAY
    change_days: float = 0.0
    change: Literal["migrate", "cold"] = "migrate"
    delay: float = 2.0
    hot_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("lookups", "items", "seconds", "delay"):
            if not getattr(self, name) > 0:
                raise PlanError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.new_items < 0 or self.change_days < 0 or self.skew < 0:
            raise PlanError("new items, change days and skew are not below 0")
        if not (0 <= self.archived <= 1 and 0 <= self.hot_share <= 1):
            raise PlanError("the archived and the hot share lie between 0 and 1")


@dataclass(frozen=True, slots=True)
class Popularity:
    """Items in bins of nearly equal popularity, the most popular first.

    Attributes:
        count: (B,) items in each bin.
        rate: (B,) look-ups a second of each item in it.
    """

    count: NDArray[np.float64]
    rate: NDArray[np.float64]

    @classmethod
    def of(cls, workload: Workload) -> "Popularity":
        """Zipf's law in bins; a billion items take as long as a thousand."""
        single = min(SINGLE_RANKS, workload.items)
        edges = np.arange(1, single + 2, dtype=np.float64)  # ranks 1 … single, each [r, r + 1)
        if workload.items > single:
            rest = np.unique(np.round(np.geomspace(single + 1, workload.items + 1, BINS + 1)))
            edges = np.unique(np.concatenate([edges, rest]))
        count = np.diff(edges)
        few = count <= 1
        # The sum over the ranks of a bin, by the integral from half a rank before to half a rank after
        weight = np.where(few, edges[:-1] ** -workload.skew, _between(edges[:-1] - 0.5, edges[1:] - 0.5, workload.skew))
        return cls(count, weight / count * workload.lookups / weight.sum())


def _between(low: NDArray[np.float64], high: NDArray[np.float64], skew: float) -> NDArray[np.float64]:
    if math.isclose(skew, 1.0):
        return np.log(high / low)
    found: NDArray[np.float64] = (high ** (1 - skew) - low ** (1 - skew)) / (1 - skew)
    return found


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """What one of each part does, and costs. Rates are the figures of `benchmarks/RESULTS.md`, from 2 busy cores that
    servers and clients shared: a floor for machines of more. Prices are assumptions, in dollars a month.

    Attributes:
        embark_hot, embark_cold: keys a second of one EmbArk (`benchmarks.serve`, 8 calls of 500 at a time).
        store_read_us, store_read_us_a_float: of one row of Cassandra (`benchmarks.online_read`, 500 keys).
        store_writes: rows a second of one Cassandra (`benchmarks.online_write`).
        kfc: embeddings a second that one KFC archives (`benchmarks.materialize`).
        node_bytes: of rows, that a Cassandra holds with room for compaction.
        replicas: of each row.
        used: share of each rate that is planned with.
    """

    embark_hot: float = 92_395.0
    embark_cold: float = 16_216.0
    store_read_us: float = 18.9
    store_read_us_a_float: float = 0.0189
    store_writes: float = 9_911.0
    kfc: float = 2_279.0
    node_bytes: float = 1e12
    row_overhead: float = 250.0  # key, times, ids, index
    replicas: int = 3
    used: float = 0.6
    price_embark: float = 60.0
    price_node: float = 350.0
    price_broker: float = 150.0
    price_retina: float = 600.0
    price_kfc: float = 60.0

    def __post_init__(self) -> None:
        for name in self.__slots__:
            if not getattr(self, name) > 0:
                raise PlanError(f"rate {name} must be above 0, not {getattr(self, name)}")
