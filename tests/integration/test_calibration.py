"""`embark plan --calibrate` on a real Kafka and a real Cassandra."""

import json
import re
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from feast import FeatureStore
from kafka import KafkaAdminClient

from embark.cli import cli
from embark.encoders import sample
from embark.planning import part_rates, store_rates
from embark.planning.rates_file import read_rates
from embark.servers import LocalServers
from feature_repo.session import connect

PAGE = (Path(__file__).parent.parent.parent / "docs" / "plan.md").read_text()
MEASURE, PLAN = re.findall(r"^uv run (embark plan .*rates\.toml)$", PAGE, re.MULTILINE)  # as they stand


@pytest.mark.servers
@pytest.mark.timeout(600)
def test_this_machine_is_measured_the_file_is_planned_with_and_nothing_is_left_behind(
    servers: LocalServers, feature_repo_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (part_rates, store_rates):
        monkeypatch.setattr(module, "SECONDS", 0.3)
    monkeypatch.setattr(store_rates, "WARM_SECONDS", 0.0)
    monkeypatch.setattr(part_rates, "REQUESTS", 600)
    monkeypatch.setattr("embark.encoders.MEASURE_SECONDS", 0.1)
    monkeypatch.setattr("embark.encoders.sample", lambda spec: dict(list(sample(spec).items())[:2]))
    monkeypatch.chdir(tmp_path)
    rates = Path("rates.toml")
    rates.write_text("price_node = 12.0\n")
    runner = CliRunner(env={"EMBARK_REPO": str(feature_repo_dir)})
    done = runner.invoke(cli, [*MEASURE.split()[1:], "--json"])
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["not_measured"] == []
    assert set(told["rates"]) == {
        "store_writes", "store_read_us", "store_read_us_a_float", "kfc", "embark_cold", "embark_hot"
    }  # fmt: skip
    assert all(rate > 0 for rate in told["rates"].values())
    assert {each["name"] for each in told["encoders"]} == {"mobilenet_v3_small__v1", "text_lstm__v1"}
    assert read_rates(rates).rates == {"price_node": 12.0, **told["rates"]}

    planned = json.loads(runner.invoke(cli, [*PLAN.split()[1:], "--json"]).stdout)
    assert planned["rates"]["kfc"] == told["rates"]["kfc"]
    assert "retina text_lstm__v1" in planned["machines"]

    store = FeatureStore(repo_path=str(feature_repo_dir))
    session = connect(store)
    tables = session.execute("SELECT table_name FROM system_schema.tables WHERE keyspace_name = 'embark'")
    assert [name for (name,) in tables if name.startswith("calibration")] == []
    session.cluster.shutdown()
    with closing(KafkaAdminClient(bootstrap_servers=servers.kafka_bootstrap)) as admin:
        assert [name for name in admin.list_topics() if name.startswith("calibration")] == []
