"""The encoder protocol, and the errors of everything between a key and its embedding.

    EncoderError                    retryable   what it means
    ├── FetchError                              the image could not be downloaded
    │   ├── Blocked                 no          an address or scheme that may not be fetched
    │   ├── TooLarge                no          more bytes than allowed
    │   ├── NotFound                no          the server says that there is no such image (4xx)
    │   ├── ServerFailed            yes         5xx, 408, 425, 429, or no connection
    │   └── Timeout                 yes         slower than allowed
    ├── DecodeError                 no          the bytes are no picture that can be decoded
    └── EncodeError                 yes         the network failed; out of memory, say

Foreign errors are translated once, at the boundary: `fetch.py` those of the network, `pixels.py` those of Pillow,
`compute.py` those of torch.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from encoders.spec import EncoderSpec


class EncoderError(Exception):
    """Why a key has no embedding. `reason` is stable: it stands in metrics, marks and dead letters."""

    retryable: ClassVar[bool] = False

    @property
    def reason(self) -> str:
        return type(self).__name__


class FetchError(EncoderError):
    """The image could not be downloaded."""


class Blocked(FetchError):
    """The URL leads to an address or scheme that may not be fetched."""


class TooLarge(FetchError):
    """The answer has more bytes than allowed."""


class NotFound(FetchError):
    """The server says that there is no such image."""


class ServerFailed(FetchError):
    """The server failed or could not be reached."""

    retryable = True


class Timeout(FetchError):
    """The server was slower than allowed."""

    retryable = True


class DecodeError(EncoderError):
    """The bytes are no picture that can be decoded within the limits."""


class EncodeError(EncoderError):
    """The network failed on an input that it should take."""

    retryable = True


class Encoder(Protocol):
    """A loaded network.

    `prepare` runs on any thread, one input at a time; `encode` on one thread, a batch at a time.
    """

    @property
    def spec(self) -> EncoderSpec: ...

    def prepare(self, content: bytes) -> Any:
        """The network's input for the bytes of an image file, or for a text in UTF-8.

        Raises:
            DecodeError: the bytes are no such content.
        """
        ...

    def encode(self, batch: Sequence[Any]) -> NDArray[np.float32]:
        """Embeddings (B, dim) of B prepared inputs.

        Raises:
            EncodeError: the network failed.
        """
        ...
