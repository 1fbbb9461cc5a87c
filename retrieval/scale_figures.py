"""`python -m memory_paths.retrieval.scale_figures FOLDER`: a bank of up to a million items, measured.

What is stored are sentences of real data sets, encoded by MiniLM, each as often as it takes, every copy moved away
from its sentence by as much as some sentence is from its nearest neighbour: the distances between neighbours are those
of real texts. Questions are other sentences of the same sets. Recall is against a comparison with every vector.

Reading is measured in a process of its own that opens what another one wrote. The exit status is 1 where a target is
missed.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.ledger import Ledger
from memory_paths.types import Knowledge, Query

from .bank import Bank
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


@dataclass(frozen=True)
class Target:
    """The least that a figure may be, or else the most; `moved`: from where, and why."""

    bound: float
    least: bool = False
    moved: str = ""

    def met(self, measured: float) -> bool:
        """Whether the figure is good enough."""
        return measured >= self.bound if self.least else measured <= self.bound

    def told(self, measured: float) -> str:
        """Whether it is, the figure and its bound, in words."""
        moved = f", moved {self.moved}" if self.moved else ""
        bound = f"at {'least' if self.least else 'most'} {self.bound:g}"
        return f"{'met' if self.met(measured) else 'MISSED'}: {measured:.4g}, target {bound}{moved}"


def verdict(figures: Mapping[str, tuple[Target, float]]) -> int:
    """Print of each figure whether it meets its target; an exit status: 1 where one does not."""
    for name, (target, measured) in figures.items():
        print(f"{name}: {target.told(measured)}")
    return int(not all(target.met(measured) for target, measured in figures.values()))


EXACT, MILLION = 200_000, 1_000_000  # items; up to `EXACT` a bank compares them all
EXACT_RECALL, LISTS_RECALL = Target(1.0, least=True), Target(0.98, least=True)
TOO_FEW_HITS = Target(0)  # questions that do not get min(K, matches)
# Of a million vectors in fp32, on one thread, without a filter.
AT_A_MILLION = {
    "resident after the questions, GB": Target(2.3),
    "filter none: p50, milliseconds": Target(10),
    "filter none: p95, milliseconds": Target(30),
    "open, seconds": Target(15),
}


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


def perturbed(file: Path, count: int, work: Path, seed: int = 0) -> Path:
    """The file of `count` vectors, float32 [count, 384]: the sentences first, then copies of them.

    A copy of sentence v is v + r u, made of length 1 again: u is a direction by chance, r the distance of some
    sentence (by chance) from its own nearest neighbour among all.
    """
    import numpy as np

    target = work / f"items-{count}.npy"
    if target.exists():
        return target
    base = np.load(file, mmap_mode="r")[:SENTENCES]
    random = np.random.default_rng(seed)
    distances = _distances(base, work / "distances.npy")
    made = np.lib.format.open_memmap(partial := work / "partial.npy", "w+", np.float32, (count, base.shape[1]))
    for start in range(0, count, BATCH):
        rows = np.arange(start, min(start + BATCH, count))
        copies = np.array(base[rows % SENTENCES])
        moved = rows >= SENTENCES
        direction = random.standard_normal(copies.shape).astype(np.float32)
        direction /= np.linalg.norm(direction, axis=1, keepdims=True)
        copies[moved] += (random.choice(distances, len(rows))[:, None] * direction)[moved]
        made[rows] = copies / np.linalg.norm(copies, axis=1, keepdims=True)
    made.flush()
    partial.rename(target)
    return target


def _distances(vectors: Vectors, file: Path) -> Vectors:
    """Of each row to the nearest other one; kept for next time."""
    import faiss
    import numpy as np

    if not file.exists():
        nearest = faiss.knn(vectors, vectors, 2, metric=faiss.METRIC_INNER_PRODUCT)[0][:, 1]
        np.save(file, np.sqrt(2 - 2 * nearest.clip(-1.0, 1.0)))
    found: Vectors = np.load(file)
    return found


@dataclass(frozen=True)
class Sizes:
    """A size of the bank, and where its files are."""

    items: int
    vectors: Path
    questions: Path
    work: Path

    @property
    def ledger(self) -> Path:
        """Its file."""
        return self.work / f"bank-{self.items}.sqlite"

    @property
    def written(self) -> Path:
        """File of what writing took."""
        return self.work / f"written-{self.items}.json"

    def truth(self, name: str) -> Path:
        """File of the best items of each question under a filter, int64 [questions, at most K]."""
        return self.work / f"truth-{self.items}-{name.replace(' ', '')}.npy"

    def bank(self, ledger: Ledger) -> Bank:
        """The bank, opened."""
        return Bank(None, ledger, Known(self.vectors), folder=self.work / f"bank-{self.items}", top_k=K, method="dense")


def write(sizes: Sizes, texts: Sequence[str]) -> dict[str, Any]:
    """Make the bank anew: items a second, snapshots on the way included, and the seconds of the last snapshot."""
    import faiss
    from tqdm import tqdm

    faiss.omp_set_num_threads(os.cpu_count() or 1)  # lists are made on all
    for end in ("", "-wal", "-shm"):
        sizes.ledger.with_name(f"{sizes.ledger.name}{end}").unlink(missing_ok=True)
    with Ledger(sizes.ledger) as ledger:
        bank = sizes.bank(ledger)
        started = time.perf_counter()
        for start in tqdm(range(0, sizes.items, BATCH), unit="batch", disable=not sys.stderr.isatty()):
            bank.write(
                [
                    Knowledge(
                        str(row),
                        f"{row} {texts[row % SENTENCES]}",
                        metadata={name: row % every == 0 for name, every in FILTERS.items() if every > 1},
                    )
                    for row in range(start, min(start + BATCH, sizes.items))
                ],
                NAMESPACE,
            )
        written = time.perf_counter()
        bank.flush()
        flushed = time.perf_counter()
        bank.close()
    return {
        "items a second": sizes.items / (written - started),
        "last snapshot, seconds": flushed - written,
        "peak while writing, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6,
    }


def read(sizes: Sizes) -> dict[str, Any]:
    """Open the bank and ask the questions one by one, on as many threads as OMP_NUM_THREADS says: set it to 1."""
    import numpy as np
    import psutil

    process = psutil.Process()
    libraries = process.memory_info().rss
    vectors: Vectors = np.load(sizes.questions, mmap_mode="r")[SENTENCES:]
    told: dict[str, Any] = {}
    started = time.perf_counter()
    with Ledger(sizes.ledger) as ledger:
        ledger_opened = time.perf_counter()
        bank = sizes.bank(ledger)
        opened = time.perf_counter()
        told["open, seconds"] = opened - started
        told["of which the ledger"] = ledger_opened - started
        for name, every in FILTERS.items():
            query = Query("", NAMESPACE, where={} if every == 1 else {name: True})
            truth = np.load(sizes.truth(name))
            started = time.perf_counter()
            bank.search([query], vectors=vectors[:1])
            told[f"filter {name}: the first question, milliseconds"] = 1000 * (time.perf_counter() - started)
            hits, seconds, short = 0, [], 0
            for vector, best in zip(vectors, truth, strict=True):
                started = time.perf_counter()
                (reading,) = bank.search([query], vectors=vector[None])
                seconds.append(time.perf_counter() - started)
                found = {int(recall.item.id) for recall in reading.recalls}
                hits += len(found & set(best.tolist()))
                short += len(found) < len(best)
            told[f"filter {name}: recall@{K}"] = hits / truth.size
            told[f"filter {name}: questions with too few hits"] = short
            for share in (50, 95):
                told[f"filter {name}: p{share}, milliseconds"] = 1000 * float(np.percentile(seconds, share))
            if every == 1:
                memory = process.memory_info()
                told["resident after the questions, GB"] = memory.rss / 1e9
                told["of which pages of files"] = memory.shared / 1e9
                told["of which libraries"] = libraries / 1e9
        bank.close()
    return told


def compare(sizes: Sizes) -> dict[str, Any]:
    """Find the K best items for each question under each filter by comparison with all; kept for next time."""
    import faiss
    import numpy as np

    questions: Vectors = np.array(np.load(sizes.questions, mmap_mode="r")[SENTENCES:])
    vectors: Vectors = np.load(sizes.vectors, mmap_mode="r")
    for name, every in FILTERS.items():
        if sizes.truth(name).exists():
            continue
        rows = np.arange(0, sizes.items, every)
        scores, best = np.zeros((len(questions), 0), np.float32), np.zeros((len(questions), 0), np.int64)
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            compared, found = faiss.knn(
                questions, np.array(vectors[part]), min(K, len(part)), metric=faiss.METRIC_INNER_PRODUCT
            )
            scores, best = np.hstack([scores, compared]), np.hstack([best, part[found]])
            order = np.argsort(-scores, axis=1, kind="stable")[:, :K]
            scores, best = np.take_along_axis(scores, order, 1), np.take_along_axis(best, order, 1)
        np.save(sizes.truth(name), best)
    return {}


def _apart(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """What a function gives in a new process."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def judged(items: int, column: Mapping[str, Any]) -> dict[str, tuple[Target, float]]:
    """The figures of a bank of so many items that have a target."""
    targets = {f"filter {name}: recall@{K}": EXACT_RECALL if items <= EXACT else LISTS_RECALL for name in FILTERS}
    targets |= {f"filter {name}: questions with too few hits": TOO_FEW_HITS for name in FILTERS}
    targets |= AT_A_MILLION if items >= MILLION else {}
    return {f"{items:,} items, {name}": (target, column[name]) for name, target in targets.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write and read a bank of each size; a Markdown table, and what of it meets its target."""
    parser = argparse.ArgumentParser(prog="python -m memory_paths.retrieval.scale_figures", description=__doc__)
    parser.add_argument("folder", type=Path, help="holds folders of data sets: JSON lines and plain text")
    parser.add_argument("--items", type=int, nargs="+", default=[100_000, 200_000, MILLION])
    parser.add_argument("--work", type=Path, default=Path(".work/scale"), help="where vectors and banks are kept")
    given = parser.parse_args(arguments)
    file, texts = encoded(given.folder, given.work)
    columns: list[dict[str, Any]] = []
    for items in given.items:
        sizes = Sizes(items, perturbed(file, items, given.work), file, given.work)
        if not sizes.written.exists():
            sizes.written.write_text(json.dumps(_apart(write, sizes, texts)))
        _apart(compare, sizes)
        columns.append(json.loads(sizes.written.read_text()) | _apart(read, sizes))
        print(json.dumps({"items": items} | columns[-1]), file=sys.stderr)
    names = dict.fromkeys(name for column in columns for name in column)
    print("|", *(f"| {items:,} items" for items in given.items), "|")
    print("|---" * (1 + len(columns)) + "|")
    for name in names:
        print(f"| {name} |", *(f"{_told(column.get(name))} |" for column in columns))
    print()
    sized = [judged(items, column) for items, column in zip(given.items, columns, strict=True)]
    return verdict({name: figure for figures in sized for name, figure in figures.items()})


def _told(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
