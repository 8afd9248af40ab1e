"""Statements put on a node's connection many at a time, for writes: what a row costs without a future of its own.

For each statement the driver makes a future, a timer and a plan, and wakes its thread to write one message to a socket:
more than half of what writing an embedding takes. Here statements that leave together for one node are one write to its
socket. What is not simply acknowledged goes to the driver after all, which knows what to do: every statement of this
store may be executed twice.

This uses what cassandra-driver keeps to itself (its pools, a connection's requests), in the version that is pinned.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple, Self

from cassandra import OperationTimedOut
from cassandra.cluster import Session
from cassandra.connection import ConnectionException, ConnectionShutdown
from cassandra.policies import NoSpeculativeExecutionPolicy
from cassandra.pool import NoConnectionsAvailable
from cassandra.protocol import ExecuteMessage, ResultMessage

from feature_repo.online.statements import RawBound, RawProtocolHandler

Numbered = tuple[int, RawBound]

VOID = (1).to_bytes(4, "big")  # of a result: it has no rows
CARRIED_OUT = RawProtocolHandler.decode_message(4, {}, 0, 0, ResultMessage.opcode, VOID, None, None)


class _Sent(NamedTuple):
    """A statement whose answer is awaited.

    Attributes:
        at: when it left, of the monotonic clock.
        request: its number on the connection.
    """

    statement: RawBound
    at: float
    pool: Any
    connection: Any
    request: int


class DirectWrites:
    """Sends values of one prepared statement. Any thread may send; one ends what is overdue.

    Args:
        session: the driver's.
        profile: its execution profile: where statements go, their consistency, and for how long they may take.
        answered: told the position of a statement that was carried out, or that took too long, with the error then.
        failed: told of one that was not carried out and how many seconds it has left: the driver is to try it.
    """

    def __init__(
        self,
        session: Session,
        profile: Any,
        answered: Callable[[int, BaseException | None], None],
        failed: Callable[[int, RawBound, float], None],
    ) -> None:
        self._session = session
        self._profile = profile
        self._answered = answered
        self._failed = failed
        self._process = os.getpid()
        self._sent: dict[int, _Sent] = {}

    @classmethod
    def of(
        cls,
        session: Any,
        profile: str,
        answered: Callable[[int, BaseException | None], None],
        failed: Callable[[int, RawBound, float], None],
    ) -> Self | None:
        """None where the driver must see each statement: to ask a second node of slow ones, or for its listeners."""
        if not isinstance(session, Session) or session._request_init_callbacks or session._metrics is not None:
            return None
        settings = session.get_execution_profile(profile)
        policy = settings.speculative_execution_policy
        if policy is not None and not isinstance(policy, NoSpeculativeExecutionPolicy):
            return None
        return cls(session, settings, answered, failed)

    def send(self, statements: Sequence[Numbered]) -> list[Numbered]:
        """Sends statements, each to the first node of its plan; answers those that no connection could take now."""
        left: list[Numbered] = []
        for pool, some in self._by_node(statements):
            left += some if pool is None else self._put(pool, some)
        return left

    def end_overdue(self) -> None:
        """Ends, as the driver does, what has waited for longer than the profile allows."""
        now = time.monotonic()
        for position, sent in list(self._sent.items()):
            if now - sent.at < self._profile.request_timeout:
                continue
            if sent.connection._requests.pop(sent.request, None) is None:
                continue  # its answer is being told, in another thread
            with sent.connection.lock:
                # A late answer to it would be taken for that of the next request of this number.
                sent.connection.orphaned_request_ids.add(sent.request)
                if len(sent.connection.orphaned_request_ids) >= sent.connection.orphaned_threshold:
                    sent.connection.orphaned_threshold_reached = True
            if not sent.pool.is_shutdown:
                sent.pool.return_connection(sent.connection, stream_was_orphaned=True)
            self._sent.pop(position, None)
            host = sent.pool.host
            self._answered(position, OperationTimedOut({str(host.endpoint): "no answer in time"}, host))

    def _by_node(self, statements: Sequence[Numbered]) -> Iterable[tuple[Any, list[Numbered]]]:
        pools = self._session._pools
        if len(pools) == 1:
            return [(next(iter(pools.values()), None), list(statements))]
        plan, keyspace = self._profile.load_balancing_policy.make_query_plan, self._session.keyspace
        nodes: dict[Any, tuple[Any, list[Numbered]]] = {}
        for numbered in statements:
            host = next(iter(plan(keyspace, numbered[1])), None)
            nodes.setdefault(host, (pools.get(host), []))[1].append(numbered)
        return nodes.values()

    def _put(self, pool: Any, statements: list[Numbered]) -> list[Numbered]:
        """Puts statements on the pool's connection; answers those for which it has no room."""
        try:
            connection = pool._get_connection()
        except (ConnectionException, NoConnectionsAvailable):
            return statements
        if connection._is_checksumming_enabled:
            return statements
        with connection.lock:
            if connection.is_closed or connection.is_defunct or connection.orphaned_threshold_reached:
                return statements
            count = max(0, min(len(statements), connection.max_request_id - connection.in_flight))
            requests = [connection.get_request_id() for _ in range(count)]
            connection.in_flight += count
        now = time.monotonic()
        messages, message = [], self._message(statements[0][1])
        for (position, statement), request in zip(statements, requests, strict=False):
            message.query_params = statement.values
            try:
                messages.append(self._encoded(message, request, connection))
            except Exception as error:  # noqa: BLE001 - of values that are no bytes
                with connection.lock:
                    connection.request_ids.append(request)
                    connection.in_flight -= 1
                self._answered(position, error)
                continue
            self._sent[position] = _Sent(statement, now, pool, connection, request)
            respond = partial(self._respond, position)
            connection._requests[request] = (respond, self._decoded, None)
        if messages:
            connection.push(b"".join(messages))
        return statements[count:]

    def _encoded(self, message: ExecuteMessage, request: int, connection: Any) -> bytes:
        encoded: bytes = self._session.client_protocol_handler.encode_message(
            message,
            request,
            connection.protocol_version,
            compressor=connection.compressor,
            allow_beta_protocol_version=connection.allow_beta_protocol_version,
        )
        return encoded

    def _decoded(self, version: int, types: Any, stream: int, flags: int, opcode: int, body: bytes, *more: Any) -> Any:
        if opcode == ResultMessage.opcode and body == VOID and not flags:
            return CARRIED_OUT
        return self._session.client_protocol_handler.decode_message(version, types, stream, flags, opcode, body, *more)

    def _message(self, statement: RawBound) -> ExecuteMessage:
        prepared, profile = statement.prepared_statement, self._profile
        message = ExecuteMessage(
            prepared.query_id,
            statement.values,
            profile.consistency_level,
            profile.serial_consistency_level,
            skip_meta=bool(prepared.result_metadata),
            result_metadata_id=prepared.result_metadata_id,
        )
        message.tracing = False
        return message

    def _respond(self, position: int, response: Any) -> None:
        if os.getpid() != self._process:
            return  # a fork's child closes copies of connections; the rows are its parent's
        sent = self._sent.pop(position, None)
        if sent is None:
            return  # it was overdue, and its connection broke at that moment
        try:
            sent.pool.return_connection(sent.connection)
            if isinstance(response, ConnectionException) and not isinstance(response, ConnectionShutdown):
                sent.connection.defunct(response)
        except Exception as error:  # noqa: BLE001 - the driver's, of a session that ends
            self._answered(position, error)
            return
        if isinstance(response, ResultMessage):
            self._answered(position, None)
        else:
            left = sent.at + self._profile.request_timeout - time.monotonic()
            self._failed(position, sent.statement, left)
