"""The text encoder: LSTM and self-attention over hashed tokens."""

import hashlib
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from encoders.compute import Forward
from encoders.encoder import DecodeError
from encoders.spec import EncoderSpec

BUCKETS = 2**15
PADDING = 0
DEFAULT_TOKENS = 64
MAX_TOKENS = 9999
KNOWN_TOKENS = 2**15  # whose indices are kept: most texts are made of few words, and hashing them is half of tokenizing
KNOWN_CHARACTERS = 32  # of a token that is kept: what strangers send must not fill the memory
ASCII_TOKEN = re.compile(r"[a-z0-9_]+|\S")  # in lower case


@dataclass(frozen=True, kw_only=True, slots=True)
class TextArchitecture:
    """Sizes of a `TextNetwork`.

    Attributes:
        buckets: how many different tokens it can tell apart; a token's index is 1 + its bucket.
        width: of token embeddings, and of the LSTM in each direction.
        heads: of the self-attention; 2 x width is a multiple of it.
    """

    buckets: int = BUCKETS
    width: int = 128
    heads: int = 4

    def __post_init__(self) -> None:
        for name, value in (("buckets", self.buckets), ("width", self.width), ("heads", self.heads)):
            if type(value) is not int or value < 1:
                raise ValueError(f"{name}={value!r} is not allowed: a positive whole number")
        if 2 * self.width % self.heads:
            raise ValueError(f"heads={self.heads} is not allowed: 2 x width = {2 * self.width} is a multiple of it")


@dataclass(frozen=True, kw_only=True, slots=True)
class TextPreprocessing:
    """From a text to a network's input.

    Attributes:
        tokens: how many of the first tokens count.
    """

    tokens: int = DEFAULT_TOKENS

    def __post_init__(self) -> None:
        if type(self.tokens) is not int or not 1 <= self.tokens <= MAX_TOKENS:
            raise ValueError(f"tokens={self.tokens!r} is not allowed: a whole number from 1 to {MAX_TOKENS}")


def tokens(text: str) -> Iterator[str]:
    """Words in lower case; each punctuation mark, symbol, emoji and East Asian character by itself.

    A word is a run of letters, marks, digits and underscores of any script. Chinese and Japanese write no spaces, so a
    run of wide characters would be one token that never comes twice.
    """
    text = text.lower()
    if text.isascii():  # the same, in an eighth of the time
        yield from ASCII_TOKEN.findall(text)
        return
    word: list[str] = []
    for character in text:
        in_word = unicodedata.category(character)[0] in "LMN" or character == "_"
        if in_word and unicodedata.east_asian_width(character) not in "WF":
            word.append(character)
            continue
        if word:
            yield "".join(word)
            word.clear()
        if not character.isspace():
            yield character
    if word:
        yield "".join(word)


def token_index(token: str, buckets: int = BUCKETS) -> int:
    """1 to `buckets`, the same in every process: BLAKE2b of the token's UTF-8."""
    digest = hashlib.blake2b(token.encode(), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "little") % buckets


class KnownTokens(dict[str, int]):
    """Token → index; hashed when it first comes, and kept. Emptied when it is full, so that it follows the texts.

    Safe to share between threads.

    Args:
        buckets: as of `token_index`.
    """

    def __init__(self, buckets: int) -> None:
        self._buckets = buckets

    def __missing__(self, token: str) -> int:
        index = token_index(token, self._buckets)
        if len(token) <= KNOWN_CHARACTERS:
            if len(self) >= KNOWN_TOKENS:
                self.clear()
            self[token] = index
        return index


@cache
def known_tokens(buckets: int) -> KnownTokens:
    """Those of a process; there are as many as sizes of networks."""
    return KnownTokens(buckets)


def token_indices(text: str, preprocessing: TextPreprocessing, buckets: int = BUCKETS) -> NDArray[np.int64]:
    """Indices (T,) int64 of a text's first tokens; one index for a text without any token."""
    first = list(islice(tokens(text), preprocessing.tokens)) or [""]
    return np.array(list(map(known_tokens(buckets).__getitem__, first)), dtype=np.int64)


def text_input(text: str, preprocessing: TextPreprocessing, buckets: int = BUCKETS) -> Tensor:
    """`token_indices` as a tensor (T,) int64."""
    return torch.from_numpy(token_indices(text, preprocessing, buckets))


def padded(texts: Sequence[NDArray[np.int64]]) -> tuple[Tensor, Tensor]:
    """Texts as the network takes them: indices (B, T) and their counts (B,), both int64."""
    counts = [len(indices) for indices in texts]
    index_BT = np.full((len(texts), max(counts)), PADDING, dtype=np.int64)
    for row_T, indices in zip(index_BT, texts, strict=True):
        row_T[: len(indices)] = indices
    return torch.from_numpy(index_BT), torch.tensor(counts)


