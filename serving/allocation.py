"""What a process that answers look-ups asks of its memory: no work of the kernel's, and no long pause of Python's.

A look-up of 500 keys fills and frees two megabytes. glibc gives blocks of that size back to the kernel at once, and has
every page of the next one made anew: half of what a hot look-up took. Elsewhere than on glibc nothing is done.

What was made while it started, Feast's modules above all, are 400,000 objects that stay. Python's collector would look
at each of them again and again, for half a second at a time, in which nobody is answered.
"""

import ctypes
import gc

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of <malloc.h>
LARGEST_BLOCK = 32 << 20  # bytes; glibc allows no more. 2,000 keys of 4,096 floats
MOST_KEPT = 256 << 20  # bytes, beyond which free memory at the end of the heap goes back


def keep_freed_memory() -> bool:
    """Tells the C library so, for this process; whether it understood."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_BLOCK)) and bool(mallopt(M_TRIM_THRESHOLD, MOST_KEPT))


def keep_what_started() -> None:
    """Has the collector never again look at what there is now."""
    gc.collect()
    gc.freeze()
