"""Figures of an accuracy matrix R of shape (..., experiences + 1, experiences), as pure functions of arrays.

Row i stands for "after i experiences" (row 0: before any learning) and column j for experience j + 1; a cell that was
never measured is NaN, and so is a figure that is not defined. Leading axes are matrices of their own, such as redrawn
ones.
"""

from __future__ import annotations

import numpy as np


def average_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Mean over experiences after the last stage, each experience counting once (GEM, eq. 2)."""
    return _mean(matrix[..., -1, :])


def average_incremental_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Mean over stages of the mean over the experiences seen so far."""
    rows = [_mean(matrix[..., stage, :stage]) for stage in range(1, matrix.shape[-2])]
    return _mean(np.stack(rows, axis=-1))


def learning_accuracy(matrix: np.ndarray) -> np.ndarray:
    """Mean over experiences right after learning each. Backward transfer alone can be gained by learning nothing."""
    return _mean(_learnt(matrix))


def backward_transfer(matrix: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the last of what later learning added (GEM, eq. 3); negative is forgetting."""
    return _mean((matrix[..., -1, :] - _learnt(matrix))[..., :-1])


def forgetting(matrix: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the last of first score minus last; maximum minus last would grow with noise."""
    return 0.0 - backward_transfer(matrix)


def forward_transfer(matrix: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the first of the score just before learning it minus that of row 0 (GEM, eq. 4)."""
    return _mean((_before(matrix) - matrix[..., 0, :])[..., 1:])


def forgetting_from_maximum(matrix: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the last of the best score before the last stage minus the last (Chaudhry et al.
    2018, "Riemannian Walk for Incremental Learning"). Noise alone makes it positive: see
    `metrics.forgetting_corrected`."""
    size = matrix.shape[-1]
    after_learning = np.tri(max(0, size - 1), size, dtype=bool)
    scores = matrix[..., 1:-1, :]
    earlier = np.where(after_learning & np.isfinite(scores), scores, -np.inf)
    best = earlier.max(-2, initial=-np.inf)[..., :-1]
    return _mean(np.where(np.isfinite(best), best, np.nan) - matrix[..., -1, :-1])


def plasticity(matrix: np.ndarray) -> np.ndarray:
    """Mean over experiences of what learning each added at once: right after it minus just before it."""
    return _mean(_learnt(matrix) - _before(matrix))


def intransigence(matrix: np.ndarray, joint: np.ndarray) -> np.ndarray:
    """Mean over experiences of what a model that learns all at once reaches minus the score right after learning each
    (Chaudhry et al. 2018); `joint` has the shape (..., experiences), or is one figure for all."""
    return _mean(joint - _learnt(matrix))


def learning_transfer(matrix: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the first of the score right after learning each minus that of a model that learns
    it alone: whether what was learnt before helps to learn. `forward_transfer` asks what it gives without learning.
    `alone` has the shape (..., experiences)."""
    return _mean((_learnt(matrix) - alone)[..., 1:])


def retention_at_age(matrix: np.ndarray, age: int) -> np.ndarray:
    """Mean over experiences of the score after `age` (at least 0) further ones were learnt."""
    return _mean(np.diagonal(matrix[..., 1 + age :, :], axis1=-2, axis2=-1))


def decay(matrix: np.ndarray) -> np.ndarray:
    """The rate at which retention falls with age, in halvings per experience: of the curves a * 2^(-rate * age), the
    one nearest to `retention_at_age` by least squares. At least 0; NaN with fewer than three ages."""
    size = matrix.shape[-1]
    if size < 3:
        return np.full(matrix.shape[:-2], np.nan)
    ages = np.arange(size)
    curve = np.stack([retention_at_age(matrix, age) for age in range(size)], axis=-1)
    measured = np.isfinite(curve)
    values = np.where(measured, curve, 0.0)
    rates = np.concatenate(([0.0], np.geomspace(1e-3, 10.0, 400)))
    shapes = 2.0 ** (-rates[:, None] * ages)
    overlap = np.einsum("...a,ra->...r", values, shapes)
    size_of_shape = np.einsum("...a,ra->...r", measured.astype(float), shapes**2)
    explained = np.divide(overlap**2, size_of_shape, out=np.zeros_like(overlap), where=size_of_shape > 0)
    nearest: np.ndarray = rates[explained.argmax(-1)]
    return np.where((measured.sum(-1) >= 3) & (values.sum(-1) > 0), nearest, np.nan)


def _learnt(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _before(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)


def _mean(terms: np.ndarray) -> np.ndarray:
    """Mean of the last axis over the terms that are there; NaN where none is."""
    present = np.isfinite(terms)
    count = present.sum(-1)
    total = np.where(present, terms, 0.0).sum(-1)
    mean: np.ndarray = np.divide(total, count, out=np.full(np.shape(count), np.nan), where=count > 0)
    return mean
