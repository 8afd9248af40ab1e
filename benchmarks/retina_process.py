"""The Retina process of `benchmarks/retina.py`: serves, and measures the bare parts, told by lines on standard input.

All that is compared runs in this one process, so that it has the same memory, libraries and cores. The load generator
and the web server are others, and their work does not count.
"""

import asyncio
import json
import math
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from ipaddress import ip_network
from typing import Any

import grpc
import numpy as np
import torch
import uvloop
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from encoders.batching import TEXTS_AT_ONCE
from encoders.compute import Plan, choose_device
from encoders.encoder import Encoder
from encoders.fetch import Fetcher
from encoders.line import SORTED_PASSES
from encoders.loading import load_encoder
from encoders.matrix import pack
from encoders.memory import share_one_heap
from encoders.replicas import SERVICE
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest, Outcome
from encoders.retina_pb2_grpc import RetinaServicer, add_RetinaServicer_to_server
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.spec import EncoderSpec
from encoders.text import padded

# as `benchmarks/retina.py` starts it
DEVICE = choose_device(sys.argv[2])
CORES = int(sys.argv[3])
DTYPE = "bfloat16" if DEVICE.type == "cuda" else "float32"
PLAN = Plan.of(DEVICE.type, CORES)


def image(network: str, dim: int, name: str | None = None, seed: int = 0) -> EncoderSpec:
    return EncoderSpec(
        name=name or network,
        version="v1",
        modality="image",
        dim=dim,
        network=f"torchvision:{network}",
        weights=f"seeded:{seed}",
        pinned=f"seeded:{seed}",
        dtype=DTYPE,  # type: ignore[arg-type]
    )


NOTHING = image("resnet50", 2048, "nothing", seed=1)  # of ResNet-50's weights, Retina would share that network with it
TEXT = EncoderSpec(
    name="text_lstm",
    version="v1",
    modality="text",
    dim=256,
    network="text_lstm",
    weights="seeded:0",
    pinned="seeded:0",
    dtype=DTYPE,  # type: ignore[arg-type]
)
SPECS = {
    spec.view: spec
    for spec in (image("mobilenet_v3_small", 576), image("resnet50", 2048), image("inception_v3", 2048), TEXT, NOTHING)
}


class NoNetwork:
    """Decodes and resizes, and computes nothing: what is left of Retina without its network."""

    def __init__(self, encoder: Encoder) -> None:
        self.spec = NOTHING
        self.prepare = encoder.prepare
        self._dim = encoder.spec.dim

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        return np.zeros((len(batch), self._dim), dtype=np.float32)


@cache
def encoder_of(view: str) -> Encoder:
    """Loaded once, for Retina, for the naive service and for what is measured bare."""
    if view == NOTHING.view:
        return NoNetwork(encoder_of("resnet50__v1"))
    return load_encoder(SPECS[view], str(DEVICE))


class Naive(RetinaServicer):  # type: ignore[misc]
    """What one writes first: a thread a request, which downloads, decodes and embeds by itself, input by input."""

    def Encode(self, request: EncodeRequest, context: grpc.ServicerContext) -> EncodeReply:
        encoder = encoder_of(request.view)
        vectors = []
        for key in request.keys:
            content = key.encode()
            if encoder.spec.modality == "image":
                with urllib.request.urlopen(key, timeout=30) as answer:  # noqa: S310 - the benchmark's own server
                    content = answer.read()
            vectors.append(encoder.encode([encoder.prepare(content)])[0])
        return EncodeReply(
            fingerprint=encoder.spec.fingerprint,
            vectors=pack(np.stack(vectors)),
            outcomes=[Outcome() for _ in vectors],
        )

    def Encoders(self, request: EncodersRequest, context: grpc.ServicerContext) -> EncodersReply:
        return EncodersReply()


