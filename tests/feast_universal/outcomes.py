"""What became of Feast's tests, and which of them are known not to pass."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["passed", "failed", "skipped", "known"]
VERDICTS: tuple[Verdict, ...] = ("passed", "failed", "skipped", "known")


@dataclass(frozen=True, slots=True)
class Known:
    """Why a test does not pass. It is known only by its error: `error` is a part of the first line of that."""

    error: str
    why: str


NO_ASYNC = Known("does not support online", "Feast's Cassandra store has no asynchronous methods")
NO_VECTORS = Known("does not support online retrieval", "Feast's Cassandra store searches no vectors")
NO_VECTOR_SETTING = Known('has no field "vector_enabled"', NO_VECTORS.why)
NO_KEY_TTL = Known('has no field "key_ttl_seconds"', "Feast's Cassandra store has no such setting")

NO_SPAN = Known("unexpected keyword argument 'start_date'", "Feast's duckdb store answers no call without entity rows")
NO_QUERY = Known("'str' object has no attribute 'columns'", "Feast's duckdb store takes entity rows as a frame only")

# Store → test → why it is known not to pass. Every other test must.
KNOWN: dict[str, dict[str, Known]] = {
    "stock": {
        "test_write_to_online_store_event_check": Known(
            "'bye_321' == 'hi_123'", "the last write wins, not the last event"
        ),
        "test_entity_ttl_online_store": NO_KEY_TTL,
        "test_async_online_retrieval_with_event_timestamps": NO_ASYNC,
        "test_push_features_and_read_async": NO_ASYNC,
        "test_retrieve_online_documents": NO_VECTORS,
        "test_retrieve_online_documents_v2": NO_VECTOR_SETTING,
        "test_retrieve_online_documents_v2_with_filters": NO_VECTOR_SETTING,
        "test_openai_search": NO_VECTOR_SETTING,
        "test_openai_search_no_embedding_config": NO_VECTOR_SETTING,
        "test_retrieve_online_milvus_documents": NO_VECTORS,
        "test_retrieve_online_image_search_hybrid": NO_VECTORS,
        "test_historical_features_non_entity_retrieval": NO_SPAN,
        "test_historical_features_with_entities_from_query": NO_QUERY,
    },
    "plugin": {"test_historical_features_non_entity_retrieval": NO_SPAN},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Result:
    """One test, with its parameters in brackets, on one store.

    Attributes:
        name: the store whose tests were run.
        why: of a test that did not pass: the first line of its error.
    """

    store: str
    name: str
    test: str
    outcome: Literal["passed", "failed", "skipped"]
    why: str

    @property
    def known(self) -> Known | None:
        """Why the test need not pass, whatever became of it."""
        return KNOWN[self.store].get(self.test.partition("[")[0])

    @property
    def verdict(self) -> Verdict:
        """What became of it, `known` for a failure that was expected. A test that was skipped has proved nothing."""
        expected = self.outcome == "failed" and self.known is not None and self.known.error in self.why
        return "known" if expected else self.outcome


def read_results(store: str, name: str, written: str) -> list[Result]:
    """The results that the pytest plugin wrote, as JSON: test → outcome and why."""
    told: Mapping[str, dict[str, str]] = json.loads(written)
    return [Result(store=store, name=name, test=test, **each) for test, each in told.items()]


def count(results: list[Result]) -> dict[tuple[str, str], dict[Verdict, int]]:
    """Store and name → how many of each verdict, in the order of the results."""
    counts: dict[tuple[str, str], dict[Verdict, int]] = {}
    for result in results:
        counts.setdefault((result.store, result.name), dict.fromkeys(VERDICTS, 0))[result.verdict] += 1
    return counts
