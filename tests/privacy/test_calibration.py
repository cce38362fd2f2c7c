"""Calibrated noise keeps the budget, and a little less noise does not."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from synthkd.errors import ConfigError
from synthkd.privacy.accounting import epsilon
from synthkd.privacy.calibration import noise_for, release_noise_for
from synthkd.privacy.ledger import Ledger, PoissonSteps, Release

DELTA = 1e-5


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("dp_accounting")


def one(*events: PoissonSteps | Release) -> Ledger:
    return Ledger(events)


class TestOneGaussianRelease:
    @pytest.mark.parametrize(("budget", "noise"), [(1.0, 3.731), (3.0, 1.391), (8.0, 0.600)])
    def test_known_constants(self, budget: float, noise: float) -> None:
        assert release_noise_for(budget, DELTA) == pytest.approx(noise, abs=5e-4)

    @settings(deadline=None, max_examples=40)
    @given(st.floats(0.05, 20.0), st.floats(1e-9, 1e-2))
    def test_its_noise_spends_the_budget_and_no_less_keeps_it(self, budget: float, delta: float) -> None:
        noise = release_noise_for(budget, delta)

        def spent(s: float) -> float:
            return float(norm.sf(s * budget - 0.5 / s) - math.exp(budget) * norm.sf(s * budget + 0.5 / s))

        assert spent(noise) <= delta * (1 + 1e-6)
        assert spent(noise * (1 - 1e-5)) > delta

    def test_it_is_the_noise_of_the_library(self, library: Any) -> None:
        for budget in (0.5, 2.0, 30.0):
            assert release_noise_for(budget, DELTA) == pytest.approx(
                library.get_sigma_gaussian(budget, DELTA), rel=1e-6
            )

    @pytest.mark.parametrize("budget", [0.0, -1.0, math.inf])
    def test_budgets_are_positive(self, budget: float) -> None:
        with pytest.raises(ConfigError, match="above 0"):
            release_noise_for(budget, DELTA)

    @pytest.mark.parametrize("delta", [0.0, 1.0])
    def test_deltas_are_probabilities(self, delta: float) -> None:
        with pytest.raises(ConfigError, match="delta must be in"):
            release_noise_for(1.0, delta)


class TestCalibration:
    @pytest.mark.parametrize("budget", [4.178, 2.0])
    def test_noise_keeps_the_budget_and_a_little_less_does_not(self, library: Any, budget: float) -> None:
        noise = noise_for(0.1, 30, budget, DELTA)
        assert budget - 0.02 < epsilon(one(PoissonSteps(0.1, noise, 30)), DELTA).pld <= budget
        if budget == 4.178:
            assert noise == pytest.approx(1.0, abs=2e-3)
