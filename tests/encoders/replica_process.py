"""A Retina in a process of its own, for tests: `python -m tests.encoders.replica_process PORT`; texts only."""

import asyncio
import signal
import sys

import uvloop

from encoders.fetch import Fetcher
from encoders.server import RetinaServer
from encoders.service import RetinaService
from encoders.spec import EncoderSpec

TEXT = EncoderSpec(name="t", version="v1", modality="text", dim=8, network="text_lstm", pinned="seeded:0")


async def main(port: int) -> None:
    async with Fetcher() as fetcher:
        service = RetinaService(registered=lambda: {TEXT.view: TEXT}, fetcher=fetcher, device="cpu")
        async with RetinaServer(service, f"127.0.0.1:{port}", ready=False) as server:
            stopped = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
            await service.warm([TEXT.view])
            await server.set_ready()
            print("ready", flush=True)
            await stopped.wait()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
