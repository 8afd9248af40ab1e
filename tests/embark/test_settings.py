from pathlib import Path

import pytest
from pydantic import ValidationError

from embark.settings import Settings


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_defaults_fit_the_feature_repo_as_it_is() -> None:
    settings = Settings()
    assert (settings.kafka_port, settings.cassandra_port, settings.repo) == (9092, 9042, Path("feature_repo"))
    assert settings.fetch_networks == []


def test_the_environment_wins_over_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("embark.toml").write_text("kafka_port = 9192\ncassandra_port = 9142\n")
    monkeypatch.setenv("EMBARK_KAFKA_PORT", "9292")
    assert (Settings().kafka_port, Settings().cassandra_port) == (9292, 9142)


def test_a_name_that_is_not_known_is_refused() -> None:
    Path("embark.toml").write_text("kafka_prot = 9192\n")
    with pytest.raises(ValidationError, match="kafka_prot"):
        Settings()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("KAFKA_PORT", "0"),
        ("DEVICE", "tpu"),
        ("FETCH_NETWORKS", '["300.0.0.0/8"]'),
        ("KEYSPACE", "Robert'); DROP"),
        ("FETCH_ROOTS", '["/srv/pictures"]'),
        ("FETCH_USER_AGENT", "a\nb"),
        ("FETCH_SECRETS", '{"https://a.example": {"secret": "s"}}'),
    ],
)
def test_a_value_that_is_not_allowed_is_refused(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"EMBARK_{name}", value)
    with pytest.raises(ValidationError, match=name.lower()):
        Settings()


def test_secrets_reach_child_processes_and_no_message(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EMBARK_FETCH_SECRETS", '{"a.example": {"secret": "very secret"}}')
    settings = Settings()
    assert settings.fetch_secrets["a.example"].secret == "very secret"  # noqa: S105
    assert "very secret" not in repr(settings)
    monkeypatch.setenv("EMBARK_FETCH_SECRETS", settings.as_environment()["EMBARK_FETCH_SECRETS"])
    assert Settings() == settings
