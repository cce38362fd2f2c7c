"""Canaries are drawn by fair coins; the bound of one run agrees with a slow p-value and stays below known epsilons."""

import functools
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.stats import binom, norm

from synthkd.errors import ConfigError, DataError
from synthkd.privacy import canaries
from synthkd.privacy.canaries import choose, one_run_epsilon, p_value


def labels(n: int = 3000, classes: int = 10) -> torch.Tensor:
    return torch.randint(classes, (n,), generator=torch.Generator().manual_seed(0))


def guessed(m: int, guesses: int, correct: int, delta: float = 1e-5) -> float:
    """The bound for so many right guesses; the wrong ones, at most half of all, are among those with high scores."""
    included = np.arange(m) < m // 2
    included[: guesses - correct] = False
    result = one_run_epsilon(-np.arange(m), included, guesses, delta)
    assert result.correct == correct
    return result.epsilon


class TestChoice:
    def test_half_carry_a_wrong_label_and_the_rest_their_own(self):
        own = labels()
        drawn = choose(own, 10, 501, seed=3)
        assert len(drawn) == 501
        assert int(drawn.mislabelled.sum()) == 250
        assert (drawn.rows.diff() > 0).all()
        wrong = drawn.labels != own[drawn.rows]
        assert torch.equal(wrong, drawn.mislabelled)
        assert int(drawn.labels.min()) >= 0
        assert int(drawn.labels.max()) < 10
        assert (drawn.rows.dtype, drawn.labels.dtype) == (torch.int64, torch.int64)
        assert (drawn.included.dtype, drawn.mislabelled.dtype) == (torch.bool, torch.bool)

    def test_wrong_labels_are_uniform_over_the_others(self):
        drawn = choose(torch.full((8000,), 2), 5, 8000, seed=0)
        counts = drawn.labels[drawn.mislabelled].bincount(minlength=5).tolist()
        assert counts[2] == 0
        assert all(abs(count - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75) for count in counts[:2] + counts[3:])

    def test_coins_are_fair_and_blind_to_the_kind_of_canary(self):
        drawn = choose(labels(8000), 10, 8000, seed=0)
        for group in (drawn.mislabelled, ~drawn.mislabelled):
            assert abs(float(drawn.included[group].double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)
        neighbours = (drawn.included[1:] == drawn.included[:-1]).double().mean()
        assert abs(float(neighbours) - 0.5) < 4 * 0.5 / math.sqrt(8000)

    def test_the_seed_decides_and_labels_do_not_move_the_coins(self):
        one, same, other = (choose(labels(), 10, 100, seed) for seed in (1, 1, 2))
        for name in ("rows", "included", "mislabelled", "labels"):
            assert torch.equal(getattr(one, name), getattr(same, name))
            assert not torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(one.included, choose((labels() + 1) % 10, 10, 100, 1).included)

    def test_what_cannot_be_drawn_is_refused(self):
        for classes, count in ((1, 10), (10, 1), (10, 3001)):
            with pytest.raises(ConfigError, match="canaries need 2 classes or more and a count of 2 to 3000"):
                choose(labels(), classes, count, 0)
        with pytest.raises(DataError, match=r"canaries: labels must be in 0\.\.4"):
            choose(labels(), 5, 10, 0)


class TestBound:
    @pytest.mark.parametrize(
        ("m", "guesses", "correct", "expected"),
        [(1000, 200, 160, 1.085), (1000, 200, 195, 2.899), (500, 100, 99, 3.011)],
    )
    def test_constants(self, m, guesses, correct, expected):
        assert guessed(m, guesses, correct) == pytest.approx(expected, abs=1e-3)

    def test_all_right_without_delta_has_a_closed_form(self):
        q = 0.05 ** (1 / 20)
        assert guessed(100, 20, 20, delta=0.0) == pytest.approx(math.log(q / (1 - q)), abs=1e-8)

    @pytest.mark.parametrize(("m", "r", "v"), [(30, 10, 9), (50, 20, 0), (12, 12, 12), (200, 40, 31)])
    @pytest.mark.parametrize("delta", [0.0, 1e-3])
    def test_the_p_value_of_a_slow_double_loop(self, m, r, v, delta):
        q = math.exp(1.3) / (1 + math.exp(1.3))

        def at_least(least: int) -> float:
            return sum(math.comb(r, k) * q**k * (1 - q) ** (r - k) for k in range(max(least, 0), r + 1))

        extra = max([0.0, *((at_least(v - i) - at_least(v)) / i for i in range(1, v + 1))])
        expected = min(1.0, at_least(v) + 2 * m * delta * extra)
        assert p_value(m, r, v, 1.3, delta) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize("epsilon", [0.0, 0.5, 1.0, 3.0])
    @pytest.mark.parametrize("delta", [0.0, 1e-5])
    def test_randomised_response_is_exceeded_in_at_most_one_case_of_twenty(self, epsilon, delta):
        """Exact, over every possible number of right guesses: each is right with probability q of epsilon."""
        r, q = 100, 1 / (1 + math.exp(-epsilon))
        bounds = [canaries._bound(500, r, v, delta, 0.05) for v in range(r + 1)]
        exceeded = sum(binom.pmf(v, r, q) for v, bound in enumerate(bounds) if bound > epsilon + 1e-9)
        assert exceeded <= 0.05
        assert (np.diff(bounds) >= 0).all()
        if delta == 0:
            assert exceeded > 0.01  # nothing is given away either

    def test_more_right_guesses_and_fewer_canaries_prove_more(self):
        assert guessed(1000, 200, 190) > guessed(1000, 200, 180) > guessed(1000, 200, 100) == 0.0
        assert guessed(200, 200, 190) > guessed(5000, 200, 190)
        assert guessed(1000, 200, 190, delta=0.0) > guessed(1000, 200, 190) > guessed(1000, 200, 190, delta=1e-4)


class TestOneRun:
    def test_by_hand(self):
        """The four highest are in, in, out, in; the four lowest out, out, in, out: six of eight."""
        scores = np.array([9, 8, 7, 6, 5, 4, -6, -7, -8, -9])
        included = np.array([1, 1, 0, 1, 0, 1, 0, 0, 1, 0], dtype=bool)
        result = one_run_epsilon(scores, included, guesses=8)
        assert (result.m, result.guesses, result.correct) == (10, 8, 6)
        turned = one_run_epsilon(-scores, included, guesses=8)
        assert turned.correct == 2

    @settings(max_examples=80, deadline=None)
    @given(data=st.data(), m=st.integers(2, 6))
    def test_ties_are_never_to_the_attackers_gain(self, data, m):
        """Against the fewest right guesses over every order that the scores allow."""
        scores = data.draw(st.lists(st.integers(0, 2), min_size=m, max_size=m))
        included = data.draw(st.lists(st.booleans(), min_size=m, max_size=m))
        half = data.draw(st.integers(1, m // 2))
        least = min(
            sum(included[i] for i in order[:half]) + sum(not included[i] for i in order[m - half :])
            for order in itertools.permutations(range(m))
            if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
        )
        correct = one_run_epsilon(scores, np.array(included), 2 * half).correct
        ranked = sorted(scores, reverse=True)
        if ranked[half - 1] == ranked[m - half]:
            assert correct <= least
        else:
            assert correct == least

    def test_a_planted_leak_reaches_the_ceiling(self):
        included = np.random.default_rng(0).random(500) < 0.5
        result = one_run_epsilon(included.astype(float), torch.from_numpy(included))
        assert (result.guesses, result.correct) == (100, 100)
        assert result.epsilon == result.ceiling > 3.2
        assert one_run_epsilon(~included, included).epsilon == 0.0

    def test_scores_that_are_all_the_same_show_nothing(self):
        included = np.random.default_rng(1).random(300) < 0.5
        assert one_run_epsilon(np.zeros(300), included).epsilon == 0.0

    def test_coins_that_nobody_saw_show_nothing(self, cached):
        """At most 5 % of runs may claim more than 0 (4.6 % do); here no more than chance adds to that in 1,000."""
        rng = np.random.default_rng(0)
        claims = sum(one_run_epsilon(rng.normal(size=300), rng.random(300) < 0.5).epsilon > 0 for _ in range(1000))
        assert claims <= binom.ppf(0.99, 1000, 0.05)

    @pytest.mark.parametrize(("mu", "least"), [(0.5, 0.4), (1.0, 1.1), (2.0, 2.8), (4.0, 3.9)])
    def test_a_gaussian_mechanism_of_known_epsilon_is_not_exceeded(self, cached, mu, least):
        truth = brentq(
            lambda eps: norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu) - 1e-5, 0.0, 60.0
        )
        rng = np.random.default_rng(0)
        bounds = []
        for _ in range(100):
            included = rng.random(1000) < 0.5
            bounds.append(one_run_epsilon(mu * included + rng.normal(size=1000), included).epsilon)
        assert sum(bound > truth for bound in bounds) <= 5
        assert least < np.median(bounds) < truth

    def test_a_fifth_is_guessed_by_default(self):
        included = np.arange(119) % 2 == 0
        assert one_run_epsilon(np.arange(119), included).guesses == 22
        with pytest.raises(ConfigError, match="even number from 2 to the 9 canaries, got 0"):
            one_run_epsilon(np.arange(9), included[:9])

    def test_what_cannot_be_judged_is_refused(self):
        included = np.arange(20) % 2 == 0
        for guesses in (0, 3, 22):
            with pytest.raises(ConfigError, match=f"got {guesses}"):
                one_run_epsilon(np.arange(20), included, guesses)
        with pytest.raises(ConfigError, match="need 0 <= delta < 1"):
            one_run_epsilon(np.arange(20), included, 4, delta=1.0)
        with pytest.raises(DataError, match="scores of canaries: 1 of 20 are NaN"):
            one_run_epsilon(np.where(np.arange(20) == 7, np.nan, 1.0), included, 4)
        with pytest.raises(DataError, match="a true or false is needed for each of 20 canaries"):
            one_run_epsilon(np.arange(20), included[:19], 4)
        with pytest.raises(DataError, match="a true or false is needed"):
            one_run_epsilon(np.arange(20), included.astype(int), 4)


@pytest.fixture
def cached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds depend on a few counts only: simulations ask for the same ones over and over."""
    monkeypatch.setattr(canaries, "_bound", functools.cache(canaries._bound))
