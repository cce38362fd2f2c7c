"""Attack scores agree with their formulae, keep apart what probabilities round together, and find members of toys."""

import math

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from synthkd.errors import ConfigError, DataError
from synthkd.privacy.intervals import auc
from synthkd.privacy.membership import (
    Answers,
    attacks,
    calibrated,
    headline,
    lira,
    log_odds,
    rmia,
)
from synthkd.privacy.rates import attack


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_ratio(target: float, references: list[float], a: float) -> float:
    p, *others = (1 / (1 + math.exp(-value)) for value in [target, *references])
    return p / (0.5 * ((1 + a) * sum(others) / len(others) + (1 - a)))


class TestLogOdds:
    def test_by_hand(self):
        values = log_odds([[2.0, 0.0, 0.0], [1.0, 5.0, 1.0]], [0, 2])
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx([2 - math.log(2), 1 - math.log(math.exp(5) + math.exp(1))])

    def test_log_of_the_odds_of_the_softmax(self):
        logits, labels = normal(50, 7), torch.arange(50) % 7
        p = logits.softmax(1)[torch.arange(50), labels]
        torch.testing.assert_close(log_odds(logits, labels), (p / (1 - p)).log(), rtol=1e-12, atol=1e-12)

    def test_two_classes_give_the_difference(self):
        logits = normal(9, 2)
        assert torch.equal(log_odds(logits, torch.ones(9, dtype=torch.int64)), logits[:, 1] - logits[:, 0])

    @pytest.mark.parametrize("gap", [40.0, 200.0, 1e4])
    def test_wide_gaps_stay_exact_where_probabilities_are_one(self, gap):
        with mpmath.workdps(9000):
            p = mpmath.exp(gap) / (mpmath.exp(gap) + 2)
            exact = float(mpmath.log(p / (1 - p)))
        logits = [[gap, 0.0, 0.0], [gap + 1, 0.0, 0.0], [0.0, gap, 0.0]]
        values = log_odds(logits, [0, 0, 0]).tolist()
        assert values[0] == pytest.approx(exact, rel=1e-15)
        assert values[1] - values[0] == pytest.approx(1.0, abs=1e-11)
        assert values[2] == pytest.approx(-gap, rel=1e-15)

    def test_models_stack_and_a_common_shift_changes_nothing(self):
        logits, labels = normal(3, 20, 5), torch.arange(20) % 5
        together = log_odds(logits, labels)
        assert torch.equal(together[1], log_odds(logits[1].numpy(), labels.numpy()))
        torch.testing.assert_close(log_odds(logits + 100, labels), together, rtol=0, atol=1e-12)

    def test_what_has_no_odds_is_refused(self):
        for logits, labels in (([[1.0]], [0]), ([[1.0, 2.0]], [0, 1]), ([1.0, 2.0], [0])):
            with pytest.raises(DataError, match="at least 2 classes"):
                log_odds(logits, labels)
        with pytest.raises(DataError, match=r"labels must be in 0\.\.1, got 2"):
            log_odds([[1.0, 2.0]], [2])
        with pytest.raises(DataError, match="logits: 1 of 2 are NaN or infinite"):
            log_odds([[1.0, math.nan]], [0])


class TestCalibrated:
    def test_by_hand(self):
        assert calibrated([5.0, 1.0], [[4.0, 1.0], [2.0, 3.0]]).tolist() == [2.0, -1.0]

    def test_one_reference_is_enough_and_none_is_not(self):
        assert calibrated([5.0, 1.0], [[4.0, 3.0]]).tolist() == [1.0, -2.0]
        with pytest.raises(DataError, match="of a reference or more"):
            calibrated([5.0, 1.0], np.empty((0, 2)))
        with pytest.raises(DataError, match=r"got \[2\] and \[1, 3\]"):
            lira([5.0, 1.0], [[4.0, 3.0, 1.0]])


