"""Which path is better: paired by question, corrected for how many were compared, and said in words."""

from __future__ import annotations

import json

import numpy as np
import pytest

from memory_paths.evaluation.contrasts import Outcomes, adjusted, chances_of_best, contrasts_of


def _asked(share: float, seed: int = 0, questions: int = 200, *, shuffle: bool = False) -> list[tuple[str, int, float]]:
    """The first `share` of the questions are answered rightly, in clusters of four."""
    order = np.random.default_rng(seed).permutation(questions) if shuffle else np.arange(questions)
    return [(f"{seed}/{at}", int(at) // 4, float(order[at] < share * questions)) for at in range(questions)]


def _of(right: list[float] | list[bool]) -> Outcomes:
    return {"0": [(str(at), at, float(value)) for at, value in enumerate(right)]}


def test_paths_are_better_tied_or_underpowered_and_the_words_say_which() -> None:
    same = {name: {"0": _asked(share, questions=800)} for name, share in (("one", 0.9), ("other", 0.9), ("worse", 0.3))}
    found = adjusted([contrasts_of("world", 48, "retention", same)])
    words = {contrast.worse: contrast.words for contrast in found}
    assert words["worse"] == "better"
    assert words["other" if "other" in words else "one"] == "tied"
    few = {"one": {"0": _asked(0.6, questions=12)}, "other": {"0": _asked(0.5, questions=12, shuffle=True)}}
    (contrast,) = adjusted([contrasts_of("world", 12, "retention", few)])
    assert contrast.words == "underpowered"
    assert contrast.minimum_detectable > 0.2
    json.dumps(contrast.to_json(), allow_nan=False)


def test_a_difference_is_paired_by_question() -> None:
    """Ten points of difference on the same questions are certain; on shuffled ones they drown."""
    paired = {"one": {"0": _asked(0.6)}, "other": {"0": _asked(0.5)}}
    apart = {"one": {"0": _asked(0.6, shuffle=True)}, "other": {"0": _asked(0.5)}}
    (close,) = contrasts_of("world", 48, "retention", paired)
    (wide,) = contrasts_of("world", 48, "retention", apart)
    for contrast in (close, wide):
        assert contrast.difference.value == pytest.approx(0.1)
        assert contrast.difference.n == 200
    assert close.p_value < 0.05
    assert close.minimum_detectable < 0.7 * wide.minimum_detectable


def test_seeds_with_questions_of_their_own_count_one_by_one() -> None:
    seeds = range(3)
    paths: dict[str, Outcomes] = {
        "one": {str(seed): _asked(0.9, seed) for seed in seeds},
        "other": {str(seed): _asked(0.8 - 0.05 * seed, seed) for seed in seeds},
    }
    (contrast,) = contrasts_of("world", 48, "retention", paths)
    assert contrast.difference.value == pytest.approx(0.15)
    assert contrast.difference.n == 600
    assert contrast.difference.low is not None
    assert contrast.difference.low == pytest.approx(0.15 - 4.302652730 * 0.05 / np.sqrt(3), abs=1e-6)


def test_the_more_is_compared_the_more_a_difference_must_show() -> None:
    paths = {f"path {number}": {"0": _asked(0.5 + number / 100, shuffle=True, seed=1)} for number in range(5)}
    paths["best"] = {"0": _asked(0.62, shuffle=True, seed=1)}
    found = adjusted([contrasts_of("world", 48, "retention", paths)])
    assert len(found) == 5
    assert all(contrast.better == "best" for contrast in found)
    assert all(contrast.adjusted_p >= contrast.p_value for contrast in found)
    assert any(contrast.adjusted_p > contrast.p_value for contrast in found)


def test_data_that_do_not_vary_are_few_and_not_certain() -> None:
    """Two questions prove nothing, and two seeds that agree on one question of 200 no more."""
    (two,) = adjusted([contrasts_of("w", 2, "retention", {"one": _of([1, 1]), "other": _of([0, 0])})])
    assert two.words == "underpowered"
    same = {"one": _of([1, 0]), "other": _of([1, 0])}
    assert adjusted([contrasts_of("w", 2, "retention", same)])[0].words == "underpowered"
    seeds = {
        "one": {str(seed): _asked(1.0, seed) for seed in range(2)},
        "other": {str(seed): _asked(0.995, seed) for seed in range(2)},
    }
    (close,) = adjusted([contrasts_of("w", 2, "retention", seeds)])
    assert close.difference.value == pytest.approx(0.005)
    assert close.words != "better"


def test_graded_scores_that_vary_are_as_certain_as_they_vary() -> None:
    generator = np.random.default_rng(7)
    low = generator.normal(0.05, 0.02, 18)
    paths = {"one": _of((low + generator.normal(0.25, 0.08, 18)).tolist()), "other": _of(low.tolist())}
    (contrast,) = adjusted([contrasts_of("w", 18, "retention", paths)])
    assert contrast.words == "better"
    assert contrast.minimum_detectable < 0.1


def test_one_graded_answer_among_right_and_wrong_ones_makes_them_no_more_certain() -> None:
    for found, other in (([1, 1, 1], [0.02, 0, 0]), ([1] * 8, [0.99, *[1] * 7])):
        (contrast,) = adjusted([contrasts_of("w", len(found), "retention", {"one": _of(found), "other": _of(other)})])
        assert contrast.words == "underpowered"


def test_among_equals_somebody_is_better_in_one_of_twenty_cases_at_most() -> None:
    generator = np.random.default_rng(4)
    found = 0
    for _ in range(200):
        paths = {f"path {number}": _of((generator.random(200) < 0.6).tolist()) for number in range(8)}
        found += any(contrast.words == "better" for contrast in adjusted([contrasts_of("w", 9, "retention", paths)]))
    assert found / 200 <= 0.08


def test_what_was_not_asked_of_both_cannot_be_compared() -> None:
    assert contrasts_of("world", 48, "prior", {"one": {"0": _asked(0.5)}, "other": {"1": _asked(0.6, 1)}}) == []
    assert contrasts_of("world", 48, "prior", {"one": {"0": _asked(0.5)}, "other": {"0": []}}) == []
    assert adjusted([]) == ()


def test_the_chance_of_being_best_is_shared_by_equals() -> None:
    equal = chances_of_best({"one": {"0": _asked(0.5)}, "other": {"0": _asked(0.5)}}, draws=200)
    assert equal == {"one": 0.5, "other": 0.5}
    clear = chances_of_best({"one": {"0": _asked(0.9)}, "other": {"0": _asked(0.2)}}, draws=200)
    assert clear == {"one": 1.0, "other": 0.0}
    assert chances_of_best({"one": {"0": _asked(0.9)}, "other": {"0": _asked(0.2, 3)}}, draws=200) == {}