class Bare:
    """The parts by themselves, on as many threads as Retina has for them."""

    def __init__(self, contents: dict[str, list[bytes]]) -> None:
        self._contents = contents
        self._threads = {
            count: ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            for count in {1, PLAN.lanes, PLAN.decoding}
        }

    def network(self, view: str, count: int, lanes: int = PLAN.lanes) -> int:
        """Passes of full batches on tensors that are ready, `lanes` of them at a time on a CPU; texts sorted by length,
        as many at a time as Retina waits for, so that little is padding."""
        size = PLAN.batch(SPECS[view].modality)
        passes = max(1, count // size)
        if DEVICE.type == "cpu":
            batches = self._batches(view)
            each = (batches[n % len(batches)] for n in range(passes))
            list(self._threads[lanes].map(encoder_of(view).encode, each))
        else:
            network = encoder_of(view)._forward._network  # type: ignore[attr-defined]
            placed = self._placed(view)
            with torch.inference_mode():
                for n in range(passes):
                    network(*placed[n % len(placed)])
            torch.cuda.synchronize()
        return passes * size

    def decode(self, view: str, count: int) -> int:
        """Decoding, resizing and normalising, or tokenizing; as many as Retina has decoded in one go."""
        encoder, contents = encoder_of(view), self._contents[SPECS[view].modality]
        size = TEXTS_AT_ONCE if SPECS[view].modality == "text" else 1
        parts = ([contents[n % len(contents)] for n in range(at, at + size)] for at in range(0, count, size))
        list(self._threads[PLAN.decoding].map(lambda part: list(map(encoder.prepare, part)), parts))
        return count

    @cache  # noqa: B019 - one object, as long as the process
    def _batches(self, view: str) -> list[list[Any]]:
        encoder = encoder_of(view)
        size = PLAN.batch(encoder.spec.modality)
        contents = self._contents[encoder.spec.modality]
        pool = SORTED_PASSES * size
        count = math.ceil(len(contents) / pool) * pool  # all that Retina is asked for: the first texts are shorter
        inputs = [encoder.prepare(contents[n % len(contents)]) for n in range(count)]
        if encoder.spec.modality == "text":
            inputs = [each for at in range(0, count, pool) for each in sorted(inputs[at : at + pool], key=len)]
        return [inputs[at : at + size] for at in range(0, count, size)]

    @cache  # noqa: B019 - one object, as long as the process
    def _placed(self, view: str) -> list[tuple[torch.Tensor, ...]]:
        """Batches on the GPU, in the dtype and the order in memory that the network computes in."""
        forward = encoder_of(view)._forward  # type: ignore[attr-defined]
        found = []
        for batch in self._batches(view):
            tensors = padded(batch) if SPECS[view].modality == "text" else (forward.stacked(batch),)
            found.append(tuple(map(forward._placed, tensors)))
        torch.cuda.synchronize()
        return found


def flops(view: str) -> float:
    """Floating point operations of one input, as torch counts them."""
    from torch.utils.flop_counter import FlopCounterMode

    encoder = encoder_of(view)
    sample = encoder.prepare(CONTENTS[encoder.spec.modality][0])
    with FlopCounterMode(display=False) as counter:
        encoder.encode([sample])
    return float(counter.get_total_flops())


def peak_flops() -> float:
    """Operations a second of a large product of bfloat16 matrices: the best that can be seen of this GPU."""
    side, times = 8192, 30
    a = torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16)
    for repeat in (3, times):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(repeat):
            a @ a
        torch.cuda.synchronize()
    return 2.0 * side**3 * times / (time.perf_counter() - began)


CONTENTS: dict[str, list[bytes]] = {}
KINDS = ("loop", "decode", "compute")  # of threads, by their names


def cpu_by_kind() -> dict[str, float]:
    """CPU seconds of Retina's threads so far."""
    found = dict.fromkeys(KINDS, 0.0)
    for thread in threading.enumerate():
        kind = thread.name.partition("_")[0]
        if kind in found and thread.ident is not None:
            found[kind] += time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
    return found | {"rest": time.process_time() - sum(found.values())}


def answer(bare: Bare, command: dict[str, Any]) -> Any:
    actions: dict[str, Callable[..., Any]] = {
        "network": bare.network,
        "decode": bare.decode,
        "flops": flops,
        "peak": peak_flops,
        "cpu": time.process_time,
        "threads": cpu_by_kind,
        "name": lambda: torch.cuda.get_device_name() if DEVICE.type == "cuda" else "a CPU",
        "load": lambda view: encoder_of(view) and None,
    }
    return actions[command.pop("do")](**command)


def main() -> None:
    """Reads the contents' file, says where it listens, then answers one line with one."""
    with open(sys.argv[1]) as file:
        described = json.load(file)
    CONTENTS["text"] = [text.encode() for text in described["texts"]]
    CONTENTS["image"] = [bytes.fromhex(picture) for picture in described["pictures"]]
    torch.set_num_threads(1)
    share_one_heap()  # as `embark retina` does, before it has threads
    naive = grpc.server(ThreadPoolExecutor(16))
    add_RetinaServicer_to_server(Naive(), naive)
    healthy = health.HealthServicer()
    healthy.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, naive)
    naive_port = naive.add_insecure_port("127.0.0.1:0")
    naive.start()

    async def serve() -> None:
        networks = [ip_network("127.0.0.0/8")]
        async with Fetcher(allowed_networks=networks) as fetcher:
            service = RetinaService(
                registered=lambda: SPECS,
                fetcher=fetcher,
                device=str(DEVICE),
                cores=CORES,
                load=lambda spec: encoder_of(spec.view),
            )
            async with RetinaServer(service, "127.0.0.1:0") as server:
                said = {"retina": server.port, "naive": naive_port, "device": DEVICE.type}
                print(json.dumps(said), flush=True)
                await asyncio.to_thread(stopped.wait)

    stopped = threading.Event()
    serving = threading.Thread(target=lambda: uvloop.run(serve()), name="loop")
    serving.start()
    bare = Bare(CONTENTS)
    for line in sys.stdin:
        print(json.dumps(answer(bare, json.loads(line))), flush=True)
    stopped.set()
    naive.stop(None)
    serving.join()
