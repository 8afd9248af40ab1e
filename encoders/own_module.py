"""Where a team's own network lies: a Python module that the operator allowed, found and read but not run. No torch."""

from collections.abc import Collection
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

from encoders.spec import EncoderSpec, SpecError

MODULE = ";module:"  # between the weights and the module in `pinned`
SETTING = "EMBARK_ALLOWED_MODULES"


def check_allowed(spec: EncoderSpec, allowed_modules: Collection[str]) -> None:
    """Raises:
    SpecError: the spec's module is neither among the allowed ones nor below one; the message names the setting.
    """
    name = module_name(spec)
    if not any(name == allowed or name.startswith(f"{allowed}.") for allowed in allowed_modules):
        raise SpecError(
            f"encoder {spec.view!r}: the module {name!r} is not allowed to run here; allowed are: "
            f"{', '.join(allowed_modules) or 'none'}. Its operator names it in the setting allowed_modules, "
            f"as {SETTING}='[\"{name}\"]', and registers with `embark apply`"
        )


def module_name(spec: EncoderSpec) -> str:
    return spec.network.split(":")[1]


def module_source(spec: EncoderSpec) -> tuple[bytes, str]:
    """The source of a spec's module, and its file; of the module itself nothing is run.

    Raises:
        SpecError: there is no such module, or none with source.
    """
    name = module_name(spec)
    invalidate_caches()  # the file may be newer than this process
    try:
        found = find_spec(name)
    except (ImportError, ValueError) as error:
        raise SpecError(f"encoder {spec.view!r}: there is no module {name!r}: {error}") from error
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise SpecError(
            f"encoder {spec.view!r}: there is no module {name!r} with source where Python looks for modules"
        )
    return Path(found.origin).read_bytes(), found.origin


def changed(spec: EncoderSpec, what: str) -> str:
    """The message for an encoder that is no longer what was pinned."""
    return (
        f"encoder {spec.view!r}: {what}: put the old one back, or declare version v{int(spec.version[1:]) + 1} "
        "with the new one"
    )