class TextNetwork(nn.Module):
    """Token indices (B, T), their counts (B,) → embeddings (B, dim).

    B batch, T tokens, E = 2 x width, H heads, K = E / H.

    Raises:
        ValueError: `dim` is no positive number.
    """

    def __init__(self, dim: int, architecture: TextArchitecture | None = None) -> None:
        super().__init__()
        if dim < 1:
            raise ValueError(f"dim={dim!r} is not allowed: a positive number")
        self.dim = dim
        self.architecture = architecture or TextArchitecture()
        width = self.architecture.width
        both = 2 * width
        self.embedding = nn.Embedding(1 + self.architecture.buckets, width, padding_idx=PADDING)
        self.lstm = nn.LSTM(width, width, batch_first=True, bidirectional=True)
        self.to_qkv = nn.Linear(both, 3 * both)
        self.from_heads = nn.Linear(both, both)
        self.norm = nn.LayerNorm(both)
        self.out = nn.Linear(both, dim)

    def forward(self, index_BT: Tensor, count_B: Tensor) -> Tensor:
        is_token_BT = torch.arange(index_BT.shape[1], device=index_BT.device) < count_B[:, None]
        read_BTE = self._read(index_BT, count_B)
        mixed_BTE = self.norm(read_BTE + self._attend(read_BTE, is_token_BT))
        weight_BT1 = is_token_BT[:, :, None].to(mixed_BTE.dtype)
        mean_BE = (mixed_BTE * weight_BT1).sum(1) / weight_BT1.sum(1)
        embedding_BD: Tensor = self.out(mean_BE)
        return embedding_BD

    def _read(self, index_BT: Tensor, count_B: Tensor) -> Tensor:
        """What the LSTM says at each token, in both directions (B, T, E); where there is no token, anything finite."""
        if index_BT.device.type == "cpu" and not torch.is_grad_enabled():
            return self._read_whole(index_BT, count_B)
        return self._read_packed(index_BT, count_B)

    def _read_packed(self, index_BT: Tensor, count_B: Tensor) -> Tensor:
        embedded_BTW = self.embedding(index_BT)
        # packed, so that the backward direction begins at the last token and not in the padding
        packed = pack_padded_sequence(embedded_BTW, count_B.cpu(), batch_first=True, enforce_sorted=False)
        read_BTE, _ = pad_packed_sequence(self.lstm(packed)[0], batch_first=True, total_length=index_BT.shape[1])
        return read_BTE

    def _read_whole(self, index_BT: Tensor, count_B: Tensor) -> Tensor:
        """The same, a direction at a time, which oneDNN computes in one kernel where nothing is packed, up to 1.9 times
        as fast. The backward one reads texts that are turned round, so that it too ends in the padding."""
        place_T = torch.arange(index_BT.shape[1])
        last_B1 = count_B[:, None] - 1
        turned_BT = torch.where(place_T <= last_B1, last_B1 - place_T, place_T)
        forward_weights, backward_weights = self.lstm.all_weights
        forward_BTW = self._read_once(index_BT, forward_weights)
        backward_BTW = self._read_once(index_BT.gather(1, turned_BT), backward_weights)
        return torch.cat([forward_BTW, backward_BTW.gather(1, turned_BT[:, :, None].expand_as(backward_BTW))], dim=2)

    def _read_once(self, index_BT: Tensor, weights: Sequence[Tensor]) -> Tensor:
        embedded_BTW = self.embedding(index_BT)
        start_1BW = embedded_BTW.new_zeros(1, len(index_BT), self.lstm.hidden_size)
        read_BTW: Tensor = torch.lstm(
            embedded_BTW,
            (start_1BW, start_1BW),
            tuple(weights),
            has_biases=True,
            num_layers=1,
            dropout=0.0,
            train=False,
            bidirectional=False,
            batch_first=True,
        )[0]
        return read_BTW

    def _attend(self, read_BTE: Tensor, is_token_BT: Tensor) -> Tensor:
        batch, most, both = read_BTE.shape
        heads = self.architecture.heads
        qkv_3BHTK = self.to_qkv(read_BTE).view(batch, most, 3, heads, both // heads).permute(2, 0, 3, 1, 4)
        q_BHTK, k_BHTK, v_BHTK = qkv_3BHTK.unbind(0)
        is_key_B11T = is_token_BT[:, None, None, :]
        attended_BHTK = F.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, attn_mask=is_key_B11T)
        attended_BTE: Tensor = self.from_heads(attended_BHTK.transpose(1, 2).reshape(batch, most, both))
        return attended_BTE


def text_of(content: bytes) -> str:
    """The text in bytes of UTF-8.

    Raises:
        DecodeError: no valid UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise DecodeError(f"the text is no valid UTF-8: {error}") from None


class TextEncoder:
    """The text network as an encoder.

    An embedding does not depend on the other texts of its batch, up to the rounding of float32 sums: 1e-5 for values
    around 1.

    Args:
        spec: what it is, with the weights that were really loaded as `pinned`.
        network: with its parameters set.
        preprocessing: the one that it was trained with.
        device: where it computes.
    """

    def __init__(
        self, spec: EncoderSpec, network: TextNetwork, preprocessing: TextPreprocessing, device: torch.device
    ) -> None:
        self.spec = spec
        self._preprocessing = preprocessing
        self._buckets = network.architecture.buckets
        self._forward = Forward(network, device, spec.dtype)

    def prepare(self, content: bytes) -> NDArray[np.int64]:
        """Indices (T,) of the first tokens of a text in UTF-8; one index for a text without any token.

        Raises:
            DecodeError: no valid UTF-8.
        """
        return token_indices(text_of(content), self._preprocessing, self._buckets)

    def encode(self, batch: Sequence[NDArray[np.int64]]) -> NDArray[np.float32]:
        """Embeddings (B, dim) of B prepared texts.

        Raises:
            EncodeError: the network failed.
        """
        return self._forward(*padded(batch))
