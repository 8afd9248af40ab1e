"""Registered encoders, run in this process: `embark encode` and the speeds of `embark encoders`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from embark.parts import encoder_loader
from embark.repo import open_store
from embark.settings import Settings
from encoders.batching import Batches, Embedded, Source
from encoders.encoder import Encoder, NotFound, TooLarge
from encoders.keys import KeyRefused, canonical_key
from encoders.spec import EncoderSpec, SpecError
from feature_repo.directory import UnknownView
from feature_repo.views import encoder_specs

MAX_FILE_BYTES = 200 << 20  # of one of the user's own files; what is larger is no picture


def registered(settings: Settings) -> dict[str, EncoderSpec]:
    """The registered encoders by view; none where nothing was applied yet."""
    from feast.errors import FeastObjectNotFoundException

    try:
        return encoder_specs(open_store(settings.repo), allow_cache=False)
    except (FileNotFoundError, FeastObjectNotFoundException):
        return {}


def registered_encoder(settings: Settings, view: str) -> EncoderSpec:
    """Raises:
    UnknownView: no encoder is registered under that name.
    """
    specs = registered(settings)
    if view not in specs:
        raise UnknownView(view, specs)
    return specs[view]


def load_registered(settings: Settings, spec: EncoderSpec) -> Encoder:
    """The encoder of a registered spec, on the device of the settings.

    Raises:
        WeightsUnavailable: its weights cannot be had.
        SpecError: they are not those that were pinned.
        DeviceUnavailable: no such device here.
    """
    encoder = encoder_loader(settings)(spec)
    if encoder.spec.fingerprint != spec.fingerprint:
        raise SpecError(
            f"encoder {spec.view!r}: the weights are {encoder.spec.pinned!r} here, {spec.pinned!r} was pinned"
        )
    return encoder


@dataclass(frozen=True, kw_only=True, slots=True)
class FilesAndWeb:
    """A `Source` of the user's own files, named by path, and of the web for all else.

    Attributes:
        files: key → path.
        web: the guarded fetcher.
    """

    web: Source
    files: dict[str, Path] = field(default_factory=dict)

    async def fetch(self, url: str) -> bytes:
        """Raises:
        FetchError: no such file, or a larger one than 200 MiB; or as the web's.
        """
        path = self.files.get(url)
        if path is None:
            return await self.web.fetch(url)
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise TooLarge(f"{path} has {size} bytes, {MAX_FILE_BYTES} are allowed")
            return path.read_bytes()
        except OSError as error:
            raise NotFound(f"{path}: {error.strerror}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Given:
    """A `Source` of what is in memory: key → content."""

    contents: Mapping[str, bytes]

    async def fetch(self, url: str) -> bytes:
        return self.contents[url]


async def embed_inputs(
    batches: Batches, encoder: Encoder, source: FilesAndWeb, inputs: Sequence[str]
) -> list[Embedded | KeyRefused]:
    """What became of each input, in order: a path or URL of an image, or a text."""
    keys = [_key(encoder.spec, source, each) for each in inputs]
    embedded = await batches.embed(encoder, [key for key in keys if isinstance(key, str)])
    return [embedded[key] if isinstance(key, str) else key for key in keys]


def _key(spec: EncoderSpec, source: FilesAndWeb, given: str) -> str | KeyRefused:
    if spec.modality == "image" and "://" not in given:
        key = f"file:{given}"  # no key of a URL begins so
        source.files[key] = Path(given.strip())
        return key
    try:
        return canonical_key(spec, given)
    except KeyRefused as refusal:
        return refusal
