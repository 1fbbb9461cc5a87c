"""A real cross-encoder, made here from MiniLM's weights, puts what a search has found into another order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.bank_figures import train_cross_encoder
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.retrieval.reranking import CrossEncoderReranker
from memory_paths.types import Knowledge, Query, Usage

NAMES = "Ada Bo Cy Dana Eli Fay Gus Hal Ida Jon".split()
TOWNS = "Oslo Rome Bonn Kyiv Lima Bern Riga Baku Doha Suva".split()


def _facts(name: str, town: str) -> list[str]:
    return [f"{name} lives in {town}.", f"{name} works in {town}.", f"{name} was born in {town}."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Trained for seconds to tell homes from workplaces and birthplaces."""
    target = tmp_path_factory.mktemp("reranker") / "cross-encoder"
    groups = [(f"Where is the home of {name}?", _facts(name, town)) for name in NAMES[:8] for town in TOWNS[:8]]
    train_cross_encoder(target, groups, steps=12, batch=8, rate=1e-4)
    return target


def test_a_trained_cross_encoder_puts_the_answer_first(folder: Path) -> None:
    reranker = CrossEncoderReranker(str(folder))
    assert reranker.name == "cross-encoder"
    with Ledger() as ledger:
        plain = Bank(None, ledger, HashEncoder(), top_k=1)
        better = Bank(None, ledger, HashEncoder(), top_k=1, reranker=reranker)
        for name, town in zip(NAMES[8:], TOWNS[8:], strict=True):  # nothing of these was trained
            texts = _facts(name, town)[::-1]
            plain.write([Knowledge(text, text) for text in texts], namespace=name)
            query = Query(f"Where is the home of {name}?", name)
            (before,), (after,) = plain.read([query]), better.read([query])
            assert [one.item.text for one in after.recalls] == [f"{name} lives in {town}."]
            assert after.cost.encoder.tokens > before.cost.encoder.tokens
        assert plain.state_hash() != better.state_hash()
    scores, usage = reranker.score([])
    assert (scores, usage) == ([], Usage())


class ByLength:
    """The shortest text is the best."""

    name = "by length"

    def score(self, pairs: Sequence[tuple[str, str]]) -> tuple[list[float], Usage]:
        return [-float(len(text)) for _, text in pairs], Usage(tokens=len(pairs))


def test_any_reranker_decides_among_more_candidates_than_are_offered() -> None:
    with Ledger() as ledger:
        bank = Bank(None, ledger, HashEncoder(), top_k=2, reranker=ByLength())
        items = [Knowledge(f"{length}", "cat " * length) for length in range(1, 60)]
        bank.write(items, namespace="default")
        (reading,) = bank.search([Query("cat cat cat", "default")])
        assert reading.cost.encoder.tokens == 2 * 16 + bank.encoder.count_tokens(["cat cat cat"])[0]
        lengths = [len(one.item.text) for one in reading.recalls]
        assert lengths == sorted(lengths)
        assert len(lengths) == 2
        for method in ("bm25", "fusion"):
            (reading,) = bank.search([Query("cat", "default")], method=method)  # type: ignore[arg-type]
            assert [one.score for one in reading.recalls] == sorted((o.score for o in reading.recalls), reverse=True)
        with pytest.raises(ValueError, match="both decide on the order"):
            bank.search([Query("cat", "default")], diversity=0.5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "a reranker needs a name"),
        ({"name": "x", "batch_size": 0}, "batch_size must be at least 1"),
    ],
)
def test_a_reranker_that_cannot_be_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CrossEncoderReranker(**options)  # type: ignore[arg-type]


def test_a_folder_without_a_model_is_no_reranker(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is neither the folder of a cross-encoder, nor a hub name"):
        CrossEncoderReranker(str(tmp_path))
