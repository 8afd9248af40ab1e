"""A Retina in a process of its own, as `embark retina` runs it, with name servers and time-outs that a test owns.

Prints the port that it listens on, and ends when its input does.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Network

import torch
import uvloop

from encoders.fetch import Fetcher
from encoders.network import system_addresses
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.spec import EncoderSpec

IMAGE = EncoderSpec(
    name="small", version="v1", modality="image", dim=576, network="torchvision:mobilenet_v3_small", pinned="seeded:0"
)
TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=8, network="text_lstm", pinned="seeded:0")
SECONDS = 2.0  # a download
MAX_BYTES = 11 << 20

NAMES: dict[str, Sequence[Sequence[str]]] = {  # what each asking is answered; the last one from then on
    "good.example": [["127.0.0.1"]],
    "private.example": [["10.0.0.1"]],
    "metadata.example": [["169.254.169.254", "fd00:ec2::254"]],
    "mapped.example": [["::ffff:10.0.0.1"]],
    "nat64.example": [["64:ff9b::10.0.0.1"]],
    "unspecified.example": [["0.0.0.0"]],
    "rebinding.example": [["127.0.0.1"], ["127.0.0.2"]],
}
asked: Counter[str] = Counter()


def resolve(host: str, port: int) -> Sequence[str]:
    answers = NAMES.get(host)
    if answers is None:
        return system_addresses(host, port)
    asked[host] += 1
    return answers[min(asked[host], len(answers)) - 1]


async def main() -> None:
    allowed = [IPv4Network("127.0.0.1/32")]
    async with Fetcher(allowed_networks=allowed, seconds=SECONDS, max_bytes=MAX_BYTES, resolve=resolve) as fetcher:
        service = RetinaService(
            registered=lambda: {IMAGE.view: IMAGE, TEXT.view: TEXT}, fetcher=fetcher, device="cpu", max_batch=4
        )
        async with RetinaServer(service, "127.0.0.1:0", grace=0.2) as server:
            print(server.port, flush=True)
            await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    torch.set_num_threads(1)
    uvloop.run(main())
