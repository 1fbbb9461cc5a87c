"""What a bank finds, by method, on seven streams; what a threshold and a reranker make of it.

`python -m memory_paths.retrieval.bank_figures PART` prints Markdown. No language model takes part. The streams are
those of `conf/stream/`; MEMORY_PATHS_DATA says where their files are.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memory_paths.build import build_stream, compose
from memory_paths.evaluation.metrics import recall, reciprocal_rank
from memory_paths.evaluation.plan import Plan
from memory_paths.evaluation.statistics import generator_for, mean_interval, paired_interval, wilson
from memory_paths.ledger import Ledger
from memory_paths.types import Question, Recall, Stream

from .bank import Bank, Method
from .calibration import best_cosines, calibrate
from .encoder import SentenceEncoder, minilm_folder
from .held import candidates
from .reranking import CrossEncoderReranker, reranked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# What its items are: facts of one sentence, passages, or episodes.
STREAMS = {
    "biographies": ("facts", ("stream.facts=20000",)),
    "popqa": ("facts", ()),
    "situatedqa": ("facts", ()),
    "seal_squad": ("passages", ("stream.limit=null", "stream.texts=null")),
    "realtimeqa": ("passages", ()),
    "locomo": ("episodes", ()),
    "reflexion_trajectories": ("episodes", ()),
}
METHODS: tuple[Method, ...] = ("dense", "bm25", "fusion")
SAMPLES = 2_000  # most questions of a stream
DEPTH = 8
FALSE_OFFERS = 0.05


@dataclass(frozen=True)
class Asked:
    """A bank that holds a stream, and what is asked of it: what it can answer, and what it cannot."""

    name: str
    kind: str
    bank: Bank
    items: int
    known: tuple[Question, ...]
    unknown: tuple[Question, ...]


@contextmanager
def asked(name: str, encoder: SentenceEncoder, samples: int = SAMPLES, more: Sequence[str] = ()) -> Iterator[Asked]:
    """A stream, taught whole, and the questions that are open then."""
    kind, options = STREAMS[name]
    stream: Stream = build_stream(compose(f"stream={name}", *options, *more))
    plan = Plan(stream, samples=samples, seed=0)
    questions = [ask.question for ask in plan.asks(plan.stages - 1) if ask.notes is None]
    items = [item for experience in stream.experiences for item in experience.items]
    with Ledger() as ledger:
        bank = Bank(None, ledger, encoder, top_k=DEPTH)
        bank.write(items, namespace="default")
        yield Asked(
            name,
            kind,
            bank,
            len(items),
            tuple(question for question in questions if question.kind == "direct" and question.ids),
            tuple(question for question in questions if question.kind == "unknown"),
        )


def found(bank: Bank, questions: Sequence[Question], **options: Any) -> list[tuple[Recall, ...]]:
    """For each question what the bank offers, best first."""
    queries = [replace(question.query, namespace="default") for question in questions]
    return [reading.recalls for reading in bank.search(queries, **options)]


def ids_of(recalls: Sequence[Recall]) -> list[str]:
    """Their items."""
    return [one.item.id for one in recalls]


MEASURES: dict[str, Callable[[Sequence[str], Sequence[str]], float]] = {
    "recall at 1": lambda ids, ranked: recall(ids, ranked[:1]),
    f"recall at {DEPTH}": recall,
    "reciprocal rank": reciprocal_rank,
}


def methods(encoder: SentenceEncoder, names: Sequence[str]) -> str:
    """A table for each measure: every method on every stream, and how far BM25 and the fusion are from dense."""
    import numpy as np

    heads = ["stream", "kind", "items", "questions", *METHODS, "bm25 - dense", "fusion - dense"]
    rows: dict[str, list[str]] = {measure: [] for measure in MEASURES}
    for name in names:
        with asked(name, encoder) as given:
            clusters = [question.cluster or question.key() for question in given.known]
            vectors = encoder.encode_queries([question.query.text for question in given.known])
            offered = {method: found(given.bank, given.known, method=method, vectors=vectors) for method in METHODS}
            for measure, of in MEASURES.items():
                values = {
                    method: np.array(
                        [of(q.ids, ids_of(ranked)) for q, ranked in zip(given.known, offered[method], strict=True)]
                    )
                    for method in METHODS
                }
                cells = [name, given.kind, f"{given.items}", f"{len(given.known)}"]
                cells += [_mean(values[method], clusters, name, measure, method) for method in METHODS]
                cells += [_difference(values["dense"], values[other], clusters, name) for other in METHODS[1:]]
                rows[measure].append(f"| {' | '.join(cells)} |")
    return "\n\n".join(
        "\n".join([f"{measure[0].upper()}{measure[1:]}:\n", *_head(heads), *lines]) for measure, lines in rows.items()
    )


def thresholds(encoder: SentenceEncoder, names: Sequence[str]) -> str:
    """What a threshold does that was calibrated on one half of the questions, on the other half."""
    heads = ["stream", "AUROC", "threshold", "questions without an answer", "of them offered nothing"]
    heads += ["questions with an answer", "good notes found", "of them lost"]
    lines = _head(heads)
    for name in names:
        with asked(name, encoder) as given:
            if not given.unknown:
                continue
            known, unknown = halves(given.known), halves(given.unknown)
            cosines = [best_cosines(given.bank, [q.query for q in part]) for part in (*known, *unknown)]
            tuned = calibrate(cosines[0], cosines[2], false_offers=FALSE_OFFERS)
            held_out = calibrate(cosines[1], cosines[3], false_offers=FALSE_OFFERS)
            good = [
                max((one.score for one in recalls if one.item.id in question.ids), default=None)
                for question, recalls in zip(known[1], found(given.bank, known[1]), strict=True)
            ]
            before = sum(cosine is not None for cosine in good)
            after = sum(cosine is not None and cosine >= tuned.threshold for cosine in good)
            silent = sum(cosine < tuned.threshold for cosine in cosines[3])
            cells = [name, f"{held_out.auroc:.2f}", f"{tuned.threshold:.3f}", f"{len(unknown[1])}"]
            cells += [_share(silent, len(unknown[1])), f"{len(known[1])}", f"{before}", _share(before - after, before)]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def rerankers(encoder: SentenceEncoder, names: Sequence[str], *, taught: str, steps: int, samples: int) -> str:
    """What a small cross-encoder, trained on one half of one stream's questions, makes of dense search on the other
    half of that stream and of all others."""
    import numpy as np

    heads = ["stream", "questions", "dense at 1", "reranked at 1", "difference", f"dense at {DEPTH}"]
    heads += [f"reranked at {DEPTH}", "difference"]
    lines = _head(heads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "cross-encoder"
        with asked(taught, encoder) as given:
            train_cross_encoder(folder, groups_of(given.bank, halves(given.known)[0]), steps=steps)
        reranker = CrossEncoderReranker(str(folder))
        for name in names:
            with asked(name, encoder) as given:
                told = halves(given.known)[1][:samples]
                clusters = [question.cluster or question.key() for question in told]
                offered = found(given.bank, told, top_k=candidates(DEPTH))
                before = [ids_of(recalls) for recalls in offered]
                after = [
                    ids_of(reranked(reranker, question.query.text, recalls, DEPTH)[0])
                    for question, recalls in zip(told, offered, strict=True)
                ]
                cells = [name, f"{len(told)}"]
                for depth in (1, DEPTH):
                    first, second = (
                        np.array([recall(q.ids, ids[:depth]) for q, ids in zip(told, ranked, strict=True)])
                        for ranked in (before, after)
                    )
                    cells += [_mean(values, clusters, name, str(depth)) for values in (first, second)]
                    cells.append(_difference(first, second, clusters, name))
                lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def halves(questions: Sequence[Question]) -> tuple[list[Question], list[Question]]:
    """To tune on and to tell of; all questions about one thing are in one half."""
    sides: tuple[list[Question], list[Question]] = ([], [])
    for question in questions:
        subject = question.cluster or question.query.text
        sides[hashlib.sha256(subject.encode()).digest()[0] % 2].append(question)
    return sides


def groups_of(bank: Bank, questions: Sequence[Question], others: int = 3) -> list[tuple[str, list[str]]]:
    """For each question the text of an item that it is about, and texts of others that dense search offers first."""
    texts = {item.id: item.text for item in bank.items("default")}
    groups = []
    for question, recalls in zip(questions, found(bank, questions), strict=True):
        wrong = [one.item.text for one in recalls if one.item.id not in question.ids][:others]
        if question.ids[0] in texts and len(wrong) == others:
            groups.append((question.query.text, [texts[question.ids[0]], *wrong]))
    return groups


def train_cross_encoder(
    folder: Path,
    groups: Sequence[tuple[str, Sequence[str]]],
    *,
    steps: int,
    batch: int = 8,
    rate: float = 5e-5,
    max_tokens: int = 128,
    seed: int = 0,
) -> None:
    """A cross-encoder from MiniLM's weights and a new head, trained to score the first text of each group above the
    others (cross-entropy over the group), written into a folder."""
    import random

    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    generator = random.Random(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=1)
        tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
        optimiser = torch.optim.AdamW(model.parameters(), lr=rate)
        model.train()
        for step in range(steps):
            drawn = generator.sample(list(groups), min(batch, len(groups)))
            pairs = [(question, text) for question, texts in drawn for text in texts]
            read = tokenizer(
                *map(list, zip(*pairs, strict=True)),
                truncation=True,
                max_length=max_tokens,
                padding=True,
                return_tensors="pt",
            )
            scores = model(**read).logits.view(len(drawn), -1)
            loss = torch.nn.functional.cross_entropy(scores, torch.zeros(len(drawn), dtype=torch.long))
            optimiser.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / 10) * (1 - step / steps)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    model.eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _head(heads: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]


def _mean(values: NDArray[np.float64], clusters: Sequence[str], *seed: str) -> str:
    interval = mean_interval(values, clusters, generator=generator_for(*seed))
    return f"{values.mean():.3f} [{interval.low:.3f} {interval.high:.3f}]"


def _difference(first: NDArray[np.float64], second: NDArray[np.float64], clusters: Sequence[str], *seed: str) -> str:
    interval = paired_interval(first, second, clusters, generator=generator_for(*seed))
    return f"{(second - first).mean():+.3f} [{interval.low:+.3f} {interval.high:+.3f}]"


def _share(part: int, whole: int) -> str:
    if not whole:
        return "-"
    interval = wilson(part / whole, whole)
    return f"{part / whole:.3f} [{interval.low:.3f} {interval.high:.3f}]"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print one part of the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("part", choices=("methods", "thresholds", "rerankers"))
    parser.add_argument("--streams", nargs="+", choices=list(STREAMS), default=list(STREAMS))
    parser.add_argument("--taught", choices=list(STREAMS), default="realtimeqa", help="what a reranker is trained on")
    parser.add_argument("--steps", type=int, default=120, help="of that training, of 8 questions each")
    parser.add_argument("--samples", type=int, default=100, help="most questions of a stream that are reranked")
    given = parser.parse_args(arguments)
    encoder = SentenceEncoder()
    if given.part == "methods":
        print(methods(encoder, given.streams))
    elif given.part == "thresholds":
        print(thresholds(encoder, given.streams))
    else:
        print(rerankers(encoder, given.streams, taught=given.taught, steps=given.steps, samples=given.samples))


if __name__ == "__main__":
    main()
