"""Epsilon agrees with closed forms, with Opacus and between its own parts; no accounting claims less than was spent."""

import json
import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import norm

from synthkd.errors import CheckpointError, ConfigError, MissingExtraError
from synthkd.privacy.accounting import (
    Adjacency,
    Ledger,
    PoissonSteps,
    Release,
    check_delta,
    claimed,
    epsilon,
    noise_for,
    release_noise_for,
    without_amplification,
)

DELTA = 1e-5
RUN = PoissonSteps(sample_rate=0.1, noise_multiplier=1.0, steps=30)
"""Three epochs of batches of a tenth."""
BOTH: tuple[Adjacency, Adjacency] = ("add_or_remove_one", "replace_one")


@pytest.fixture(scope="module")
def library() -> Any:
    return pytest.importorskip("dp_accounting")


def one(*events: PoissonSteps | Release) -> Ledger:
    return Ledger(events)


def smallest(delta_of: Callable[[float], float]) -> float:
    """The epsilon at which a falling delta(epsilon) passes DELTA."""
    return float(brentq(lambda e: math.log(max(delta_of(e), 1e-300) / DELTA), 1e-9, 200.0, xtol=1e-10))


def hockey_stick(upper: tuple[float, float, float], lower: tuple[float, float, float], e: float) -> float:
    """`sup_S P(S) - e^eps Q(S)` of mixtures (q, mean, deviation): `(1 - q) N(0, s) + q N(mean, s)`, with one threshold.

    The ratio of the two must rise in x.
    """

    def log_density(of: tuple[float, float, float], x: float) -> float:
        q, mean, s = of
        parts = [math.log(p) + norm.logpdf(x, m, s) for p, m in ((1 - q, 0.0), (q, mean)) if p > 0]
        top = max(parts)
        return float(top + math.log(sum(math.exp(part - top) for part in parts)))

    def above(of: tuple[float, float, float], x: float) -> float:
        q, mean, s = of
        return float((1 - q) * norm.sf(x, 0.0, s) + q * norm.sf(x, mean, s))

    def loss(x: float) -> float:
        return log_density(upper, x) - log_density(lower, x) - e

    if loss(60.0) <= 0:
        return 0.0
    if loss(-60.0) >= 0:
        return above(upper, -60.0) - math.exp(e) * above(lower, -60.0)
    threshold = float(brentq(loss, -60.0, 60.0, xtol=1e-12))
    return above(upper, threshold) - math.exp(e) * above(lower, threshold)


def one_step(q: float, s: float, adjacency: Adjacency) -> float:
    """Epsilon of one step of DP-SGD from the densities of a gradient's sum in the worst direction."""
    if adjacency == "replace_one":
        return smallest(lambda e: hockey_stick((q, 1.0, s), (q, -1.0, s), e))
    removed = smallest(lambda e: hockey_stick((q, 1.0, s), (0.0, 0.0, s), e))
    added = smallest(lambda e: hockey_stick((0.0, 0.0, s), (q, -1.0, s), e))
    return max(removed, added)


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

    @pytest.mark.parametrize("adjacency", BOTH)
    def test_noise_over_sensitivity_means_the_same_under_either_adjacency(
        self, library: Any, adjacency: Adjacency
    ) -> None:
        found = epsilon(one(Release(1.391, adjacency)), DELTA, adjacency)
        exact = smallest(lambda e: hockey_stick((1.0, 1.0, 1.391), (0.0, 0.0, 1.391), e))
        assert exact <= found.pld <= exact + 1e-3
        assert found.rdp is not None
        assert found.pld < found.rdp < 1.1 * found.pld

    def test_removing_and_adding_one_is_replacing_one_and_not_the_reverse(self, library: Any) -> None:
        halved = epsilon(one(Release(2.0, "add_or_remove_one")), DELTA, "replace_one")
        assert halved.pld == pytest.approx(epsilon(one(Release(1.0)), DELTA, "replace_one").pld, abs=1e-9)
        assert halved.rdp == pytest.approx(epsilon(one(Release(1.0)), DELTA, "replace_one").rdp, abs=1e-9)
        with pytest.raises(ConfigError, match="ask for the epsilon under replace_one"):
            epsilon(one(Release(2.0, "replace_one")), DELTA, "add_or_remove_one")


