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
    return -backward_transfer(matrix)


def forward_transfer(matrix: np.ndarray) -> np.ndarray:
    """Mean over all experiences but the first of the score just before learning it minus that of row 0 (GEM, eq. 4)."""
    before = np.diagonal(matrix[..., :-1, :], axis1=-2, axis2=-1)
    return _mean((before - matrix[..., 0, :])[..., 1:])


def _learnt(matrix: np.ndarray) -> np.ndarray:
    return np.diagonal(matrix[..., 1:, :], axis1=-2, axis2=-1)


def _mean(terms: np.ndarray) -> np.ndarray:
    """Mean of the last axis over the terms that are there; NaN where none is."""
    present = np.isfinite(terms)
    count = present.sum(-1)
    total = np.where(present, terms, 0.0).sum(-1)
    mean: np.ndarray = np.divide(total, count, out=np.full(np.shape(count), np.nan), where=count > 0)
    return mean
