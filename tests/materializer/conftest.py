"""Imports kafka-python before any test does: on Python 3.11 its import warns, and warnings are errors here."""

import warnings

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "(read|open)_text is deprecated", DeprecationWarning)
    import kafka  # noqa: F401
