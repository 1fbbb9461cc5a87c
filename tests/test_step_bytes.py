"""What steps of sparse memory allocate: room for the rows that they change, and counters of the slots."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from conftest import make_setting, peak_bytes, plain_aim

from memory_paths.lm import CausalLM
from memory_paths.parametric.memory_rows import MemoryRows
from memory_paths.parametric.weights import Gradient
from memory_paths.types import Phrasing

TEXTS = [Phrasing(f"Number {number} lives in a house of its own.") for number in range(8)]
ROWS, WIDTH = 48, 32


@pytest.mark.parametrize(
    ("options", "moments"),
    [({}, 0), ({"momentum": 0.9}, 1), ({"optimiser": "adam", "rate": 1e-3}, 2)],
    ids=["sgd", "momentum", "adam"],
)
def test_gradient_and_moments_are_of_the_rows_that_are_moved_and_counters_are_of_the_slots(
    make_tiny_lm: Callable[..., CausalLM], options: dict[str, Any], moments: int
) -> None:
    """Of the slots: four bytes for counts and then for places in the gradient, which are a step's, two for how many
    background batches read them, one for what was moved: seven, where eight are the limit. Room for moments and their
    places is of all rows that were ever moved, and grows by doubling."""
    lm, weights = make_tiny_lm(), MemoryRows(rows=ROWS, half_keys=64, **options)
    weights.fit(lm)
    weights.prepare(lm, TEXTS)
    batches = [make_setting(lm, weights).batch(texts) for texts in (TEXTS[:4], TEXTS[4:])]
    gradients: list[int] = []

    def seen(found: Sequence[Gradient]) -> None:
        gradients.append(sum(one.values.nbytes for one in found))

    slots, row = 64**2, WIDTH * 4
    with weights.applied(lm.module), weights.training(lm.module) as trainer:
        (originals,) = weights._originals.values()
        (kept,), (recorder,) = trainer._moments.values(), trainer._recorders.values()  # type: ignore[attr-defined]
        for number, batch in enumerate(batches, start=1):
            trainer.step([plain_aim(lm.module, batch)], seen)
            moved = int(originals.seen.sum())
            assert ROWS * (number > 1) < moved <= number * ROWS
            assert moments * moved * row <= kept._store.nbytes <= moments * 2 * moved * row
            assert kept._steps.nbytes == (8 * len(kept._steps) if moments else 0)
            assert kept._place.nbytes == kept._rows.nbytes == (8 * moved if moments else 0)
    assert gradients == [ROWS * row] * 2
    (background,) = weights._background.values()
    counters = [
        tensor
        for part in (recorder, originals, background)
        for tensor in vars(part).values()
        if isinstance(tensor, torch.Tensor) and len(tensor) == slots and tensor.ndim == 1
    ]
    assert recorder.count().data_ptr() in {tensor.data_ptr() for tensor in counters}
    assert sorted(tensor.nbytes for tensor in counters) == [slots, 2 * slots, 4 * slots]


def test_a_larger_table_adds_to_the_peak_of_a_step_not_one_byte_a_slot(make_tiny_lm: Callable[..., CausalLM]) -> None:
    """Counts, scores and their parts are of the slots that were read, or were there before the step. The text is short,
    lest the scores of its keys, of which there are the square root of the slots, be the peak."""
    peaks = {}
    for half_keys in (64, 512):
        lm, weights = make_tiny_lm(), MemoryRows(rows=ROWS, half_keys=half_keys)
        weights.fit(lm)
        weights.prepare(lm, TEXTS)
        batch = make_setting(lm, weights).batch([Phrasing("It is.")])
        with weights.applied(lm.module), weights.training(lm.module) as trainer:
            trainer.step([plain_aim(lm.module, batch)])
            with torch.profiler.profile(profile_memory=True) as profile:
                trainer.step([plain_aim(lm.module, batch)])
        peaks[half_keys] = peak_bytes(profile)
    assert peaks[512] - peaks[64] < 512**2, peaks
