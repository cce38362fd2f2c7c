"""Epsilon agrees with closed forms, with Opacus and between its own parts; no accounting claims less than was spent."""

import logging
import math
import sys
from collections.abc import Callable
from typing import Any

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from synthkd.errors import ConfigError, MissingExtraError
from synthkd.privacy.accounting import check_delta, epsilon
from synthkd.privacy.ledger import Adjacency, Ledger, PoissonSteps, Release

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


class TestComposition:
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


class TestDelta:
    @pytest.mark.parametrize("delta", [0.0, 1.0])
    def test_deltas_are_probabilities(self, delta: float) -> None:
        with pytest.raises(ConfigError, match="delta must be in"):
            epsilon(Ledger(), delta)

    def test_delta_is_below_one_over_the_examples(self) -> None:
        check_delta(1e-5, 60_000)
        with pytest.raises(ConfigError, match=r"below 1 / 60000 \(examples\), got 2e-05; take 1e-06"):
            check_delta(2e-5, 60_000)
        with pytest.raises(ConfigError, match=r"take 0\.001"):
            check_delta(0.0, 400)


def test_a_missing_extra_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'synthkd\[dp\]'"):
        epsilon(one(RUN), DELTA)
