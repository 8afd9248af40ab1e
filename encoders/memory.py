"""What the C library does with memory that was freed."""

import contextlib
import ctypes

# of glibc's malloc.h
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
FROM_HEAP_BYTES = 32 << 20  # the most that glibc takes; what is larger is a mapping of its own, and goes back at once
KEPT_BYTES = 256 << 20  # at the end of a heap; activations of 16 pictures in MobileNetV3-small take some 30 MB


def keep_freed_memory() -> None:
    """Has the process keep what it frees, up to a limit, for what it allocates next; where the C library is glibc.

    A pass allocates and frees the same tensors as the one before. By default glibc gives them back to the system in
    between, and the system fills each page with zeros again: 670 page faults a picture in MobileNetV3-small, a quarter
    of its CPU time, during which no other thread of the process may allocate.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(M_MMAP_THRESHOLD, FROM_HEAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
