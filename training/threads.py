"""How many threads torch's kernels have."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Kernels that the calling thread starts within it have one thread.

    OpenMP's threads wait for each other by spinning. For a few hundred examples there is nothing to share; where other
    processes have the cores, each small kernel would wait for its turn twice.
    """
    before = torch.get_num_threads()  # of the calling thread
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
