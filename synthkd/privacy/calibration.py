"""The smallest noise multiplier with which DP-SGD, or one Gaussian release, stays within a privacy budget."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from synthkd.errors import ConfigError
from synthkd.privacy.accounting import check_delta, pld_epsilon
from synthkd.privacy.ledger import PoissonSteps
from synthkd.settings import LEAST_NOISE

TOLERANCE = 2.5e-4
"""Largest relative difference between a calibrated noise multiplier and the smallest one that keeps the budget."""
LOG_LEAST, LOG_MOST = math.log(LEAST_NOISE), math.log(1e6)
"""Logarithms of the range of noise multipliers that is searched; with less noise the sums do not fit in memory."""


def noise_for(sample_rate: float, steps: int, epsilon: float, delta: float) -> float:
    """The smallest noise multiplier (at least 0.01, to three digits) that keeps DP-SGD within a budget.

    Neighbouring data sets differ in one added or removed example.

    Args:
        sample_rate: as in `PoissonSteps`.
        steps: number of steps, at least 1.
        epsilon: the budget, above 0; compared with `epsilon(...).pld`.
        delta: in (0, 1).

    Raises:
        ConfigError: a value out of range, or a budget that no noise keeps.
        MissingExtraError: dp-accounting is not installed.
    """

    def excess(log_noise: float) -> float:
        planned = PoissonSteps(sample_rate, math.exp(log_noise), steps)
        return pld_epsilon((planned,), delta, "add_or_remove_one", epsilon) - epsilon

    # The search starts where the central limit theorem for the steps puts the noise (Bu et al. 2020). That is only an
    # approximation, and underestimates epsilon, so the accountant decides the result.
    shift = 1.0 / release_noise_for(epsilon, delta)
    start = -0.5 * math.log(math.log1p(shift * shift / max(sample_rate * sample_rate * steps, 1e-12)))
    return math.exp(_least_log_noise(excess, start, 0.05, TOLERANCE))


def release_noise_for(epsilon: float, delta: float) -> float:
    """The smallest noise multiplier (at least 0.01) of one Gaussian release, exact (Balle and Wang 2018, theorem 8).

    Args:
        epsilon: the budget, finite and above 0.
        delta: in (0, 1).

    Returns:
        Standard deviation over sensitivity; valid under the adjacency of that sensitivity.

    Raises:
        ConfigError: a value out of range.
    """
    check_delta(delta)
    if not 0.0 < epsilon < math.inf:
        raise ConfigError(f"epsilon must be finite and above 0, got {epsilon}; usual budgets are 1 to 8")
    return math.exp(_least_log_noise(lambda x: _log_delta(math.exp(x), epsilon) - math.log(delta), 0.0, 1.0, 1e-9))


def _least_log_noise(excess: Callable[[float], float], start: float, step: float, tolerance: float) -> float:
    """The smallest x >= LOG_LEAST at which a falling function is at most 0, rounded up.

    Args:
        excess: the falling function.
        start: where the search begins.
        step: first step of the search for a bracket; it doubles each time.
        tolerance: largest amount by which x is rounded up.

    Raises:
        ConfigError: the function is above 0 up to LOG_MOST.
    """
    from scipy.optimize import brentq

    excess = lru_cache(excess)  # brentq evaluates both ends of the bracket again, and one evaluation takes seconds
    high = max(start, LOG_LEAST)
    while excess(high) > 0:
        if high > LOG_MOST:
            raise ConfigError("not even a noise multiplier of 1e6 keeps that budget; raise epsilon or take fewer steps")
        high, step = high + step, 2 * step
    low = max(high - step, LOG_LEAST)
    while excess(low) <= 0:
        if low == LOG_LEAST:
            return LOG_LEAST
        high, low, step = low, max(low - step, LOG_LEAST), 2 * step
    root = float(brentq(excess, low, high, xtol=tolerance))
    # The root of brentq may lie just below the true one, where the budget is exceeded.
    while excess(root) > 0:
        root += tolerance
    return root


def _log_delta(noise: float, epsilon: float) -> float:
    """log of `Phi(1 / 2s - eps s) - e^eps Phi(-1 / 2s - eps s)` at noise multiplier s (Balle and Wang 2018)."""
    # In log space, where e^eps does not overflow and Phi does not round to 0.
    from scipy.special import log_ndtr

    first = float(log_ndtr(0.5 / noise - epsilon * noise))
    second = epsilon + float(log_ndtr(-0.5 / noise - epsilon * noise))
    return first + math.log(-math.expm1(second - first)) if second < first else -math.inf
