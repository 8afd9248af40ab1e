import asyncio
from dataclasses import replace

import numpy as np
import pytest

from feature_repo.embeddings import Embeddings
from serving.answers import Answer
from serving.client import AsyncEmbArkClient, EmbArkClient, LookupRefused, ViewUnknown
from serving.drafts import Draft
from serving.embark_pb2 import FLOAT16, FLOAT32, LookupManyReply, LookupReply, Precision
from serving.layouts import Familiar
from serving.packing import many_bytes, parsed, reply_bytes, unpacked
from serving.services import Services, UnknownService
from tests.serving.fakes import IMAGE, TEXT, Clock, Parts, served

URL = "http://a.example/x.jpg"


def test_both_clients_answer_alike_and_in_either_precision() -> None:
    parts = Parts()
    parts.add(TEXT, "cat", 0.1)

    async def ask(address: str) -> np.ndarray:
        async with AsyncEmbArkClient(address) as client:
            return (await client.lookup(TEXT.view, ["cat", "dog"], precision="float16")).vectors

    with served(parts.archive) as address, EmbArkClient(address) as client:
        exact = client.lookup(TEXT.view, ["cat", "dog"])
        half = asyncio.run(ask(address))
    assert exact.vectors[:, 0].tolist() == [np.float32(0.1), 0]
    assert half.dtype == np.float32
    assert half[:, 0].tolist() == [np.float32(np.float16(0.1)), 0]
    assert exact.torch().shape == (2, 4)


def test_views_of_a_service_are_answered_in_one_call() -> None:
    parts = Parts()
    parts.add(TEXT, "cat", 1.0)
    parts.add(IMAGE, URL, 2.0)
    columns = {"text": ["cat"], "image_url": [URL, "http://a.example/y.jpg"]}

    async def ask(address: str) -> dict[str, list[int]]:
        async with AsyncEmbArkClient(address) as client:
            answers = await client.lookup_many([TEXT.view, IMAGE.view], columns)
            return {view: answer.status.tolist() for view, answer in answers.items()}

    services = Services(lambda: {"ctr": [IMAGE.view, TEXT.view]})
    with served(parts.archive, services=services) as address, EmbArkClient(address) as client:
        answers = client.lookup_many("ctr", columns)
        by_name = asyncio.run(ask(address))
        with pytest.raises(ViewUnknown, match="unknown feature service 'nope'; known are: ctr"):
            client.lookup_many("nope", columns)
        with pytest.raises(LookupRefused, match="tiny__v1 is read by text: there is no such column"):
            client.lookup_many("ctr", {"image_url": [URL]})
        with pytest.raises(LookupRefused, match="one of the two"):
            client.lookup_many([], columns)
    assert answers[IMAGE.view].vectors[:, 0].tolist() == [2, 0]
    assert answers[TEXT.view].vectors[:, 0].tolist() == [1]
    assert by_name == {view: answer.status.tolist() for view, answer in answers.items()}


def test_a_stream_answers_more_keys_than_a_call_in_their_order() -> None:
    parts = Parts()
    keys = [f"k{i}" for i in range(1234)]
    for i, key in enumerate(keys):
        parts.add(TEXT, key, float(i))

    async def ask(address: str) -> list[int]:
        async with AsyncEmbArkClient(address) as client:
            return [len(answer.status) async for answer in client.stream(TEXT.view, keys)]

    with served(parts.archive, max_keys=600) as address, EmbArkClient(address) as client:
        vectors = np.concatenate([answer.vectors for answer in client.stream(TEXT.view, keys)])
        sizes = asyncio.run(ask(address))
        with pytest.raises(LookupRefused, match="1234 keys, 600 are allowed"):
            client.lookup(TEXT.view, keys)
    assert vectors[:, 0].tolist() == list(range(1234))
    assert sizes == [500, 500, 234]


def test_what_is_announced_is_asked_for_with_its_publish_time() -> None:
    parts = Parts()

    async def ask(address: str) -> int:
        async with AsyncEmbArkClient(address) as client:
            return await client.announce(TEXT.view, ["fox"])

    with served(parts.archive) as address, EmbArkClient(address) as client:
        assert client.announce(TEXT.view, [" cat ", "dog", ""], [5, 6, 7], bulk=True) == 2
        assert asyncio.run(ask(address)) == 1
        with pytest.raises(LookupRefused, match="2 times for 1 keys"):
            client.announce(TEXT.view, ["cat"], [1, 2])
        with pytest.raises(LookupRefused, match="no more than 5 minutes ahead"):
            client.announce(TEXT.view, ["cat"], [2**60])
    assert parts.requests.requests == [(TEXT.view, "cat"), (TEXT.view, "dog"), (TEXT.view, "fox")]
    assert parts.requests.times == [5, 6, None]


def test_calls_go_to_several_addresses_in_turn_and_round_one_that_is_gone() -> None:
    first, second = Parts(), Parts()
    first.add(TEXT, "cat", 1.0)
    second.add(TEXT, "cat", 2.0)
    with served(first.archive) as one, served(second.archive) as other, EmbArkClient([one, other]) as client:
        seen = {float(client.lookup(TEXT.view, ["cat"]).vectors[0, 0]) for _ in range(20)}
        assert seen == {1.0, 2.0}
    with served(first.archive) as one:
        with served(second.archive) as other:
            client = EmbArkClient([one, other])
            client.lookup(TEXT.view, ["cat"])
        with client:  # one of the two is gone
            assert all(client.lookup(TEXT.view, ["cat"]).vectors[0, 0] == 1.0 for _ in range(20))


