"""A calibrated threshold keeps its promise on new questions, and says when cosines tell nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from _program import run_module

from memory_paths.ledger import Ledger
from memory_paths.retrieval.bank import Bank
from memory_paths.retrieval.calibration import auroc, best_cosines, calibrate, upper_bound
from memory_paths.retrieval.encoder import HashEncoder
from memory_paths.types import Knowledge, Query


def test_the_bound_holds_on_questions_that_were_not_seen() -> None:
    generator = np.random.default_rng(0)
    broken = 0
    for _ in range(300):
        unknown = generator.normal(0.3, 0.1, 120).clip(-1, 1)
        found = calibrate([0.9], unknown.tolist(), false_offers=0.1, confidence=0.9)
        share = (generator.normal(0.3, 0.1, 20_000).clip(-1, 1) >= found.threshold).mean()
        assert found.false_offers <= found.upper <= 0.1
        broken += share > 0.1
    assert broken / 300 <= 0.15, "with confidence .9 one in ten may be over, and a few by chance"


def test_the_threshold_is_the_least_that_keeps_the_bound() -> None:
    unknown = [0.01 * number for number in range(100)]
    found = calibrate([0.97, 0.2, 1.0], unknown, false_offers=0.05, confidence=0.95)
    allowed = max(count for count in range(100) if upper_bound(count, 100, 0.95) <= 0.05)
    assert allowed == 1
    assert found.threshold == pytest.approx(0.98, abs=1e-6)
    assert found.threshold > np.float32(0.98)
    assert (found.false_offers, found.kept, found.known, found.unknown) == (0.01, 1 / 3, 3, 100)


def test_one_sided_bounds_are_those_of_clopper_and_pearson() -> None:
    assert upper_bound(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert upper_bound(1, 10, 0.95) == pytest.approx(0.3942, abs=1e-4)  # of their table
    assert upper_bound(10, 10, 0.95) == 1.0


def test_auroc_is_the_share_of_pairs_in_order() -> None:
    assert auroc([3, 4], [1, 2]) == 1.0
    assert auroc([1, 3], [2, 2]) == 0.5
    assert auroc([2], [2]) == 0.5


@pytest.mark.parametrize(
    ("known", "unknown", "options", "message"),
    [
        ([0.9], [0.1] * 58, {}, "needs at least 59 questions without an answer and one with an answer, got 58 and 1"),
        ([], [0.1] * 59, {}, "got 59 and 0"),
        ([0.9], [0.1] * 59, {"false_offers": 0.0}, r"false_offers must be in \(0, 1\), got 0.0"),
    ],
)
def test_too_few_questions_and_odd_shares_are_refused(
    known: list[float], unknown: list[float], options: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        calibrate(known, unknown, **options)


def test_a_bank_offers_nothing_under_its_calibrated_threshold(tmp_path: Path) -> None:
    file = tmp_path / "ledger.sqlite"
    towns = [f"Town{number}" for number in range(80)]
    items = [Knowledge(town, f"{town} is governed by mayor M{town}.") for town in towns]
    known = [f"who governs {town}" for town in towns]
    unknown = [f"when does train {number} leave" for number in range(60)]
    with Ledger(file) as ledger:
        bank = Bank(None, ledger, HashEncoder())
        bank.write(items, namespace="default")
        cosines = [best_cosines(bank, [Query(text) for text in texts]) for texts in (known, unknown)]
        tuned = calibrate(*cosines)
        strict = Bank(None, ledger, HashEncoder(), threshold=tuned.threshold)
        readings = [strict.read([Query(text, "default") for text in texts]) for texts in (known, unknown)]
        offered = [np.mean([bool(reading.recalls) for reading in each]) for each in readings]
        assert offered[0] == tuned.kept
        assert offered[1] == tuned.false_offers <= 0.05
        with pytest.raises(ValueError, match="calibrate a bank without threshold and reranker"):
            best_cosines(strict, [Query("who")])
    for name, texts in (("known", known), ("unknown", unknown)):
        (tmp_path / name).write_text("".join(json.dumps({"question": text}) + "\n" for text in texts))
    command = ("calibrate", file, "--encoder", "hash", "--known", tmp_path / "known", "--unknown", tmp_path / "unknown")
    done = run_module("memory_paths.retrieval", *command, cwd=tmp_path)
    assert json.loads(done.stdout)["threshold"] == tuned.threshold
    (tmp_path / "known").write_text('{"text": "x"}\n')
    done = run_module("memory_paths.retrieval", *command, cwd=tmp_path, expect=2)
    assert "line 1" in done.stderr
    assert '{"question": ...}' in done.stderr
