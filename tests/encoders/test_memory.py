import platform
import resource

import numpy as np
import pytest

from encoders.memory import keep_freed_memory, share_one_heap


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_what_was_freed_serves_what_comes_next() -> None:
    keep_freed_memory()

    def faults() -> int:
        return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt

    pages = np.ones(1 << 20).nbytes // resource.getpagesize()
    before = faults()
    for _ in range(10):
        np.ones(1 << 20)
    assert faults() - before < 2 * pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_the_c_library_takes_it_that_threads_share_a_heap() -> None:
    assert share_one_heap()
