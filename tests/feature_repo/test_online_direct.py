import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from cassandra import OperationTimedOut
from cassandra.cluster import EXEC_PROFILE_DEFAULT, ExecutionProfile, Session
from cassandra.connection import ConnectionException, ConnectionShutdown
from cassandra.policies import ConstantSpeculativeExecutionPolicy
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ExecuteMessage, OverloadedErrorMessage, ProtocolHandler, ResultMessage

from feature_repo.online.direct import DirectWrites
from feature_repo.online.statements import RawBound, RawStatement

VOID = ResultMessage(kind=1)


@dataclass
class Connection:
    """What is used of the driver's, with `most` requests at once."""

    most: int = 100
    closed: bool = False
    pushed: list[bytes] = field(default_factory=list)
    broken: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.lock = threading.RLock()
        self.is_closed, self.is_defunct = self.closed, False
        self.orphaned_request_ids: set[int] = set()
        self.orphaned_threshold, self.orphaned_threshold_reached = 2, False
        self.max_request_id, self.in_flight = self.most, 0
        self.protocol_version, self.compressor, self.allow_beta_protocol_version = 4, None, False
        self._is_checksumming_enabled = False
        self._requests: dict[int, tuple[Callable[[Any], None], Any, Any]] = {}
        self.request_ids = deque(range(self.most))

    def get_request_id(self) -> int:
        return self.request_ids.popleft()

    def push(self, data: bytes) -> None:
        self.pushed.append(data)

    def defunct(self, error: Any) -> None:
        self.broken.append(error)

    def answer(self, request: int, response: Any) -> None:
        """As the driver's thread does when a message comes in."""
        callback, _, _ = self._requests.pop(request)
        callback(response)


@dataclass
class Host:
    endpoint: str


class Pool:
    def __init__(self, name: str, connection: Connection | None) -> None:
        self.host, self.is_shutdown, self._connection = Host(name), False, connection
        self.orphans = 0

    def _get_connection(self) -> Connection:
        if self._connection is None:
            raise NoConnectionsAvailable
        return self._connection

    def return_connection(self, connection: Connection, stream_was_orphaned: bool = False) -> None:
        if stream_was_orphaned:
            self.orphans += 1
        else:
            connection.in_flight -= 1


class Plan:
    """Sends each statement to the node that its routing key names."""

    def make_query_plan(self, keyspace: str | None, statement: RawBound) -> Sequence[str]:
        return [statement.routing_key.decode()] if statement.routing_key else []


def statement(value: bytes = b"value", node: str = "a") -> RawBound:
    prepared = RawStatement.__new__(RawStatement)
    prepared.column_metadata, prepared.query_id, prepared.result_metadata_id = [], b"id", None
    prepared.result_metadata = []
    for name in (
        "consistency_level",
        "serial_consistency_level",
        "fetch_size",
        "custom_payload",
        "routing_key_indexes",
    ):
        setattr(prepared, name, None)
    prepared.is_idempotent, prepared.protocol_version = True, 4
    return prepared.bind_raw([value], node.encode())


class Told:
    """What becomes of statements."""

    def __init__(self, *pools: Pool, timeout: float = 5.0, **settings: Any) -> None:
        self.answered: dict[int, BaseException | None] = {}
        self.failed: dict[int, float] = {}
        self.session = Session.__new__(Session)
        self.session._request_init_callbacks, self.session._metrics, self.session.keyspace = [], None, None
        self.session._pools = {pool.host.endpoint: pool for pool in pools}
        self.session.client_protocol_handler = ProtocolHandler
        profile = ExecutionProfile(load_balancing_policy=Plan(), request_timeout=timeout, **settings)
        self.session.get_execution_profile = {"write": profile, EXEC_PROFILE_DEFAULT: profile}.__getitem__
        direct = DirectWrites.of(
            self.session,
            "write",
            self.answered.__setitem__,
            lambda position, _, seconds: self.failed.__setitem__(position, seconds),
        )
        assert direct is not None
        self.direct = direct

    def send(self, *statements: RawBound) -> list[int]:
        return [position for position, _ in self.direct.send(list(enumerate(statements)))]


def requests(data: bytes) -> list[int]:
    """The request numbers of the messages in bytes that went to a node."""
    found = []
    while data:
        version, flags, request, opcode = struct.unpack(">BBhB", data[:5])
        assert (version, flags, opcode) == (4, 0, ExecuteMessage.opcode)
        found.append(request)
        data = data[9 + int.from_bytes(data[5:9], "big") :]
    return found


