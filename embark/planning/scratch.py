"""A project of its own on the servers of a feature repo, for what is measured: gone on leaving."""

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import yaml
from feast import FeatureStore

from embark.repo import open_store
from embark.settings import Settings
from embark.tables import drop_tables, project_tables
from encoders.spec import EncoderSpec
from feature_repo.failures import FAILURES
from feature_repo.online.table import quoted, table_name
from feature_repo.session import connect
from feature_repo.views import encoder_specs, feast_objects
from materializer.process import KafkaUnavailable, topic_admin, topics_of

DIMS = (64, 512)  # two, of which the time of a float is the difference


@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """A project of its own with a view of each of DIMS."""

    store: FeatureStore
    repo: Path
    specs: Mapping[int, EncoderSpec]


@contextmanager
def scratch(settings: Settings, folder: Path) -> Iterator[Bench]:
    """A feature repo as the settings' one, of a project of its own on the same servers; gone on leaving.

    Raises:
        StoreUnavailable: Cassandra does not answer.
        NothingApplied: nothing is registered in the settings' repo, so where Kafka is is not known.
    """
    described = yaml.safe_load((settings.repo / "feature_store.yaml").read_text())
    described |= {
        "project": f"calibration_{uuid.uuid4().hex[:8]}",
        "registry": {**_of_a_file(described.get("registry")), "path": str(folder / "registry.db")},
    }
    repo = folder / "repo"
    repo.mkdir()
    (repo / "feature_store.yaml").write_text(json.dumps(described))  # JSON is YAML
    kafka, _ = topics_of(open_store(settings.repo))
    store = open_store(repo)
    session = connect(store)
    declared = [
        EncoderSpec(
            name=f"floats_{dim}", version="v1", modality="text", dim=dim, network="text_lstm", weights="seeded:0"
        )
        for dim in DIMS
    ]
    try:
        store.apply(list(feast_objects(declared, {}, kafka=kafka, repo=repo).values()))
        specs = encoder_specs(store, allow_cache=False)
        yield Bench(store=store, repo=repo, specs={spec.dim: spec for spec in specs.values()})
    finally:
        drop_tables(store, [each.table for each in project_tables(store)])
        marks = table_name(store.project, FAILURES)
        session.execute(f"DROP TABLE IF EXISTS {quoted(store.config.online_store.keyspace)}.{quoted(marks)}")
        session.cluster.shutdown()
        with contextlib.suppress(KafkaUnavailable), topic_admin(kafka) as admin:
            there = set(admin.list_topics()) & set(topics_of(store)[1].all)
            if there:
                admin.delete_topics(sorted(there))


def _of_a_file(registry: object) -> dict[str, object]:
    """What a registry in a file keeps of its settings; nothing of one in a database."""
    if not isinstance(registry, dict) or registry.get("registry_type") == "sql":
        return {}
    return registry