class TestLira:
    def test_slow_formula(self):
        target, references = normal(6), normal(4, 6, seed=1)
        own = [np.var(references[:, i].numpy(), ddof=1) for i in range(6)]
        expected = [
            (float(target[i]) - float(references[:, i].mean())) / math.sqrt((4 * np.mean(own) + 3 * own[i]) / 7)
            for i in range(6)
        ]
        assert lira(target, references).tolist() == pytest.approx(expected)

    def test_with_one_reference_it_is_calibrated_in_units_of_its_spread(self):
        target, references = normal(200), normal(1, 200, seed=1)
        gap = calibrated(target, references)
        torch.testing.assert_close(lira(target, references), gap / gap.std(correction=0))

    def test_many_references_give_each_image_its_own_scale(self):
        spread = torch.tensor([0.5, 1.0, 4.0], dtype=torch.float64)
        references = 3 + normal(4000, 3) * spread
        assert lira(3 + 2 * spread, references).tolist() == pytest.approx([2.0, 2.0, 2.0], abs=0.1)

    def test_shift_and_scale_of_all_models_change_nothing(self):
        target, references = normal(30), normal(3, 30, seed=1)
        torch.testing.assert_close(lira(7 * target + 5, 7 * references + 5), lira(target, references))

    def test_it_finds_more_than_calibrated_where_images_differ_in_spread(self):
        member = torch.arange(6000) < 3000
        spread = 0.5 * (0.7 * normal(6000, seed=2)).exp()
        difficulty, noise = normal(6000, seed=3), normal(17, 6000, seed=4)
        target, references = difficulty + spread * noise[0] + 0.75 * member, difficulty + spread * noise[1:]
        found = []
        for score in (lira(target, references), calibrated(target, references)):
            found.append(attack("a", score[member], score[~member]).tpr[0].rate)
        assert found[0].low > 2 * found[1].high

    def test_references_that_agree_in_everything_are_no_division_by_nothing(self):
        assert lira([1.0, 2.0], [[1.0, 2.0], [1.0, 2.0]]).tolist() == [0.0, 0.0]


class TestRmia:
    @pytest.mark.parametrize("a", [0.0, 0.3, 1.0])
    @pytest.mark.parametrize("gamma", [1.0, 2.0])
    def test_slow_formula(self, a, gamma):
        target, references = 2 * normal(30), 2 * normal(3, 30, seed=1)
        population, of_references = 2 * normal(40, seed=2), 2 * normal(3, 40, seed=3)
        own = [slow_ratio(float(target[i]), references[:, i].tolist(), a) for i in range(30)]
        others = [slow_ratio(float(population[j]), of_references[:, j].tolist(), a) for j in range(40)]
        shares = [sum(r / z >= gamma for z in others) / 40 for r in own]
        scores = rmia(target, references, population, of_references, a, gamma)
        assert ((scores * 40).floor() / 40).tolist() == pytest.approx(shares)
        assert scores.argsort().tolist() == np.argsort(own).tolist()  # ties of the share follow the ratio

    def test_a_higher_answer_of_the_target_scores_higher_and_of_references_lower(self):
        population, of_references = normal(50, seed=2), normal(2, 50, seed=3)

        def score(target: float, reference: float) -> float:
            return float(rmia([target], [[reference], [reference]], population, of_references))

        assert score(2.0, 0.0) > score(1.0, 0.0) > score(1.0, 1.0) > score(0.0, 1.0)

    def test_certain_answers_stay_apart(self):
        """All of these probabilities are 1 to rounding; what they lack orders the images."""
        population, of_references = torch.linspace(36, 44, 200).double(), torch.full((1, 200), 40.0)
        target = torch.tensor([38.0, 40.0, 42.0, 40.0], dtype=torch.float64)
        references = torch.tensor([[40.0, 40.0, 40.0, 50.0]], dtype=torch.float64)
        scores = rmia(target, references, population, of_references, 0.3).tolist()
        assert scores[0] + 0.2 < scores[1] < scores[2] - 0.2
        assert scores[0] + 0.15 < scores[3] < scores[1] - 0.02

    def test_an_image_like_one_of_the_population_counts_that_one(self):
        population, of_references = torch.tensor([0.0, 1.0, 2.0]), torch.zeros(1, 3)
        assert int(3 * rmia([1.0], [[0.0]], population, of_references)) == 2

    def test_answers_at_the_ends_are_finite(self):
        extreme = torch.tensor([-1e4, 0.0, 1e4], dtype=torch.float64)
        for a in (0.0, 0.5, 1.0):
            scores = rmia(extreme, extreme.flip(0)[None], extreme, extreme[None], a)
            assert scores.isfinite().all()
            assert scores[0] < scores[1] < scores[2]

    def test_settings_out_of_range_are_refused(self):
        for a, gamma in ((-0.1, 1.0), (1.1, 1.0), (0.3, 0.0)):
            with pytest.raises(ConfigError, match="RMIA needs"):
                rmia([1.0], [[1.0]], [1.0], [[1.0]], a, gamma)


