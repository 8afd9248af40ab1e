"""Text encoders from sentence-transformers: the optional extra `sentence-transformers`."""

import threading
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from encoders.compute import Forward
from encoders.downloads import folder_sha256
from encoders.encoder import DecodeError
from encoders.spec import EncoderSpec, SpecError
from encoders.text import text_of

EXTRA = "sentence-transformers"
PREFIX = "sentence-transformers:"


def require_sentence_transformers(spec: EncoderSpec) -> None:
    """Raises:
    SpecError: sentence-transformers is not installed here.
    """
    if find_spec("sentence_transformers") is None:
        raise SpecError(
            f"encoder {spec.view!r}: {spec.network} needs {EXTRA}, which is not installed: `uv sync --extra {EXTRA}`"
        )


class SentenceNetwork(nn.Module):
    """Token ids (B, T) and their counts (B,) → embeddings (B, dim): a transformer with its pooling and what follows."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, id_BT: Tensor, count_B: Tensor) -> Tensor:
        mask_BT = (torch.arange(id_BT.shape[1], device=id_BT.device) < count_B[:, None]).long()
        embedding_BD: Tensor = self.model({"input_ids": id_BT, "attention_mask": mask_BT})["sentence_embedding"]
        return embedding_BD


class SentenceEncoder:
    """A model of sentence-transformers as an encoder.

    Args:
        spec: what it is, with what was really loaded as `pinned`.
        model: a `SentenceTransformer` on the CPU.
        device: where it computes.
    """

    def __init__(self, spec: EncoderSpec, model: Any, device: torch.device) -> None:
        self.spec = spec
        self._tokenizer = model.tokenizer
        self._most = _most_tokens(spec, model)
        self._prompt = model.prompts.get(model.default_prompt_name, "") if model.default_prompt_name else ""
        self._padding = self._tokenizer.pad_token_id or 0
        self._one_at_a_time = threading.Lock()  # a tokenizer takes its settings anew with each call
        self._forward = Forward(SentenceNetwork(model), device, spec.dtype)

    def prepare(self, content: bytes) -> Tensor:
        """Token ids (T,) int64 of a text in UTF-8, with the model's own prompt and special tokens, cut at its length.

        Raises:
            DecodeError: no valid UTF-8, or no token.
        """
        text = self._prompt + text_of(content)
        with self._one_at_a_time:
            ids = self._tokenizer(text, truncation=True, max_length=self._most)["input_ids"]
        if not ids:
            raise DecodeError("the text has no token that the model knows")
        return torch.tensor(ids)

    def encode(self, batch: Sequence[Tensor]) -> NDArray[np.float32]:
        """Embeddings (B, dim) of B prepared texts.

        Raises:
            EncodeError: the network failed.
        """
        id_BT = pad_sequence(list(batch), batch_first=True, padding_value=self._padding)
        return self._forward(id_BT, torch.tensor([len(ids) for ids in batch]))


def load_model(spec: EncoderSpec, folder: Path) -> tuple[Any, str]:
    """The `SentenceTransformer` that was saved in a folder, and the SHA-256 over its files, 64 hex digits.

    No code that lies in the folder is run.

    Raises:
        SpecError: sentence-transformers is not installed here; no such model, or another `dim`.
    """
    require_sentence_transformers(spec)
    from sentence_transformers import SentenceTransformer

    digest = folder_sha256(folder)
    try:
        with torch.random.fork_rng(devices=[]):
            model: Any = SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                trust_remote_code=False,
                model_kwargs={"dtype": torch.float32},  # whatever it was saved in: Retina casts it
            )
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError) as error:
        raise SpecError(f"encoder {spec.view!r}: {folder} is no model of {EXTRA}: {error}") from error
    if not callable(getattr(model, "tokenizer", None)):
        raise SpecError(f"encoder {spec.view!r}: {folder} is no model of {EXTRA} that embeds texts")
    dim = model.get_embedding_dimension()
    if dim != spec.dim:
        raise SpecError(f"encoder {spec.view!r}: dim={spec.dim} is not allowed: {folder} embeds in {dim} values")
    return model, digest


def _most_tokens(spec: EncoderSpec, model: Any) -> int:
    own = int(model.max_seq_length or model.tokenizer.model_max_length)
    if spec.preprocessing == "default":
        return own
    most = int(spec.preprocessing.removeprefix("tokens:"))
    if most > own:
        raise SpecError(
            f"encoder {spec.view!r}: preprocessing={spec.preprocessing!r} is not allowed: at most tokens:{own}"
        )
    return most
