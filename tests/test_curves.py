"""Learning against forgetting: curves over efforts, and forgetting where acquisition is equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import make_report

from memory_paths.evaluation.curves import Curve
from memory_paths.evaluation.metrics import Metric
from memory_paths.evaluation.report import Report
from memory_paths.evaluation.summary import Summary, collect, matched_in_words


def _run(path: str, effort: float, acquired: float, prior: float, seed: int, **settings: Any) -> Report:
    report = make_report(path, acquired, prior=prior, seed=seed)
    memory = {"name": path, "budget": {"steps": 40, "effort": effort}, **settings}
    return Report(
        **{
            **vars(report),
            "metrics": {**report.metrics, "acquisition": Metric(acquired, acquired, acquired, 48)},
            "config": {"path": {"memory": memory}, "seeds": {"world": seed}},
        }
    )


def _collected(folder: Path, runs: list[Report]) -> Summary:
    for number, run in enumerate(runs):
        run.write(folder / str(number))
    return collect(folder)


@pytest.fixture
def runs() -> list[Report]:
    """Two paths at two efforts with two seeds: one that loses .1 for an acquisition of .8, and one that loses .4."""
    found = []
    for seed, shift in ((0, 0.0), (1, 0.02)):
        found += [_run("sparse_memory", 1.0, 0.8, -0.1 - shift, seed), _run("sparse_memory", 2.0, 1.0, -0.2, seed)]
        found += [_run("full", 0.5, 0.6, -0.3 - shift, seed), _run("full", 1.0, 0.8, -0.4 - shift, seed)]
    return found


def test_forgetting_is_compared_where_all_have_acquired_the_same(tmp_path: Path, runs: list[Report]) -> None:
    summary = _collected(tmp_path, runs)
    rows = {row["path"]: row for row in summary.to_json()["matched"]}
    assert {row["acquisition"] for row in rows.values()} == {0.8}, "where both were measured"
    assert rows["sparse_memory"]["forgetting"]["value"] == pytest.approx(0.11)
    assert rows["full"]["forgetting"]["value"] == pytest.approx(0.41)
    assert rows["full"]["forgetting"]["low"] < 0.41 < rows["full"]["forgetting"]["high"]
    (told,) = matched_in_words(summary.curves)
    assert told.index("sparse_memory .11") < told.index("full .41")
    page = (summary.write(tmp_path)).read_text()
    assert told.replace("'", "&#39;") in page
    assert "What learning costs, effort by effort" in page


def test_where_the_model_cannot_answer_forgetting_is_compared_at_equal_gain(tmp_path: Path) -> None:
    def unread(path: str, effort: float, gain: float, prior: float, seed: int) -> Report:
        report = _run(path, effort, 0.0, 0.0, seed, weights={"statistics": f"statistics/{seed}"})  # a place
        gains = {"loglikelihood_gain": Metric(gain, gain, gain, 48), "prior_gain": Metric(prior, prior, prior, 50)}
        return Report(**{**vars(report), "metrics": {**report.metrics, **gains}})

    runs = [make_report(control, 0.0) for control in ("none", "oracle")]
    for seed, shift in ((0, 0.0), (1, 0.2)):
        runs += [unread("sparse_memory", 1.0, 0.6, 0.0, seed), unread("sparse_memory", 2.0, 1.4, -0.2 - shift, seed)]
        runs += [unread("full", 1.0, 0.9, -1.0, seed), unread("full", 2.0, 1.9, -2.0 - shift, seed)]
    summary = _collected(tmp_path, runs)
    rows = {row["path"]: row for row in summary.to_json()["matched"]}
    assert {row["loglikelihood_gain"] for row in rows.values()} == {1.0}, "where both were measured"
    assert rows["sparse_memory"]["forgetting"]["value"] == pytest.approx(0.15)
    assert rows["full"]["forgetting"]["value"] == pytest.approx(1.11)
    (told,) = matched_in_words(summary.curves)
    assert "At a gain of 1.0 nats per token" in told
    assert told.index("sparse_memory .15 [") < told.index("full 1.11 [")
    assert told in (summary.write(tmp_path)).read_text()


def test_forgetting_between_two_efforts_is_interpolated_and_beyond_them_undefined() -> None:
    curve = Curve("full", 48, "toy", {"a": ((0.2, 0.0), (0.4, -0.1), (0.8, -0.3))}, (0.5, 1.0, 2.0))
    assert curve.forgetting(0.3).value == pytest.approx(0.05)
    assert curve.forgetting(0.6).value == pytest.approx(0.2)
    assert curve.forgetting(0.81).reason == "it acquires 0.80 at most"
    assert curve.forgetting(0.19).reason == "it acquires 0.20 at least"


def test_forgetting_at_matched_acquisition_is_within_half_a_point_of_a_learner_whose_truth_is_known() -> None:
    """It acquires 1 - exp(-2 effort) and forgets .6 times the square of that; each seed learns a little faster or
    slower, and answers 1,000 questions."""
    generator = np.random.default_rng(0)
    efforts = (0.1, 0.2, 0.35, 0.5, 0.8, 1.2, 2.0)
    points = {}
    for seed in range(5):
        speed = 2.0 * generator.uniform(0.9, 1.1)
        learnt = [1 - np.exp(-speed * effort) for effort in efforts]
        points[str(seed)] = tuple(
            (float(x), float(-0.6 * x * x + generator.normal(0, np.sqrt(0.24 / 1000) / 4))) for x in learnt
        )
    curve = Curve("learner", 48, "toy", points, efforts)
    for level in (0.3, 0.5, 0.7, 0.9):
        found = curve.forgetting(level)
        assert found.value == pytest.approx(0.6 * level**2, abs=0.005)
        assert found.low is not None
        assert found.high is not None
        assert found.low <= 0.6 * level**2 + 0.005
        assert found.high >= 0.6 * level**2 - 0.005
    least, most = curve.reach
    assert curve.forgetting(least - 0.01).value is None
    assert curve.forgetting(most + 0.01).value is None


def test_where_more_effort_acquires_less_the_first_crossing_counts() -> None:
    curve = Curve("lora", 48, "toy", {"a": ((0.1, 0.0), (0.9, -0.2), (0.5, -0.8))}, (0.5, 1.0, 2.0))
    assert curve.forgetting(0.9).value == pytest.approx(0.2)
    assert curve.forgetting(0.5).value == pytest.approx(0.1)


def test_settings_other_than_effort_make_curves_of_their_own_and_broken_sets_are_left_out(
    tmp_path: Path, runs: list[Report]
) -> None:
    other = [_run("full", effort, 0.5, -0.1, 0, rehearsal={"per_step": 16}) for effort in (0.5, 1.0)]
    lonely = [_run("lora", 1.0, 0.9, -0.5, 0)]
    unfinished = [_run("sparse_memory", 1.0, 0.8, -0.1, 2)]  # a seed without its second effort
    unfinished += [_run("sparse_memory", 4.0, 1.0, -0.3, 1)]  # an effort that one seed alone has
    curves = _collected(tmp_path, [*runs, *other, *lonely, *unfinished]).curves
    assert {curve.label for curve in curves} == {"sparse_memory", "full", "full rehearsal.per_step=16"}
    (curve,) = (curve for curve in curves if curve.label == "sparse_memory")
    assert curve.efforts == (1.0, 2.0)
    assert len(curve.points) == 2