class TestAttacks:
    def world(self, references: int, n: int = 800, seed: int = 0) -> tuple[Answers, Answers, Tensor]:
        """Logits of a difficulty that all models share, noise of their own, and a gain for members of the target."""
        member = torch.arange(n) < n // 2
        labels = torch.arange(n) % 4

        def answers(rows: int, first: int, gain: Tensor) -> Answers:
            truth = torch.nn.functional.one_hot(torch.arange(rows) % 4, 4).double()
            difficulty, noise = normal(rows, seed=first), normal(references + 1, rows, seed=first + 1)
            own = 2 + 3 * difficulty + 0.7 * noise
            own[0] += gain
            logits = truth * own[..., None]
            return Answers(logits[0], logits[1:], torch.arange(rows) % 4)

        audited = answers(n, 10 * seed, 1.5 * member)
        assert torch.equal(audited.labels, labels)
        return audited, answers(300, 10 * seed + 5, torch.zeros(300)), member

    def test_what_there_is_decides_what_runs(self):
        audited, population, _ = self.world(2)
        assert list(attacks(audited, population)) == ["log-odds", "calibrated", "LiRA", "RMIA"]
        assert list(attacks(audited)) == ["log-odds", "calibrated", "LiRA"]
        alone = Answers(audited.target, audited.references[:0], audited.labels)
        assert list(attacks(alone, population)) == ["log-odds"]

    def test_each_is_the_function_of_its_name(self):
        audited, population, _ = self.world(2)
        scores = attacks(audited, population)
        own, references = (log_odds(side, audited.labels) for side in (audited.target, audited.references))
        others = [log_odds(side, population.labels) for side in (population.target, population.references)]
        assert torch.equal(scores["log-odds"], own)
        assert torch.equal(scores["calibrated"], calibrated(own, references))
        assert torch.equal(scores["LiRA"], lira(own, references))
        assert torch.equal(scores["RMIA"], rmia(own, references, *others))

    @pytest.mark.parametrize("references", [1, 4])
    def test_references_find_the_members_that_plain_answers_hide(self, references):
        audited, population, member = self.world(references)
        found = {name: auc(scores[member], scores[~member]) for name, scores in attacks(audited, population).items()}
        assert found["log-odds"].value < 0.68
        for name in ("calibrated", "LiRA", "RMIA"):
            assert found[name].low > found["log-odds"].high

    def test_a_model_that_learnt_by_heart_is_caught_and_one_that_could_not_is_not(self):
        """Ridge regression of random labels: with more features than images every label is learnt exactly."""
        labels = torch.randint(3, (400,), generator=torch.Generator().manual_seed(0))
        truth, member = torch.nn.functional.one_hot(labels, 3).double(), torch.arange(400) < 200
        found = {}
        for width in (4, 600):
            features, elsewhere = normal(400, width, seed=1), normal(200, width, seed=2)

            def fitted(rows: Tensor, targets: Tensor, features: Tensor = features) -> Tensor:
                gram = rows @ rows.T + 1e-3 * torch.eye(len(rows), dtype=torch.float64)
                return features @ rows.T @ torch.linalg.solve(gram, targets)

            target = fitted(features[member], truth[member])
            reference = fitted(elsewhere, truth[torch.randperm(200, generator=torch.Generator().manual_seed(3))])
            scores = attacks(Answers(target, reference[None], labels))["calibrated"]
            found[width] = auc(scores[member], scores[~member])
        assert found[600].low > 0.8
        assert found[4].low < 0.6

    def test_answers_that_do_not_match_are_refused(self):
        audited, population, _ = self.world(2)
        with pytest.raises(DataError, match="the same references must answer for both, got 2"):
            attacks(audited, self.world(3)[1])
        with pytest.raises(DataError, match=r"audited images: need logits \[N, K\]"):
            attacks(Answers(audited.target, audited.references[0], audited.labels))
        with pytest.raises(DataError, match=r"population: need logits \[N, K\]"):
            attacks(audited, Answers(population.target[:, 0], population.references, population.labels))


class TestHeadline:
    def test_the_largest_bound_then_the_rate_then_the_area(self):
        outside = np.linspace(-1, 1, 400)
        strong, weak = (attack(name, outside + by, outside, family=3) for name, by in (("strong", 3.0), ("weak", 0.05)))
        blind = attack("blind", outside, outside, family=3)
        assert weak.epsilon == blind.epsilon == 0.0
        assert headline([blind, strong, weak]).name == "strong"
        assert headline([blind, weak]).name == "weak"

    def test_bounds_that_hold_alone_make_no_headline(self):
        alone, together = (attack(str(family), [1.0, 2.0], [0.0, 1.0], family=family) for family in (1, 2))
        with pytest.raises(ConfigError, match=r"got 1 with a smaller family; give attack\(\.\.\., family=2\)"):
            headline([alone, together])
        assert headline([alone]) is alone
        with pytest.raises(ConfigError, match="needs an attack"):
            headline([])

    def test_the_largest_of_four_blind_attacks_shows_nothing(self):
        rng = np.random.default_rng(0)
        claims = 0
        for _ in range(100):
            scores = rng.normal(size=(4, 2, 120))
            claims += headline([attack(str(i), *scores[i], family=4) for i in range(4)]).epsilon > 0
        assert claims <= 5
