"""Several Retinas that do the same work: each call goes to the next one that is not known to be away. Free of torch."""

import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import grpc

from encoders.retina_pb2_grpc import RetinaStub

MAX_MESSAGE_BYTES = 64 << 20  # > 512 keys x 8192 values x 4 bytes, and what stands beside them
SERVICE = "embark.v1.Retina"
CHANNEL = [
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.enable_http_proxy", 0),  # Retina is ours: never behind the proxy that the environment names
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),  # 2 minutes by default: too late to notice that Retina is back
    # gRPC asks the health service by itself, and only the policy `round_robin` heeds the answer: a Retina that warms up
    # or drains is as good as away.
    (
        "grpc.service_config",
        json.dumps({"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": SERVICE}}),
    ),
]
AWAY_SECONDS = 1.0  # for which a Retina that did not answer is asked only if all others do not answer either
OF_GRPC = ("ipv4:", "ipv6:")  # lists that gRPC itself splits


@dataclass(eq=False, slots=True)
class Replica:
    """One Retina, and the connection to it."""

    address: str
    channel: grpc.Channel
    stub: RetinaStub
    away_until: float = 0.0


class Replicas:
    """The Retinas of a list; safe to share between threads.

    Args:
        addresses: `host:port`, separated by commas; each may be anything that gRPC resolves.
        clock: monotonic seconds.

    Raises:
        ValueError: no address.
    """

    def __init__(self, addresses: str, clock: Callable[[], float] = time.monotonic) -> None:
        names = [addresses] if addresses.startswith(OF_GRPC) else [each.strip() for each in addresses.split(",")]
        if not all(names):
            raise ValueError(f"{addresses!r} is no list of addresses: host:port, separated by commas")
        self._clock = clock
        self._turn = itertools.count()
        self._lock = threading.Lock()
        self._replicas: Sequence[Replica] = []
        for name in names:
            channel = grpc.insecure_channel(name, options=CHANNEL)
            self._replicas = [*self._replicas, Replica(name, channel, RetinaStub(channel))]

    @property
    def several(self) -> bool:
        """Whether there is more than one to ask."""
        return len(self._replicas) > 1

    def in_turn(self) -> Iterator[Replica]:
        """All of them once, each call beginning with the next one; those that are away at the end."""
        with self._lock:
            first = next(self._turn) % len(self._replicas)
        rotated = [*self._replicas[first:], *self._replicas[:first]]
        now = self._clock()
        return iter(sorted(rotated, key=lambda replica: max(0.0, replica.away_until - now)))

    def away(self, replica: Replica) -> None:
        """Takes down that one did not answer."""
        replica.away_until = self._clock() + AWAY_SECONDS

    def close(self) -> None:
        for replica in self._replicas:
            replica.channel.close()
