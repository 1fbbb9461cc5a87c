"""`python -m memory_paths.retrieval.scale_figures FOLDER`: a bank of up to a million items, measured.

What is stored are sentences of real data sets, encoded by MiniLM, each as often as it takes, every copy moved away
from its sentence by as much as some sentence is from its nearest neighbour: the distances between neighbours are those
of real texts. Questions are other sentences of the same sets. Recall is against a comparison with every vector.

Reading is measured in a process of its own that opens what another one wrote.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .encoder import MINILM_SHA256, EncoderManifest, SentenceEncoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Vectors = NDArray[np.float32]

SENTENCES, QUESTIONS = 100_000, 1_000
SHORTEST, LONGEST = 25, 300  # characters of a sentence
BATCH = 10_000  # items in one write
K = 10
# Of the items, those whose number is divisible: how selective a filter is.
FILTERS = {"none": 1, "50 %": 2, "1 %": 100, "0.01 %": 10_000}
NAMESPACE = "real"


class Known:
    """An encoder whose vectors are on disk already: a text begins with the number of its row."""

    def __init__(self, file: Path) -> None:
        import numpy as np

        self._vectors: Vectors = np.load(file, mmap_mode="r")
        self.manifest = EncoderManifest("minilm, perturbed", self._vectors.shape[1], MINILM_SHA256, 0)
        self.flops_per_token = 0.0

    def encode_documents(self, texts: Sequence[str]) -> Vectors:
        """float32 [len(texts), 384], rows of length 1."""
        import numpy as np

        return np.array(self._vectors[[int(text.split(" ", 1)[0]) for text in texts]])

    encode_queries = encode_documents

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Not counted: nothing is read."""
        return [0] * len(texts)


def sentences(folder: Path, count: int, seed: int = 0) -> list[str]:
    """Distinct sentences of all data sets in a folder, drawn by chance.

    Raises:
        ValueError: There are fewer.
    """
    import random

    found: dict[str, None] = {}
    for file in sorted(folder.glob("*/*")):
        if re.search(r"\.(jsonl|json|txt)(\.gz)?$", file.name) and not file.parent.name.startswith("model_"):
            for text in _texts(file):
                for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
                    if SHORTEST <= len(one := " ".join(sentence.split())) <= LONGEST:
                        found[one] = None
    if len(found) < count:
        raise ValueError(f"{folder} has {len(found)} distinct sentences, {count} are needed; name a folder with more")
    return random.Random(seed).sample(sorted(found), count)


def _texts(file: Path) -> Iterator[str]:
    opening: Any = gzip.open if file.suffix == ".gz" else open
    with opening(file, "rt", encoding="utf-8") as lines:
        for line in lines:
            yield from _leaves(json.loads(line)) if ".jsonl" in file.name else (line,)


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _leaves(one)


def encoded(folder: Path, work: Path) -> tuple[Path, list[str]]:
    """File of the sentences' vectors, float32 [SENTENCES + QUESTIONS, 384], and the sentences; kept for next time."""
    import numpy as np

    texts, file = sentences(folder, SENTENCES + QUESTIONS), work / "sentences.npy"
    if not file.exists():
        work.mkdir(parents=True, exist_ok=True)
        vectors = SentenceEncoder().encode_documents(texts)
        np.save(partial := work / "partial.npy", vectors)
        partial.rename(file)
    return file, texts
