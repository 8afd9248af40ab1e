"""The Retina process of `benchmarks/retina.py`: serves, and measures the bare parts, told by lines on standard input.

All that is compared runs in this one process, so that it has the same memory, libraries and cores. The load generator
and the web server are others, and their work does not count.
"""

import asyncio
import io
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
from PIL import Image
from torch import nn

from encoders.batching import TEXTS_AT_ONCE
from encoders.compute import DTYPES, Plan, choose_device
from encoders.downloads import cached_download
from encoders.encoder import Encoder
from encoders.fetch import Fetcher
from encoders.image import torchvision_network, weights_of, without_head
from encoders.line import SORTED_PASSES
from encoders.loading import load_encoder
from encoders.matrix import pack
from encoders.memory import share_one_heap
from encoders.parameters import set_parameters
from encoders.replicas import SERVICE
from encoders.retina_pb2 import EncodeReply, EncodeRequest, EncodersReply, EncodersRequest, Outcome
from encoders.retina_pb2_grpc import RetinaServicer, add_RetinaServicer_to_server
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.spec import EncoderSpec
from encoders.text import TextNetwork, padded

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


class Packed(TextNetwork):
    """As PyTorch's manual has it for texts of different lengths, and as ours is trained."""

    _read = TextNetwork._read_packed


@cache
def bare_network(view: str) -> nn.Module:
    """torchvision's network as it is, or one that reads packed texts; with the parameters that Retina's has."""
    spec = SPECS[view]
    network = Packed(spec.dim) if spec.modality == "text" else torchvision_network(spec)
    set_parameters(network, spec, spec.pinned, cached_download, without_head)
    network.eval().requires_grad_(False).to(DEVICE, DTYPES[spec.dtype])
    if isinstance(network, Packed):
        network.lstm.flatten_parameters()  # the cast took them apart, and cuDNN would join them in every pass
    return network.to(memory_format=torch.channels_last)


@cache
def bare_decode(view: str) -> Callable[[bytes], Any]:
    """Pillow and the transforms that torchvision has for a network's weights, as its manual says; of texts, Retina's
    own."""
    spec = SPECS[view]
    if spec.modality == "text":
        return encoder_of(view).prepare
    transforms = weights_of(spec).transforms()
    return lambda content: transforms(Image.open(io.BytesIO(content)).convert("RGB"))


class Bare:
    """The parts by themselves, on as many threads as Retina has for them; torchvision's, or Retina's `own`."""

    def __init__(self, contents: dict[str, list[bytes]]) -> None:
        self._contents = contents
        self._threads = {
            count: ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
            for count in {PLAN.lanes, PLAN.decoding}
        }

    def network(self, view: str, count: int, own: bool = False) -> int:
        """Passes of full batches on tensors that are ready, on a CPU `PLAN.lanes` of them at a time; texts sorted by
        length, as many at a time as Retina waits for, so that little is padding."""
        size = PLAN.batch(SPECS[view].modality)
        passes = max(1, count // size)
        network = encoder_of(view)._forward._network if own else bare_network(view)  # type: ignore[attr-defined]
        batches = self._batches(view)
        each = (batches[n % len(batches)] for n in range(passes))
        if DEVICE.type == "cpu":
            list(self._threads[PLAN.lanes].map(lambda batch: _passed(network, batch), each))
        else:
            for batch in each:
                _passed(network, batch)
            torch.cuda.synchronize()
        return passes * size

    def decode(self, view: str, count: int, own: bool = False) -> int:
        """Decoding, resizing and normalising, or tokenizing; as many as Retina has decoded in one go."""
        prepare = encoder_of(view).prepare if own else bare_decode(view)
        contents = self._contents[SPECS[view].modality]
        size = TEXTS_AT_ONCE if SPECS[view].modality == "text" else 1
        parts = ([contents[n % len(contents)] for n in range(at, at + size)] for at in range(0, count, size))
        list(self._threads[PLAN.decoding].map(lambda part: list(map(prepare, part)), parts))
        return count

    @cache  # noqa: B019 - one object, as long as the process
    def _batches(self, view: str) -> list[tuple[torch.Tensor, ...]]:
        """Batches on the device, in the dtype and the order in memory that the network computes in."""
        encoder = encoder_of(view)
        modality = encoder.spec.modality
        size = PLAN.batch(modality)
        contents = self._contents[modality]
        pool = SORTED_PASSES * size
        count = math.ceil(len(contents) / pool) * pool  # all that Retina is asked for: the first texts are shorter
        inputs = [encoder.prepare(contents[n % len(contents)]) for n in range(count)]
        if modality == "text":
            inputs = [each for at in range(0, count, pool) for each in sorted(inputs[at : at + pool], key=len)]
        forward = encoder._forward  # type: ignore[attr-defined]
        found = []
        for at in range(0, count, size):
            batch = inputs[at : at + size]
            tensors = padded(batch) if modality == "text" else (forward.stacked(batch),)
            found.append(tuple(map(forward._placed, tensors)))
        if DEVICE.type != "cpu":
            torch.cuda.synchronize()
        return found


def _passed(network: Callable[..., Any], batch: Sequence[torch.Tensor]) -> None:
    with torch.inference_mode():
        network(*batch)


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
