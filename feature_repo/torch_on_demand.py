"""Keeps torch out of processes that only look embeddings up.

Feast imports torch with itself wherever torch is installed (its module `feast.torch_wrapper`), for the sake of two
methods that return tensors: three seconds and 200 MB in every server. This puts a module of the same one function in
its place that imports torch when it is called. It does nothing in a process that has imported Feast already.
"""

import importlib
import sys
from types import ModuleType


def get_torch() -> ModuleType:
    """The torch module, for Feast's `to_tensor`.

    Raises:
        ImportError: torch is not installed, or a library that it needs is missing.
    """
    return importlib.import_module("torch")


def defer_torch() -> None:
    """Call before the first import of Feast."""
    if "feast" not in sys.modules:
        wrapper = ModuleType("feast.torch_wrapper", __doc__)
        wrapper.get_torch = get_torch  # type: ignore[attr-defined]
        sys.modules["feast.torch_wrapper"] = wrapper