class TestSteps:
    @pytest.mark.parametrize("adjacency", BOTH)
    @pytest.mark.parametrize(("rate", "noise"), [(0.1, 0.7), (0.5, 1.2), (1.0, 2.0)])
    def test_one_step_in_closed_form(self, library: Any, adjacency: Adjacency, rate: float, noise: float) -> None:
        found = epsilon(one(PoissonSteps(rate, noise, 1)), DELTA, adjacency)
        exact = one_step(rate, noise, adjacency)
        assert exact - 1e-7 <= found.pld <= exact + 2e-3

    def test_known_constants(self, library: Any) -> None:
        added = epsilon(one(RUN), DELTA)
        assert added.pld == pytest.approx(4.178, abs=5e-4)
        assert added.rdp == pytest.approx(4.848, abs=5e-4)
        replaced = epsilon(one(RUN), DELTA, "replace_one")
        assert replaced.pld == pytest.approx(5.550, abs=5e-4)
        assert replaced.rdp is None
        assert str(added).startswith("epsilon=4.178, delta=1e-05 (add_or_remove_one, dp-accounting")

    def test_shuffled_batches_have_no_amplification(self, library: Any) -> None:
        shuffled = without_amplification(1.0, 30, 60, 600)
        assert shuffled.events == (Release(1.0, "add_or_remove_one"),) * 3
        assert epsilon(shuffled, DELTA).pld == pytest.approx(8.385, abs=1e-3)
        assert len(without_amplification(1.0, 31, 60, 600).events) == 4, "some were in four batches"
        assert without_amplification(1.0, 0, 60, 600) == Ledger()
        with pytest.raises(ConfigError, match="batch_size <= examples"):
            without_amplification(1.0, 3, 601, 600)

    def test_accountants_of_opacus_agree(self, library: Any) -> None:
        accountants: Any = pytest.importorskip("opacus.accountants")
        found = epsilon(one(RUN), DELTA)
        values = []
        for kind in (accountants.RDPAccountant, accountants.PRVAccountant):
            accountant = kind()
            accountant.history = [(RUN.noise_multiplier, RUN.sample_rate, RUN.steps)]
            values.append(accountant.get_epsilon(DELTA))
        assert found.rdp == pytest.approx(values[0], rel=1e-3)
        assert found.pld <= values[1] == pytest.approx(found.pld, abs=0.02)

    def test_more_noise_costs_less_and_more_steps_or_larger_batches_cost_more(self, library: Any) -> None:
        def spent(rate: float = 0.02, noise: float = 0.9, steps: int = 200) -> float:
            return epsilon(one(PoissonSteps(rate, noise, steps)), DELTA).pld

        assert spent(noise=1.0) < spent() < spent(steps=220)
        assert spent() < spent(rate=0.022)
        assert spent() < epsilon(one(PoissonSteps(0.02, 0.9, 200)), DELTA / 10).pld

    def test_the_library_is_kept_quiet_and_left_as_it_was(
        self, library: Any, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        epsilon(one(PoissonSteps(0.3, 0.6, 10)), DELTA)
        assert "".join(capfd.readouterr()) == ""
        assert caplog.records == []
        assert not logging.getLogger("absl").disabled


class TestLedger:
    def test_nothing_costs_nothing_and_no_noise_costs_everything(self, library: Any) -> None:
        for idle in (Ledger(), one(PoissonSteps(0.1, 0.0, 0)), one(PoissonSteps(0.0, 0.0, 9))):
            assert (epsilon(idle, DELTA).pld, epsilon(idle, DELTA).rdp) == (0.0, 0.0)
        for bare in (Release(0.0), PoissonSteps(0.1, 0.0, 1)):
            assert epsilon(one(bare, Release(3.0)), DELTA, "replace_one").pld == math.inf

    def test_halves_are_as_much_as_the_whole(self, library: Any) -> None:
        half = one(PoissonSteps(0.1, 1.0, 15))
        assert half + half == one(RUN)
        apart = epsilon(one(*half.events, *half.events), DELTA).pld
        assert apart == pytest.approx(epsilon(one(RUN), DELTA).pld, abs=2e-3)
        assert epsilon(half, DELTA).pld < apart < 2 * epsilon(half, DELTA).pld

    def test_two_gaussian_releases_are_one_with_less_noise(self, library: Any) -> None:
        together = one(Release(3.0)) + one(Release(4.0))
        alone = one(Release((3.0**-2 + 4.0**-2) ** -0.5))
        assert len(together.events) == 2
        for figure in ("pld", "rdp"):
            values = [getattr(epsilon(ledger, DELTA, "replace_one"), figure) for ledger in (together, alone)]
            assert values[0] == pytest.approx(values[1], abs=2e-3)

    def test_adding_keeps_every_event_that_differs(self) -> None:
        first, second = one(RUN, Release(2.0)), one(PoissonSteps(0.1, 1.1, 5), Release(2.0), RUN)
        counted = (PoissonSteps(0.1, 1.0, 60), PoissonSteps(0.1, 1.1, 5), Release(2.0), Release(2.0))
        assert (first + second).events == counted
        assert sum([first, second], Ledger()).events == counted

    def test_it_goes_through_json(self) -> None:
        ledger = one(RUN, Release(2.5), Release(1.0, "add_or_remove_one"))
        stored = json.loads(json.dumps(ledger.to_json()))
        assert stored[0] == {"event": "poisson_steps", "sample_rate": 0.1, "noise_multiplier": 1.0, "steps": 30}
        assert Ledger.from_json(stored) == ledger

    @pytest.mark.parametrize(
        "stored",
        [
            [{"event": "laplace", "noise_multiplier": 1.0}],
            [{"event": "release"}],
            [{"event": "release", "noise_multiplier": -1.0}],
            [{"event": "release", "noise_multiplier": 1.0, "adjacency": "person"}],
            [{"event": "poisson_steps", "sample_rate": 1.5, "noise_multiplier": 1.0, "steps": 1}],
            ["release"],
            [{"noise_multiplier": 1.0}],
        ],
    )
    def test_a_damaged_one_is_refused(self, stored: Any) -> None:
        with pytest.raises(CheckpointError, match="nothing can be claimed"):
            Ledger.from_json(stored)

    def test_impossible_events_are_refused(self) -> None:
        for rate, noise, steps in ((1.1, 1.0, 1), (-0.1, 1.0, 1), (0.1, -1.0, 1), (0.1, math.nan, 1), (0.1, 1.0, -1)):
            with pytest.raises(ConfigError):
                PoissonSteps(rate, noise, steps)
        with pytest.raises(ConfigError, match="0 means no noise"):
            Release(math.inf)


class TestCalibration:
    @pytest.mark.parametrize(("adjacency", "budget"), [("add_or_remove_one", 4.178), ("replace_one", 2.0)])
    def test_noise_keeps_the_budget_and_a_little_less_does_not(
        self, library: Any, adjacency: Adjacency, budget: float
    ) -> None:
        noise = noise_for(0.1, 30, budget, DELTA, adjacency)
        assert budget - 0.02 < epsilon(one(PoissonSteps(0.1, noise, 30)), DELTA, adjacency).pld <= budget
        if budget == 4.178:
            assert noise == pytest.approx(1.0, abs=2e-3)

    def test_what_is_spent_elsewhere_is_counted(self, library: Any) -> None:
        other = one(Release(2.0))
        noise = noise_for(0.1, 5, 3.0, DELTA, "replace_one", beside=other)
        assert epsilon(one(PoissonSteps(0.1, noise, 5)), DELTA, "replace_one").pld < 2.7
        assert 2.97 < epsilon(other + one(PoissonSteps(0.1, noise, 5)), DELTA, "replace_one").pld <= 3.0
        with pytest.raises(ConfigError, match=r"epsilon 1 is spent: the other releases cost 1\.9"):
            noise_for(0.1, 5, 1.0, DELTA, "replace_one", beside=other)

    @pytest.mark.parametrize("budget", [0.0, -1.0, math.inf])
    def test_budgets_are_positive(self, budget: float) -> None:
        with pytest.raises(ConfigError, match="above 0"):
            release_noise_for(budget, DELTA)

    @pytest.mark.parametrize("delta", [0.0, 1.0])
    def test_deltas_are_probabilities(self, delta: float) -> None:
        with pytest.raises(ConfigError, match="delta must be in"):
            release_noise_for(1.0, delta)
        with pytest.raises(ConfigError, match="delta must be in"):
            epsilon(Ledger(), delta)

    def test_delta_is_below_one_over_the_examples(self) -> None:
        check_delta(1e-5, 60_000)
        with pytest.raises(ConfigError, match=r"below 1 / 60000 \(examples\), got 2e-05; take 1e-06"):
            check_delta(2e-5, 60_000)
        with pytest.raises(ConfigError, match=r"take 0\.001"):
            check_delta(0.0, 400)


@pytest.mark.usefixtures("library")
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_claim_has_no_figure_that_is_infinite_or_has_no_formula(noise: float) -> None:
    ledger = one(PoissonSteps(0.1, noise, 30))
    spent = epsilon(ledger, DELTA, "replace_one")
    claim = claimed(ledger, spent, 500, insecure=True, noise_multiplier=noise, clip=2.0)
    assert json.loads(json.dumps(claim, allow_nan=False)) == {
        "insecure": True,
        "epsilon": spent.pld if noise else None,
        "epsilon_rdp": None,
        "delta": DELTA,
        "adjacency": "replace_one",
        "unit": "image",
        "examples": 500,
        "noise_multiplier": noise,
        "clip": 2.0,
        "accountant": f"dp-accounting {spent.version}, privacy loss distributions",
        "ledger": ledger.to_json(),
    }
    unbounded = claimed(ledger, epsilon(ledger, DELTA), 500, insecure=False)
    assert (unbounded["epsilon_rdp"] is None) == (noise == 0.0)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[dp\]'"):
        epsilon(one(RUN), DELTA)
