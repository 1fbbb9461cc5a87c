"""What an answer is worth in each format, by hand and by sacrebleu, and all formats in one experience."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from _evaluate_slowly import Reader, evaluate

from memory_paths.agent import Agent
from memory_paths.context import InContext
from memory_paths.evaluation import records
from memory_paths.evaluation.evaluator import Evaluator
from memory_paths.evaluation.report import Report
from memory_paths.evaluation.scoring import (
    chrf,
    entity_f1,
    listed_entities,
    mean_probability,
    preferred,
    word_accuracy,
    worth,
    worth_by_likelihood,
)
from memory_paths.ledger import Ledger
from memory_paths.types import Experience, Knowledge, Query, Question, Scoring, Stream

ADA = Knowledge("ada", "Ada lives in Oslo.")


def _question(scoring: Scoring, text: str = "Where lives Ada?", *targets: str, **told: Any) -> Question:
    return Question(
        Query(text, continues=scoring == "likelihood"),
        targets or ("Oslo",),
        "direct",
        ("ada",),
        **told,
        scoring=scoring,
    )


FORMATS = {
    "exact": _question("exact"),
    "entities": _question("entities", "Which towns has Ada?", "Oslo, Bergen"),
    "chrf": _question("chrf", "In Norse: Ada", "Oslo by"),
    "likelihood": _question("likelihood", "The home of Ada", "Oslo"),
    "choice": _question("choice", "Which of them has Ada?", choices=("Turin", "Oslo", "Graz")),
}


@pytest.mark.parametrize(
    ("text", "target", "f1"),
    [
        ("Oslo, Bergen", "Bergen; Oslo", 1.0),
        ("Oslo and Turin", "Oslo, Bergen", 0.5),
        ("Oslo", "Oslo, Bergen, Turin", 2 / 4),
        ("the Oslo.", "Oslo", 1.0),
        ("Oslo, Oslo", "Oslo", 1.0),
        ("none", "none", 1.0),
        ("I do not know", "none", 1.0),
        ("Oslo", "none", 0.0),
        ("", "Oslo", 0.0),
        ("town: Oslo", "person: Oslo", 0.0),
        ("town: Oslo\nperson: Ada Lund", "person: Ada Lund; town: Oslo", 1.0),
    ],
)
def test_entities_are_scored_by_f1_of_the_names_that_are_listed(text: str, target: str, f1: float) -> None:
    assert entity_f1(text, [target]) == pytest.approx(f1, abs=1e-12)
    assert entity_f1(text, ["Nowhere", target]) == pytest.approx(f1, abs=1e-12)


def test_white_space_and_sentence_ends_make_no_names() -> None:
    assert listed_entities(" Oslo ,, . ;Bergen.") == {"oslo", "bergen"}


@pytest.mark.parametrize(
    ("text", "targets"),
    [
        ("The cat sat on the mat.", ["The cat sat on a mat."]),
        ("Ein Mann mit Hut", ["Ein Mann mit einem Hut.", "Mann mit Hut"]),
        ("", ["Oslo"]),
        ("Zwei junge Männer", ["Zwei junge Männer"]),
    ],
)
def test_chrf_is_sacrebleus(text: str, targets: list[str]) -> None:
    from sacrebleu import sentence_chrf

    assert chrf(text, targets) == sentence_chrf(text, targets).score / 100


def test_chrf_by_hand() -> None:
    """ "ab" against "abc": one-grams 2 of 2 and 2 of 3, two-grams 1 of 1 and 1 of 2. sacrebleu averages precision and
    recall over the orders that both have, and the F-score with recall counting 2 squared."""
    precision, recall = (1 + 1) / 2, (2 / 3 + 1 / 2) / 2
    assert chrf("ab", ["abc"]) == pytest.approx(5 * precision * recall / (4 * precision + recall), abs=1e-9)


def test_likelihoods_by_hand() -> None:
    assert mean_probability(math.log(0.25)) == pytest.approx(0.25)
    assert mean_probability(1e-9) == 1.0  # what rounding leaves above 0 is no probability above 1
    assert preferred(["a"], {"a": -1.0, "b": -1.5}) == 1.0
    assert preferred(["a"], {"a": -2.0, "b": -1.5}) == 0.0
    assert preferred(["a"], {"a": -1.0, "b": -1.0, "c": -1.0, "d": -2.0}) == pytest.approx(1 / 3)
    question = _question("choice", "Which?", "a", choices=("b", "a"))
    assert worth_by_likelihood(question, {"a": -3.0, "b": -1.0, "unasked": 0.0}) == 0.0
    assert worth(question, "a") is None


def test_words_of_a_continuation_count_in_their_place() -> None:
    assert word_accuracy("was a warm day and more", "was the cold day") == pytest.approx(2 / 3)  # articles left out
    assert word_accuracy("day cold", "cold day") == 0.0
    assert word_accuracy("cold", "cold day here now") == 0.25


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"scoring": "rouge"}, "scoring must be one of .*chrf.*got 'rouge'"),
        ({"scoring": "chrf", "targets": ()}, "needs a target"),
        ({"scoring": "choice"}, "two choices or more"),
        ({"scoring": "choice", "choices": ("Turin", "Graz")}, "a target among them"),
    ],
)
def test_a_format_that_could_not_be_scored_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Question(Query("Where?"), **{"targets": ("Oslo",), "kind": "direct", **told})


def test_the_format_is_part_of_what_a_question_is_but_plain_ones_keep_their_keys() -> None:
    assert len({_question(scoring, choices=("Oslo", "Graz")).key() for scoring in ("exact", "chrf", "choice")}) == 3
    assert Question(Query("Where lives Ada?"), ("Oslo",), "direct", ("ada",)).key() == "54fe8e6f7074f314"


class Mute:
    """A reader that gives no log-likelihoods."""

    name, window = "mute", 400

    def __init__(self) -> None:
        reader = Reader()
        self.count_tokens, self.generate, self.weights_hash = reader.count_tokens, reader.generate, reader.weights_hash


def _evaluated(folder: Path, lm: Any) -> tuple[Report, list[dict[str, Any]]]:
    ledger = Ledger()
    stream = Stream("formats", (Experience("all", (ADA,), tuple(FORMATS.values())),))
    with Agent(lm, {"icl": InContext(lm, ledger)}, ledger) as agent:
        report = Evaluator(stream, folder=folder, samples=9, progress=False).run(agent)
    return report, records.read_records(folder).to_pylist()


def test_all_formats_go_through_one_experience_and_each_is_worth_what_its_definition_says(tmp_path: Path) -> None:
    report, rows = _evaluated(tmp_path, Reader(window=400))
    worths = {
        (row["stage"], name): row["correct"]
        for row in rows
        for name, question in FORMATS.items()
        if row["key"] == question.key() and row["kind"] == "direct"
    }
    after = {
        "exact": 1.0,
        "entities": 2 / 3,
        "chrf": chrf("Oslo", ["Oslo by"]),
        "likelihood": 0.9,  # what the reader's log-likelihood says, although likelihoods are not asked for
        "choice": 1.0,
    }
    for name, value in after.items():
        assert worths[1, name] == pytest.approx(value, abs=1e-9), name
    assert worths[0, "exact"] == worths[0, "entities"] == 0.0
    assert worths[0, "likelihood"] == pytest.approx(0.05)
    assert worths[0, "choice"] == pytest.approx(1 / 3)  # all alike
    assert report.metrics["acquisition"].value == pytest.approx(sum(after.values()) / 5)
    told = {row["word_accuracy"] for row in rows if row["stage"] == 1 and row["kind"] == "direct"}
    assert told == {None, 1.0}  # of the continuation alone


def test_a_model_without_loglikelihoods_has_a_null_with_its_reason(tmp_path: Path) -> None:
    report, rows = _evaluated(tmp_path, Mute())
    assert report.metrics["retention"].value is None
    assert "mute gives no log-likelihoods" in report.metrics["retention"].reason
    missing = {row["key"] for row in rows if row["correct"] is None}
    assert missing == {FORMATS["likelihood"].key(), FORMATS["choice"].key()}
    assert all(row["answer"] for row in rows if row["correct"] is None)


def test_records_from_when_an_answer_was_right_or_wrong_are_still_read(tmp_path: Path) -> None:
    whole = evaluate(tmp_path)
    for file in (tmp_path / records.RECORDS).glob("answers-*.parquet"):
        table = pyarrow.parquet.read_table(file).drop_columns(["word_accuracy"])
        place = table.schema.get_field_index("correct")
        table = table.set_column(place, "correct", table["correct"].cast(pyarrow.bool_()))
        digest = {records._DIGEST: records._digest(table)}
        pyarrow.parquet.write_table(table.replace_schema_metadata(digest), file)
    assert evaluate(tmp_path).metrics == whole.metrics
    correct = records.read_records(tmp_path)["correct"]
    assert correct.type == pyarrow.float64()
    assert set(correct.to_pylist()) == {0.0, 1.0}