def test_statements_of_a_burst_are_one_write_and_each_answer_is_told() -> None:
    connection = Connection()
    told = Told(Pool("a", connection))
    assert told.send(statement(b"one"), statement(b"two")) == []
    (data,) = connection.pushed
    assert requests(data) == [0, 1]
    assert b"one" in data
    assert connection.in_flight == 2
    connection.answer(1, VOID)
    connection.answer(0, VOID)
    assert told.answered == {1: None, 0: None}
    assert connection.in_flight == 0


def test_each_statement_goes_to_the_first_node_of_its_plan() -> None:
    a, b = Connection(), Connection()
    told = Told(Pool("a", a), Pool("b", b))
    sent = [statement(b"1", "a"), statement(b"2", "b"), statement(b"3", "a"), statement(b"4", "gone")]
    assert told.send(*sent) == [3]  # the driver has more to try
    assert [len(requests(c.pushed[0])) for c in (a, b)] == [2, 1]


@pytest.mark.parametrize("connection", [None, Connection(closed=True), Connection(most=0)])
def test_what_no_connection_takes_is_left_to_the_driver(connection: Connection | None) -> None:
    told = Told(Pool("a", connection))
    assert told.send(statement()) == [0]
    assert connection is None or not connection.pushed


def test_what_has_no_room_is_left_and_the_rest_leaves() -> None:
    connection = Connection(most=1)
    told = Told(Pool("a", connection))
    assert told.send(statement(), statement()) == [1]
    assert requests(connection.pushed[0]) == [0]


def test_values_that_are_no_bytes_fail_alone() -> None:
    connection = Connection()
    told = Told(Pool("a", connection))
    told.send(statement(b"one"), statement(object()), statement(b"two"))  # type: ignore[arg-type]
    assert {position: type(error) for position, error in told.answered.items()} == {1: TypeError}
    assert requests(connection.pushed[0]) == [0, 2]
    assert connection.in_flight == 2
    assert 1 in connection.request_ids


def test_protocol_5_is_left_to_the_driver_for_its_checksums() -> None:
    connection = Connection()
    connection._is_checksumming_enabled = True
    assert Told(Pool("a", connection)).send(statement()) == [0]


def test_what_a_node_does_not_carry_out_is_the_drivers_to_try_in_the_time_that_is_left() -> None:
    connection = Connection()
    told = Told(Pool("a", connection))
    told.send(statement(), statement(), statement())
    connection.answer(0, OverloadedErrorMessage(code=0x1001, message="", info=None))
    connection.answer(1, ConnectionShutdown("closed"))
    connection.answer(2, broken := ConnectionException("reset"))
    assert told.failed.keys() == {0, 1, 2}
    assert all(0 < seconds <= 5 for seconds in told.failed.values())
    assert not told.answered
    assert connection.broken == [broken]
    assert connection.in_flight == 0


def test_what_is_overdue_ends_and_its_number_is_not_used_again_before_its_answer() -> None:
    connection, late = Connection(), Connection()
    pool = Pool("a", connection)
    told = Told(pool, timeout=0.0)
    told.send(statement(), statement())
    told.direct.end_overdue()
    assert [type(error) for error in told.answered.values()] == [OperationTimedOut] * 2
    assert connection.orphaned_request_ids == {0, 1}
    assert connection.orphaned_threshold_reached
    assert pool.orphans == 2
    assert connection.in_flight == 2  # until the late answers come
    assert not late.pushed
    told.direct.end_overdue()
    assert pool.orphans == 2


def test_what_is_within_its_time_is_waited_for() -> None:
    connection = Connection()
    told = Told(Pool("a", connection))
    told.send(statement())
    told.direct.end_overdue()
    assert not told.answered
    connection.answer(0, VOID)
    assert told.answered == {0: None}


def test_the_driver_sees_every_statement_where_it_asks_a_second_node_or_somebody_listens() -> None:
    told = Told(Pool("a", Connection()))
    of = [told.session, "write", told.answered.__setitem__, lambda *_: None]
    assert DirectWrites.of(object(), *of[1:]) is None  # type: ignore[arg-type]
    slow = ExecutionProfile(speculative_execution_policy=ConstantSpeculativeExecutionPolicy(0.1, 1))
    told.session.get_execution_profile = {"write": slow}.__getitem__
    assert DirectWrites.of(*of) is None  # type: ignore[arg-type]
    told = Told(Pool("a", Connection()))
    told.session._request_init_callbacks = [(print, (), {})]
    assert DirectWrites.of(told.session, *of[1:]) is None  # type: ignore[arg-type]
