"""What a process that answers look-ups asks of Python's collector: no long pause.

What was made while it started, Feast's modules above all, are 400,000 objects that stay. The collector would look at
each of them again and again, for half a second at a time, in which nobody is answered.
"""

import gc


def keep_what_started() -> None:
    """Has the collector never again look at what there is now."""
    gc.collect()
    gc.freeze()
