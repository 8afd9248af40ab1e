"""Has Feast start in a third of the time: without checks of types that it compiles into itself at each start.

Feast marks its classes for typeguard, which parses and compiles a whole module of Feast's for each of its functions:
4.5 of the 7 seconds of CPU that importing Feast took, in every process. Typeguard itself says that such checks are not
meant for production, and leaves them out under `python -O`, which would leave out every assertion besides. What users
hand in is checked where it is read: `EncoderSpec`, `feature_store.yaml`, requests. It does nothing in a process that
has imported Feast already.
"""

import sys
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import typeguard

Checked = TypeVar("Checked", bound=Callable[..., Any])


def leave_feast_unchecked() -> None:
    """Call before the first import of Feast."""
    if "feast" not in sys.modules:
        typeguard.typechecked = partial(typechecked, typeguard.typechecked)


def typechecked(checked: Callable[..., Any], target: Checked | None = None, **how: Any) -> Any:
    """In the place of typeguard's decorator `checked`, which everything but Feast still gets."""
    if target is None:
        return partial(typechecked, checked, **how)
    if target.__module__.partition(".")[0] == "feast":
        return target
    return checked(target, **how)
