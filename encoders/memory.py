"""What the C library does with memory that was freed."""

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8  # of <malloc.h>
LARGEST_BLOCK = 32 << 20  # bytes; glibc allows no more. 2,000 keys of 4,096 floats, or 16 pictures in MobileNetV3-small
MOST_KEPT = 256 << 20  # bytes, beyond which free memory at the end of the heap goes back


def keep_freed_memory() -> bool:
    """Has the process keep what it frees, up to a limit, for what it allocates next; whether the C library understood.

    What allocates and frees the same again and again needs it. By default glibc gives large blocks back to the kernel,
    which makes every page of the next one anew: half of what a hot look-up of 500 keys took, two megabytes; and 670
    page faults a picture in MobileNetV3-small, a quarter of its CPU time. Elsewhere than on glibc nothing is done.
    """
    return _mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK) and _mallopt(M_TRIM_THRESHOLD, MOST_KEPT)


def share_one_heap() -> bool:
    """Has all threads that come after allocate from one heap; whether the C library understood.

    glibc gives each thread a heap of its own, in pieces of 64 MB, and a piece that is free goes back to the kernel,
    whatever limit `keep_freed_memory` has set: MobileNetV3-small took some 200 page faults a picture, and a millisecond
    of CPU or more. It is for threads that allocate little and large things: they wait for each other.
    """
    return _mallopt(M_ARENA_MAX, 1)


def _mallopt(parameter: int, value: int) -> bool:
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library
        return False
    return bool(mallopt(parameter, value))