def test_a_reply_of_a_shape_seen_before_is_read_as_the_first_was() -> None:
    def reply(count: int, weights: str = "seeded:0", first: int = 0, shift: int = 0) -> bytes:
        vectors = np.arange(count * 3, dtype=np.float32).reshape(count, 3) + shift
        made = replace(answer_of(vectors), failures={})
        return Draft(count, 3, weights, first).finished(replace(made, event_time=made.event_time + shift))

    # Of one size, so that one that is known is met by others: other weights, another place in a stream, failures.
    replies = [reply(7), reply(7, shift=5), reply(7, "seeded:1"), reply(7, first=3), reply(7), reply(1), reply(300)]
    replies.append(Draft(7, 3, "", 0).finished(answer_of(np.zeros((7, 3), np.float32))))
    familiar = Familiar()
    for sent in replies * 2:
        answer = Answer.of(sent)
        expected = Answer.of_message(LookupReply.FromString(sent))
        for field in ("vectors", "status", "embedding_id", "event_time"):
            found, wanted = getattr(answer, field), getattr(expected, field)
            assert np.array_equal(found, wanted)
            assert found.dtype == wanted.dtype
        assert (answer.failures, answer.weights) == (expected.failures, expected.weights)
        assert not answer.vectors.flags.writeable
    assert familiar.of(replies[0]) is None
    familiar.meet(replies[0], (7, 3), "seeded:0", 0)
    assert familiar.of(replies[1]) is not None
    assert familiar.of(replies[2]) is None
    familiar.meet(replies[-1], (7, 3), "", 0)
    assert familiar.of(replies[-1]) is None  # its failures are of no size that is known


def answer_of(vectors: np.ndarray) -> Embeddings:
    """An answer with these vectors, every second key FAILED."""
    count = len(vectors)
    return Embeddings(
        vectors=vectors,
        status=np.arange(count, dtype=np.uint8) % 2 + 2,
        embedding_id=np.arange(count, dtype=np.int64) + 2**62,
        event_time=np.arange(count, dtype=np.int64) * 3,
        failures={i: f"why {i}" for i in range(1, count, 2)},
    )


@pytest.mark.parametrize("count", [0, 1, 7, 300])
@pytest.mark.parametrize("precision", [FLOAT32, FLOAT16])
def test_replies_are_what_protobuf_would_write(count: int, precision: Precision) -> None:
    answer = answer_of(np.arange(count * 3, dtype=np.float32).reshape(count, 3))
    sent = reply_bytes(answer, "seeded:0", precision, first=9)
    message = LookupReply.FromString(sent)
    assert len(message.vectors.data) == count * 3 * (2 if precision == FLOAT16 else 4)
    assert np.array_equal(unpacked(message.vectors), answer.vectors)
    assert list(message.embedding_id) == answer.embedding_id.tolist()
    assert list(message.event_time) == answer.event_time.tolist()
    assert (message.status, message.first, message.weights) == (answer.status.tobytes(), 9, "seeded:0")
    for reply in (sent, message.SerializeToString(), LookupReply(weights="x").SerializeToString() + sent):
        vectors, others = parsed(reply)
        assert np.array_equal(vectors, answer.vectors)
        assert list(others.embedding_id) == answer.embedding_id.tolist()
        assert dict(others.failures) == answer.failures
    (view,) = LookupManyReply.FromString(many_bytes([("a", sent)])).views
    assert (view.view, view.reply) == ("a", message)


@pytest.mark.parametrize("count", [1, 7, 300])
def test_a_reply_that_is_written_where_it_is_sent_from_is_the_same(count: int) -> None:
    answer = answer_of(np.arange(count * 3, dtype=np.float32).reshape(count, 3))
    draft = Draft(count, 3, "seeded:0", first=9)
    assert draft.room.vectors.ctypes.data % 4 == 0  # numpy copies where it is not
    draft.room.vectors[:] = answer.vectors
    sent = draft.finished(replace(answer, vectors=draft.room.vectors))
    elsewhere = Draft(count, 3, "seeded:0", first=9).finished(answer)
    expected = LookupReply.FromString(reply_bytes(answer, "seeded:0", FLOAT32, first=9))
    assert LookupReply.FromString(sent) == LookupReply.FromString(elsewhere) == expected
    assert np.array_equal(parsed(sent)[0], answer.vectors)


def test_what_no_float16_holds_becomes_infinite() -> None:
    sent = reply_bytes(answer_of(np.full((1, 1), 1e6, dtype=np.float32)), "", FLOAT16)
    assert np.isinf(parsed(sent)[0]).all()


def test_services_are_read_again_after_a_while() -> None:
    clock, known = Clock(), {"a": ["v"]}
    services = Services(lambda: dict(known), refresh_seconds=2, clock=clock)
    assert services.views("a") == ["v"]
    known["b"] = ["w"]
    with pytest.raises(UnknownService, match="known are: a"):
        services.views("b")
    clock.now += 2
    assert services.views("b") == ["w"]
