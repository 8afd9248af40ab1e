"""`embark plan`, against arrivals drawn one by one, and at sizes that cannot be drawn."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from embark.cli import cli
from embark.planning.rates_file import RatesFile, read_rates, write_rates
from embark.planning.simulation import hot_hit_rate, simulate
from embark.planning.sizing import make_plan
from embark.planning.workload import DAY, EncoderLoad, PlanError, Popularity, Rates, Workload
from embark.repo import write_repo
from embark.servers import free_port

SMALL = Workload(lookups=200.0, items=2000, new_items=0.0, archived=0.0, seconds=60.0, delay=2.0)
IMAGES = EncoderLoad(name="images", dim=512, per_second=100.0)


def drawn(workload: Workload, seed: int = 0) -> float:
    """The share of OOV answers where each look-up is drawn, and its embedding is there a delay after the first."""
    draw = np.random.default_rng(seed)
    weights = np.arange(1, workload.items + 1) ** -workload.skew
    keys = draw.choice(workload.items, int(workload.lookups * workload.seconds), p=weights / weights.sum())
    times = np.sort(draw.uniform(0, workload.seconds, len(keys)))
    there = np.full(workload.items, np.inf)
    there[draw.permutation(workload.items)[: int(workload.archived * workload.items)]] = 0.0
    new = draw.poisson(workload.new_items * workload.seconds / DAY)
    events = sorted(
        (t, int(i))
        for t, i in zip(draw.uniform(0, workload.seconds, new), draw.integers(0, workload.items, new), strict=True)
    )
    oov, next_event = 0, 0
    for time, key in zip(times.tolist(), keys.tolist(), strict=True):
        while next_event < len(events) and events[next_event][0] <= time:
            there[events[next_event][1]] = np.inf
            next_event += 1
        if there[key] > time:
            oov += 1
            if there[key] == np.inf:
                there[key] = time + workload.delay
    return oov / len(keys)


@pytest.mark.parametrize(
    "workload",
    [
        SMALL,
        replace(SMALL, skew=1.1),
        replace(SMALL, archived=0.9, new_items=0.5 * 2000 * DAY / 60),
        replace(SMALL, skew=0.0, delay=10.0),
    ],
)
def test_the_simulation_is_within_two_points_of_arrivals_drawn_one_by_one(workload: Workload) -> None:
    simulated = simulate(workload, math.inf).mean_oov()
    assert simulated == pytest.approx(np.mean([drawn(workload, seed) for seed in range(3)]), abs=0.02)


def test_bins_hold_all_items_and_all_look_ups() -> None:
    for items in (1, 100, 257, 10_000, 1_000_000_000):
        popularity = Popularity.of(replace(SMALL, items=items))
        assert popularity.count.sum() == items
        assert (popularity.count * popularity.rate).sum() == pytest.approx(SMALL.lookups)
        assert (np.diff(popularity.rate) <= 1e-12).all()


def test_bins_are_as_popular_as_their_items() -> None:
    popularity = Popularity.of(replace(SMALL, items=100_000))
    weights = np.arange(1, 100_001) ** -SMALL.skew
    top = np.cumsum(popularity.count * popularity.rate) / SMALL.lookups
    exact = np.cumsum(weights)[np.cumsum(popularity.count).astype(int) - 1] / weights.sum()
    np.testing.assert_allclose(top, exact, atol=1e-4)


def test_a_retina_that_is_too_slow_makes_a_backlog_that_ends() -> None:
    fast, slow = simulate(SMALL, math.inf), simulate(replace(SMALL, seconds=600.0), 5.0)
    assert slow.backlog.max() > 5 * fast.backlog.max()
    assert slow.waiting.max() > 30
    assert slow.mean_oov(0, 60) > fast.mean_oov() + 0.05
    ended = simulate(replace(SMALL, seconds=6000.0), 5.0)
    assert ended.oov[-1] < 0.05
    assert (ended.backlog >= -1e-9).all()
    assert ((ended.archived >= -1e-9) & (ended.archived <= 1 + 1e-9)).all()


def test_a_cold_change_of_an_encoder_is_an_outage_of_hits_and_a_migration_is_not() -> None:
    months = replace(SMALL, archived=1.0, seconds=30 * DAY, change_days=10.0)
    cold = simulate(replace(months, change="cold"), 50.0)
    assert cold.oov.max() > 0.5
    assert simulate(months, 50.0).oov.max() == 0.0


def test_the_hot_caches_hit_rate_is_that_of_a_drawn_lru() -> None:
    workload = replace(SMALL, items=1000, hot_share=0.1)
    draw = np.random.default_rng(0)
    weights = np.arange(1, 1001) ** -workload.skew
    kept: dict[int, None] = {}
    hits = 0
    keys = draw.choice(1000, 40_000, p=weights / weights.sum()).tolist()
    for key in keys:
        hits += key in kept
        kept.pop(key, None)
        kept[key] = None
        if len(kept) > 100:
            del kept[next(iter(kept))]
    assert hot_hit_rate(workload) == pytest.approx(hits / len(keys), abs=0.02)
    assert (hot_hit_rate(replace(workload, hot_share=0.0)), hot_hit_rate(replace(workload, hot_share=1.0))) == (0, 1)


def test_machines_follow_what_is_asked_for() -> None:
    base = Workload(lookups=1e4, items=10_000_000, new_items=1e5)
    plan = make_plan(base, [IMAGES], Rates())
    more = make_plan(replace(base, lookups=1e6, items=1_000_000_000), [IMAGES], Rates())
    for part in ("cassandra", "embark", "kfc", "retina images"):
        assert more.machines[part] > plan.machines[part], part
    assert sum(more.monthly.values()) > sum(plan.monthly.values())
    two = make_plan(base, [IMAGES, replace(IMAGES, name="texts", dim=256)], Rates())
    assert two.stored_bytes > plan.stored_bytes
    assert set(two.courses) == {"images", "texts"}


def test_each_assumption_of_the_design_gets_a_verdict_for_the_numbers() -> None:
    base = Workload(lookups=1e4, items=1_000_000, new_items=1e3, seconds=60 * DAY)
    good = make_plan(base, [IMAGES], Rates())
    assert [verdict.holds for verdict in good.verdicts] == [True, True, True]
    flood = make_plan(replace(base, lookups=100.0, new_items=3e6), [IMAGES], Rates(), retinas=10)
    assert [verdict.holds for verdict in flood.verdicts] == [False, False, True]
    restless = make_plan(replace(base, change_days=0.5), [IMAGES], Rates(), retinas=1)
    assert [verdict.holds for verdict in restless.verdicts] == [True, True, False]
    assert "anew takes" in restless.verdicts[2].why


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["plan", *map(str, arguments)])


def examples() -> list[list[str]]:
    """Of the help; the one that measures this machine is run with servers, in tests/integration/test_calibration.py."""
    lines = (cli.commands["plan"].help or "").splitlines()
    told = [line.split()[2:] for line in lines if line.strip().startswith("embark plan")]
    assert sum("--calibrate" in each for each in told) == 1
    return [each for each in told if "--calibrate" not in each]


@pytest.mark.parametrize("example", examples(), ids=" ".join)
def test_the_examples_of_the_help_run(example: list[str], tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text("kfc = 2000\n")
    replaced = {"plan": tmp_path / "pictures", "rates.toml": tmp_path / "rates.toml"}
    arguments = [replaced.get(each, each) for each in example]
    done = run(*arguments)
    assert done.exit_code == 0, done.output
    if "--json" in example:
        told: dict[str, Any] = json.loads(done.stdout)
        assert len(told["verdicts"]) == 3
    else:
        assert "HOLD" in done.stdout.upper()
    if "--to" in example:
        assert all((tmp_path / "pictures" / f"{name}.png").stat().st_size > 5000 for name in ("course", "costs"))


def test_rates_of_ones_own_replace_the_measured_ones(tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text("kfc = 10.0\nprice_kfc = 1\n")
    given = ("--lookups", 1e4, "--items", 10_000_000, "--new-items", 1e5, "--json", "--rates", tmp_path / "rates.toml")
    told = json.loads(run(*given).stdout)
    assert told["machines"]["kfc"] > 2
    assert told["monthly_dollars"]["kfc"] == told["machines"]["kfc"]
    (tmp_path / "rates.toml").write_text("kcf = 10\n")
    done = run(*given)
    assert done.exit_code == 1
    assert "kcf is no rate" in done.stderr


def test_a_file_of_rates_is_read_as_it_was_written_and_its_encoders_are_planned_with(tmp_path: Path) -> None:
    file = RatesFile(
        rates={"kfc": 1234.5, "store_read_us_a_float": 1e-4, "price_node": 99.0},
        encoders=[
            EncoderLoad(name='odd "name"__v1', dim=576, per_second=12.5),
            EncoderLoad(name="b", dim=8, per_second=1),
        ],
    )
    write_rates(tmp_path / "deep" / "rates.toml", file, ["measured by a test", "not measured: all else"])
    assert read_rates(tmp_path / "deep" / "rates.toml") == file
    assert file.all_rates == replace(Rates(), kfc=1234.5, store_read_us_a_float=1e-4, price_node=99.0)
    given = ("--lookups", 10, "--items", 1000, "--new-items", 1, "--rates", tmp_path / "deep" / "rates.toml", "--json")
    told = json.loads(run(*given).stdout)
    assert [each["name"] for each in told["encoders"]] == ['odd "name"__v1', "b"]
    named = json.loads(run(*given, "--encoder", "mine:4:9").stdout)
    assert [each["name"] for each in named["encoders"]] == ["mine"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[encoders.a]\ndim = 5\n", "encoder a needs dim and per_second"),
        ("[encoders.a]\ndim = 5\nper_second = 0\n", "encoder a needs dim and per_second"),
        ("kfc = -1\n", "kfc must be above 0"),
        ("kfc = true\n", "a value is no rate"),
        ("kfc", "cannot be read"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text(text)
    with pytest.raises(PlanError, match=said):
        read_rates(tmp_path / "rates.toml")


def test_what_cannot_be_measured_is_said_and_what_the_file_holds_beside_stays(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    write_repo(repo, cassandra_port=free_port(), kafka=f"127.0.0.1:{free_port()}")  # nothing is registered in it
    rates = tmp_path / "rates.toml"
    rates.write_text("price_kfc = 7\n")
    done = CliRunner(env={"EMBARK_REPO": str(repo)}).invoke(cli, ["plan", "--calibrate", str(rates), "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert (told["rates"], told["encoders"]) == ({}, [])
    assert told["not_measured"][0].startswith("store, kfc and embark rates: ")
    assert read_rates(rates).rates == {"price_kfc": 7}
    assert "# not measured: store, kfc and embark rates" in rates.read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("--lookups 5 --items 5", "or --calibrate FILE"), ("--calibrate FILE --rates FILE", "leave out --rates")],
)
def test_what_is_lacking_or_too_much_is_told(arguments: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rates.toml").write_text("kfc = 1\n")
    done = run(*arguments.replace("FILE", str(tmp_path / "rates.toml")).split())
    assert done.exit_code == 2
    assert said in done.stderr


@pytest.mark.parametrize("encoder", ["images", "images:0:5", "images:512:nan", ":512:5"])
def test_an_encoder_that_cannot_be_is_refused(encoder: str) -> None:
    done = run("--lookups", 1, "--items", 1, "--new-items", 0, "--encoder", encoder)
    assert done.exit_code == 2
    assert "--encoder" in done.stderr


def test_a_workload_that_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match="archived"):
        replace(SMALL, archived=1.5)
    with pytest.raises(PlanError, match="each once"):
        make_plan(SMALL, [IMAGES, IMAGES], Rates())
