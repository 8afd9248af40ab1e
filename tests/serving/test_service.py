import subprocess
import sys

import numpy as np
import pytest

from embark.servers import free_port
from feature_repo.embeddings import Status
from serving.client import EmbArkClient, EmbArkUnavailable, LookupRefused, ViewUnknown
from tests.serving.fakes import IMAGE, TEXT, Parts, served


def test_an_answer_crosses_the_wire_unchanged() -> None:
    parts = Parts()
    identity = parts.add(TEXT, "cat", 0.1, event_time=1_700_000_000_123_456)
    parts.marks.mark(TEXT.view, {"dog": "DecodeError: planted"})
    with served(parts.archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(TEXT.view, ["dog", "cat", "bird"])
    assert answer.status.tolist() == [Status.FAILED, Status.HIT, Status.OOV]
    assert answer.vectors.dtype == np.float32
    assert np.array_equal(answer.vectors[1], np.full(4, 0.1, dtype=np.float32))
    assert (answer.embedding_id[1], answer.event_time[1]) == (identity, 1_700_000_000_123_456)
    assert answer.failures == {0: "DecodeError: planted"}
    assert answer.weights == "seeded:0"


def test_no_keys_are_answered_with_an_empty_matrix() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client:
        assert client.lookup(IMAGE.view, []).vectors.shape == (0, 3)


def test_an_unknown_view_is_refused_with_those_known() -> None:
    with (
        served(Parts().archive) as address,
        EmbArkClient(address) as client,
        pytest.raises(ViewUnknown, match="known are: photo__v1, tiny__v1"),
    ):
        client.lookup("nope", ["x"])


def test_more_keys_than_allowed_are_refused_with_both_numbers() -> None:
    with (
        served(Parts().archive, max_keys=2) as address,
        EmbArkClient(address) as client,
        pytest.raises(LookupRefused, match="3 keys, 2 are allowed"),
    ):
        client.lookup(TEXT.view, ["a", "b", "c"])


def test_keys_that_can_be_none_are_failed_one_by_one() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client:
        answer = client.lookup(IMAGE.view, ["", "x" * 9000, "ftp://a.example/x", "http://a.example/x"])
    assert answer.status.tolist() == [Status.FAILED] * 3 + [Status.OOV]
    assert "empty" in answer.failures[0]
    assert "no http(s) URL" in answer.failures[2]


def test_a_key_that_is_no_text_is_refused_by_the_client() -> None:
    with served(Parts().archive) as address, EmbArkClient(address) as client, pytest.raises(LookupRefused):
        client.lookup(TEXT.view, ["\ud800"])


def test_a_server_that_is_not_there_is_named_with_the_command_that_starts_it() -> None:
    with EmbArkClient(f"127.0.0.1:{free_port()}") as client, pytest.raises(EmbArkUnavailable, match="embark serve"):
        client.lookup(TEXT.view, ["x"])


def test_the_client_needs_neither_feast_nor_kafka_nor_cassandra() -> None:
    code = "import sys, serving.client; sys.exit(bool({'feast', 'kafka', 'cassandra', 'torch'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
