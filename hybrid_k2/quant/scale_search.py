"""The search for scales when weights are quantised offline, compiled by numba.

A scale that maps a group's extreme to the last code is rarely the best one: a slightly smaller or
larger one, refitted by least squares, lowers the error by a tenth or more. Knows no format's
layout.
"""

from __future__ import annotations

import numpy as np
from numba import njit

NUM_STEPS = 21


@njit(cache=True, nogil=True)
def search_affine(groups: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima with w ~ scale * q - min, q in 0..top.

    groups: float32 [N, G, n]. Returns two of float32 [N, G], both >= 0. The error counts a weight
    by its size, as large weights matter more, plus the group's mean size, so that none is ignored.
    """
    num_blocks, num_groups, _ = groups.shape
    scales = np.zeros((num_blocks, num_groups), np.float32)
    mins = np.zeros((num_blocks, num_groups), np.float32)
    for block in range(num_blocks):
        for group in range(num_groups):
            x = groups[block, group]
            importance = np.abs(x) + np.sqrt(np.mean(x * x))
            low, high = min(x.min(), np.float32(0)), x.max()
            mins[block, group] = -low
            if high <= low:
                continue
            best = np.inf
            for step in range(NUM_STEPS):
                inverse = (top - 1 + 0.1 * step) / (high - low)
                scale, offset = _fit(x, importance, low, inverse, top)
                error = 0.0
                for i in range(len(x)):
                    code = min(max(np.rint(inverse * (x[i] - low)), 0), top)
                    error += importance[i] * (scale * code + offset - x[i]) ** 2
                if error < best:
                    best = error
                    scales[block, group], mins[block, group] = scale, -offset
    return scales, mins


@njit(cache=True, nogil=True)
def _fit(
    x: np.ndarray, importance: np.ndarray, low: float, inverse: float, top: int
) -> tuple[float, float]:
    """Weighted least squares of x ~ scale * q + offset with offset <= 0, for given codes."""
    sum_w, sum_q, sum_qq, sum_x, sum_xq = 0.0, 0.0, 0.0, 0.0, 0.0
    for i in range(len(x)):
        code = min(max(np.rint(inverse * (x[i] - low)), 0), top)
        w = importance[i]
        sum_w += w
        sum_q += w * code
        sum_qq += w * code * code
        sum_x += w * x[i]
        sum_xq += w * x[i] * code
    determinant = sum_w * sum_qq - sum_q * sum_q
    if determinant <= 0:
        return 1 / inverse, low
    scale = (sum_w * sum_xq - sum_q * sum_x) / determinant
    offset = (sum_qq * sum_x - sum_q * sum_xq) / determinant
    if offset > 0:
        return max(sum_xq / sum_qq, 0.0), 0.0
    return max(scale, 0.0), offset


@njit(cache=True, nogil=True)
def affine_codes(groups: np.ndarray, scales: np.ndarray, mins: np.ndarray, top: int) -> np.ndarray:
    """The nearest code 0..top of every weight for stored scales and minima: uint8, as `groups`."""
    codes = np.zeros(groups.shape, np.uint8)
    for block in range(groups.shape[0]):
        for group in range(groups.shape[1]):
            scale, low = scales[block, group], mins[block, group]
            if scale > 0:
                for i in range(groups.shape[2]):
                    code = np.rint((groups[block, group, i] + low) / scale)
                    codes[block, group, i] = min(max(code, 0), top)
    return codes


@njit(cache=True, nogil=True)
def search_symmetric(groups: np.ndarray, half: int) -> np.ndarray:
    """Signed scales with w ~ scale * q, q in -half..half-1: float32 [N, G] for groups [N, G, n].

    The largest weight may use -half, the code that the other side lacks, hence the sign. The error
    counts a weight by its square.
    """
    num_blocks, num_groups, _ = groups.shape
    scales = np.zeros((num_blocks, num_groups), np.float32)
    for block in range(num_blocks):
        for group in range(num_groups):
            x = groups[block, group]
            extreme = x[np.argmax(np.abs(x))]
            if extreme == 0:
                continue
            best = -1.0
            for step in range(NUM_STEPS):
                inverse = -(half - 1 + 0.1 * step) / extreme
                sum_xq, sum_qq = 0.0, 0.0
                for i in range(len(x)):
                    code = min(max(np.rint(inverse * x[i]), -half), half - 1)
                    sum_xq += x[i] * x[i] * x[i] * code
                    sum_qq += x[i] * x[i] * code * code
                # What a least squares fit explains; the rest of the error is the same for all.
                if sum_qq > 0 and sum_xq * sum_xq / sum_qq > best:
                    best = sum_xq * sum_xq / sum_qq
                    scales[block, group] = sum_xq / sum_qq
    return scales


@njit(cache=True, nogil=True)
def symmetric_codes(groups: np.ndarray, scales: np.ndarray, half: int) -> np.ndarray:
    """The nearest code of every weight for stored scales, plus `half`: uint8, as `groups`."""
    codes = np.full(groups.shape, half, np.uint8)
    for block in range(groups.shape[0]):
        for group in range(groups.shape[1]):
            scale = scales[block, group]
            if scale != 0:
                for i in range(groups.shape[2]):
                    code = np.rint(groups[block, group, i] / scale)
                    codes[block, group, i] = min(max(code, -half), half - 1) + half
    return codes
