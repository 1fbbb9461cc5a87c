"""The definition of continual learning as five numbers and their minimum."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Any

import pytest
from test_report import make_report

from memory_paths.evaluation.desiderata import DESIDERATA, Standing, reads, standings
from memory_paths.evaluation.metrics import Metric, undefined
from memory_paths.evaluation.report import Report
from memory_paths.evaluation.table import render_standings
from memory_paths.streams.shift import reworded, shifted
from memory_paths.streams.world import biographies
from memory_paths.types import Experience, Knowledge, Query, Question, Stream


def _report(path: str, shift: str, seed: int = 0, *, stages: int = 8, tokens: float = 480.0, **values: float) -> Report:
    base = make_report(path, 1.0, seed=seed)
    given = {
        **{"average_accuracy": 1.0, "acquisition": 1.0, "composition": 1.0, "prior_before": 1.0, "prior_after": 1.0},
        **{"skill_before": 1.0, "skill_after": 1.0},
        **values,
    }
    metrics = {**base.metrics, **{name: Metric(value, n=100) for name, value in given.items()}}
    cost = {**base.cost, "write": {"lm": {"tokens": tokens, "flops": 0.0, "seconds": 0.0}}}
    config = {**base.config, "stream": {"shift": shift}, "seeds": {"world": seed}}
    matrix: Any = [[None] * stages for _ in range(stages + 1)]
    return replace(base, metrics=metrics, cost=cost, config=config, matrix=matrix, item_tokens=480)


def _stand(*reports: Report) -> dict[str, Standing]:
    return {standing.path: standing for standing in standings([(report, "") for report in reports])}


ORACLE = [_report("oracle", shift) for shift in ("none", "names", "language")]


def test_each_desideratum_is_measured_against_the_oracle_and_the_least_counts() -> None:
    runs = [
        _report("full", "none", average_accuracy=0.8, prior_after=0.4, skill_after=0.9, composition=0.3, tokens=48_000),
        _report("full", "names", average_accuracy=0.7, prior_after=0.6),
        _report("full", "language", average_accuracy=0.2, prior_after=0.5),
    ]
    limited = [*ORACLE[:2], _report("oracle", "language", average_accuracy=0.4)]
    found = _stand(*runs, *limited)["full"]
    assert {name: metric.value for name, metric in found.desiderata.items()} == pytest.approx(
        {"preserves": 0.4, "sequential": 0.8, "shifted": 0.5, "efficient": 1 - 2 / 3, "composes": 0.3}
    )
    assert found.score.value == pytest.approx(0.3)
    assert [standing.path for standing in standings([(run, "") for run in (*runs, *limited)])] == ["oracle", "full"]


def test_efficiency_is_that_of_the_least_effort_that_is_enough() -> None:
    cheap, dear = (_report("lora", "none", tokens=4800, acquisition=level) for level in (0.5, 0.95))
    dear = replace(dear, cost={**dear.cost, "write": {"lm": {"tokens": 48_000, "flops": 0.0, "seconds": 0.0}}})
    away = [_report("lora", shift) for shift in ("names", "language")]
    assert _stand(cheap, dear, *away, *ORACLE)["lora"].desiderata["efficient"].value == pytest.approx(1 / 3)
    assert _stand(cheap, *away, *ORACLE)["lora"].desiderata["efficient"].value == 0.0


def test_of_a_model_that_does_not_read_choices_are_measured_against_the_untouched_one() -> None:
    """An oracle that answers no more than no memory does says nothing of a path; what was chosen by likelihood does."""

    def unread(path: str, shift: str, choice: float, composed: float = 0.25, after: float = 4.0) -> Report:
        report = _report(path, shift, choice=choice, acquisition_choice=choice, composition_choice=composed)
        perplexity = {"prior_perplexity_before": Metric(4.0), "prior_perplexity_after": Metric(after)}
        blind = {"retention": Metric(0.0, 0.0, 0.05, n=80), "skill_before": undefined("no reading tasks")}
        return replace(report, metrics={**report.metrics, **perplexity, **blind})

    runs = [
        unread(path, shift, *figures)
        for shift in ("none", "names", "language")
        for path, *figures in (("none", 0.25), ("oracle", 0.31), ("full", 0.7, 0.55, 8.0), ("rag", 0.2))
    ]
    found = _stand(*runs)
    assert {name: metric.value for name, metric in found["full"].desiderata.items()} == pytest.approx(
        {"preserves": 0.5, "sequential": 0.6, "shifted": 0.5, "efficient": 0.0, "composes": 0.4}
    )
    assert found["rag"].desiderata["sequential"].value == 0.0, "not below choosing as without it"
    assert found["rag"].judged == "choices"
    assert found["oracle"].desiderata["sequential"].value == pytest.approx(0.08)
    assert "chosen rightly" in render_standings([found["rag"]])
    quick = [run for run in runs if run.path != "full"] + [
        replace(run, metrics={**run.metrics, "acquisition_choice": Metric(0.95)}) for run in runs if run.path == "full"
    ]
    assert _stand(*quick)["full"].desiderata["efficient"].value == 1.0, "right after learning, not in the end"
    without = _stand(*(run for run in runs if run.path != "none" or run.config["stream"]["shift"] == "none"))
    assert "'none' was not run" in without["full"].desiderata["shifted"].reason, "a control that lacks is no figure"


def test_a_model_that_reads_may_not_believe_what_it_reads() -> None:
    """By reading tasks, where there are any: who knows a fact otherwise may answer no more with it in sight."""
    nothing, little = Metric(0.0, 0.0, 0.11, n=30), Metric(0.11, 0.0, 0.24, n=30)
    assert not reads(little, nothing, undefined("no reading tasks"))
    assert reads(little, nothing, Metric(0.98, 0.9, 1.0, n=48))
    assert reads(little, nothing, Metric(0.12, 0.0, 0.4, n=144)), "seeds that differ, and each is right in some"
    assert not reads(Metric(0.5, 0.4, 0.6, n=30), nothing, nothing)
    assert reads(undefined("not run"), nothing, undefined("no reading tasks"))


def test_all_seeds_are_judged_in_one_way_and_each_stream_by_itself() -> None:
    def of(path: str, seed: int, low: float, stream: str = "real") -> list[Report]:
        blind = {"retention": Metric(low, low, low + 0.1, n=80), "skill_before": undefined("no reading tasks")}
        blind["prior_perplexity_before"] = Metric(4.0)
        chosen = dict.fromkeys(("choice", "acquisition_choice", "composition_choice"), Metric(0.5))
        more = {**blind, "prior_perplexity_after": Metric(4.0), **chosen}
        reports = [_report(path, shift, seed) for shift in ("none", "names", "language")]
        return [
            replace(one, stream=f"{stream}-{one.config['stream']['shift']}", metrics={**one.metrics, **more})
            for one in reports
        ]

    runs = [*of("none", 0, 0.0), *of("none", 1, 0.0), *of("oracle", 0, 0.0), *of("oracle", 1, 0.01)]
    runs += [*of("full", 0, 0.0), *of("full", 1, 0.0)]
    assert {one.judged for one in standings([(run, "") for run in runs])} == {"choices"}
    runs += [run for path, low in (("none", 0.0), ("oracle", 0.9), ("full", 0.4)) for run in of(path, 0, low, "other")]
    found = standings([(run, "") for run in runs])
    assert [(one.stream, one.judged) for one in found if one.path == "full"] == [
        ("other", "answers"),
        ("real", "choices"),
    ]
    table = render_standings(found)
    assert table.index("other on embedded, 48 items") < table.index("real on embedded, 48 items")


def test_seeds_give_intervals_and_what_was_not_run_is_null_with_its_reason() -> None:
    runs = [
        _report("rag", shift, seed, average_accuracy=0.8 + 0.05 * seed)
        for shift in ("none", "names", "language")
        for seed in range(3)
    ]
    ceiling = [_report("oracle", shift, seed) for shift in ("none", "names", "language") for seed in range(3)]
    found = _stand(*runs, *ceiling)["rag"]
    sequential = found.desiderata["sequential"]
    assert sequential.value == pytest.approx(0.85)
    assert sequential.low is not None
    assert sequential.low < 0.8
    assert "| rag | 1.0 [" in render_standings([found])
    json.dumps(found.to_json(), allow_nan=False)
    short = [_report("rag", shift, stages=4) for shift in ("none", "names")]
    lacking = _stand(*short, *ORACLE)["rag"]
    assert "fewer than 8" in lacking.desiderata["sequential"].reason
    assert "stream.shift=language" in lacking.desiderata["shifted"].reason
    assert lacking.score.value is None
    assert "a:" not in render_standings([found])
    assert lacking.desiderata["sequential"].reason in render_standings([lacking])
    assert standings([(_report("rag", "none"), "")]) == (), "one shift alone is no suite"
    with pytest.raises(ValueError, match="suite=definition"):
        render_standings(())
    assert set(found.desiderata) == set(DESIDERATA)


def test_a_shifted_stream_tells_the_same_of_others_in_another_language() -> None:
    plain, names, language = (biographies(48, shift=shift) for shift in ("none", "names", "language"))
    for other in (names, language):
        assert other.prior == plain.prior
        assert other.skill == plain.skill
        assert [len(step.questions) for step in other.experiences] == [
            len(step.questions) for step in plain.experiences
        ]
    first, second, third = (stream.experiences[0].items[0] for stream in (plain, names, language))
    assert first.id == second.id == third.id
    person = plain.experiences[0].questions[0].cluster
    assert person in first.text
    assert person not in second.text
    assert person not in third.text
    assert first.text.split()[-1] == second.text.split()[-1] == third.text.split()[-1], "values stay"
    assert set(third.text.split()) - set(second.text.split()), "words do not"
    asked = [question for step in language.experiences for question in step.questions if question.kind == "direct"]
    texts = {item.id: item.text for step in language.experiences for item in step.items}
    assert all(question.targets[0] in texts[question.ids[0]] for question in asked), "questions and items agree"
    again = biographies(48, shift="language")
    assert again == language
    assert biographies(48, shift="language", world_seed=1) != language
    for shift in (shifted, reworded):
        with pytest.raises(ValueError, match="shift must be one of"):
            shift(plain, "cipher")  # type: ignore[arg-type]


def test_any_stream_is_told_in_other_words_of_its_own() -> None:
    """Names by names and small words by small words, the same everywhere, so that answers still follow from items."""
    texts = {"Who founded Ford?": "Ford was founded by Ann Bo.", "Who leads Ypsilon?": "Ypsilon is led by Cy."}
    answers = ("Ann Bo", "Cy")
    items = tuple(Knowledge(f"{number}", text) for number, text in enumerate(texts.values()))
    questions = tuple(
        Question(Query(asked), (answer,), "direct", (item.id,), choices=answers)
        for asked, answer, item in zip(texts, answers, items, strict=True)
    )
    plain = Stream("real", (Experience("all", items, questions),))
    assert reworded(plain, "none") == plain
    names, language = (reworded(plain, shift).experiences[0] for shift in ("names", "language"))
    assert [question.query.text.split()[:2] for question in names.questions] == [["Who", "founded"], ["Who", "leads"]]
    for step in (names, language):
        assert [item.id for item in step.items] == ["0", "1"]
        for item, question in zip(step.items, step.questions, strict=True):
            assert question.targets[0] in item.text
            assert question.targets[0] in question.choices
            assert question.targets[0] not in answers
    words = [re.findall("[A-Za-z]+", step.items[0].text) for step in (plain.experiences[0], names, language)]
    assert [one == other for one, other in zip(*words[:2], strict=True)] == [False, True, True, True, False, False]
    assert not any(one == other for one, other in zip(words[0], words[2], strict=True))
    assert reworded(plain, "language", seed=1) != reworded(plain, "language")


def test_initials_end_no_sentence_and_acronyms_are_no_names() -> None:
    items = (
        Knowledge("1", "The CEO of Ford is George W. Bush.", cue="who leads Ford"),
        Knowledge("2", "The CEO of Sony is Ann Lee. Ypsilon is led by Cy.", cue="who leads Sony"),
        Knowledge("3", "The CEO of Ford is Mr. Lodge.", cue="who leads Ford"),
        Knowledge("4", "The CEO of Sony since 1999. Lives were lost.", cue="who leads Sony"),
    )
    (step,) = reworded(Stream("real", (Experience("all", items),)), "names").experiences
    first, second, third, fourth = (item.text for item in step.items)
    assert first.startswith("The CEO of ")
    assert not first.endswith("Bush."), "a name after an initial is a name"
    assert ". Ypsilon is led by " in second, "what only begins a sentence may be no name"
    assert not third.endswith("Lodge."), "nor is a title the end of a sentence"
    assert fourth.endswith("1999. Lives were lost."), "a number may be"
    for item in step.items:
        assert item.cue.split()[-1] == item.text.split()[3], "what an item is found by is told in the same words"
