"""The bandit among teachers: rewards by hand, its model against a slow regression, and toys where the best is known."""

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from synthkd.distillation.control.selection import TeacherSelection
from synthkd.errors import CheckpointError, ConfigError, DataError
from synthkd.settings import SelectionSettings
from synthkd.types import Stateful

SELECTION = "synthkd.distillation.control.selection"
GAIN_ALONE = {"divergence": 0.0, "cost": 0.0}


def play(
    selection: TeacherSelection,
    gain: Callable[[int, int, list[float]], float],
    rounds: int,
    first: int = 0,
    accuracy: float = 0.2,
    noise: float = 0.0,
) -> tuple[list[int], list[float]]:
    """Choices of the rounds from `first` on, and the accuracies between them; noise is a function of the round."""
    chosen, accuracies = [], [accuracy]
    count = len(selection.counts)
    for t in range(first, first + rounds):
        rng = np.random.default_rng(t)
        divergences = rng.uniform(0.2, 1.0, count).tolist()
        chosen.append(selection.choose(accuracies[-1], divergences, [1.0] * count))
        accuracies.append(accuracies[-1] + gain(chosen[-1], t, divergences) + noise * float(rng.standard_normal()))
    return chosen, accuracies


def test_the_reward_by_hand() -> None:
    """The divergence and the cost are those of the teacher that was chosen, when it was chosen."""
    selection = TeacherSelection(2, SelectionSettings(accuracy=1.0, divergence=0.1, cost=0.2))
    assert (selection.selected, selection.last, selection.expected) == (0, 0.0, [0.0, 0.0])
    assert selection.choose(0.5, [2.0, 3.0], [0.25, 1.0]) == 0
    assert selection.last == 0.0
    assert selection.choose(0.6, [1.0, 4.0], [0.25, 1.0]) == 1
    assert selection.last == pytest.approx(0.1 + 0.1 * 2.0 - 0.2 * 0.25)
    selection.choose(0.55, [9.0, 9.0], [0.5, 0.5])
    assert selection.last == pytest.approx(-0.05 + 0.1 * 4.0 - 0.2 * 1.0)


def test_every_teacher_is_tried_once_first() -> None:
    selection = TeacherSelection(4, SelectionSettings(accuracy=100.0))
    chosen, _ = play(selection, lambda k, *_: 0.1 if k == 1 else -0.1, 4)
    assert chosen == [0, 1, 2, 3]
    assert selection.counts == [1, 1, 1, 1]


def test_where_no_accuracy_counts_the_choice_is_divergence_less_cost() -> None:
    selection = TeacherSelection(3, SelectionSettings(accuracy=0.0, divergence=0.5, cost=1.0))
    for _ in range(3):
        selection.choose(0.3, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert selection.choose(0.9, [1.0, 2.0, 3.0], [0.5, 0.1, 1.0]) == 1
    assert selection.expected == pytest.approx([0.0, 0.9, 0.5])
    assert selection.choose(0.1, [1.0, 2.0, 3.0], [0.5, 0.5, 0.5]) == 2


def test_of_equals_the_lowest_number_is_chosen() -> None:
    selection = TeacherSelection(3, SelectionSettings(accuracy=0.0))
    for _ in range(3):
        selection.choose(0.3, [1.0, 1.0, 1.0], [0.0, 0.0, 0.0])
    assert selection.choose(0.3, [0.5, 1.0, 1.0], [0.0, 0.0, 0.0]) == 1


def test_expected_rewards_are_those_of_a_discounted_ridge_regression(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fitted anew from all choices, as least squares with one row for each and the identity for the penalty."""
    monkeypatch.setattr(f"{SELECTION}.FORGET", 0.2)
    settings = SelectionSettings(accuracy=2.0, divergence=0.3, cost=0.4)
    selection = TeacherSelection(3, settings)
    rng = np.random.default_rng(0)
    rows, gains = [], []
    accuracy = 0.1
    for t in range(12):
        divergences, costs = rng.uniform(0, 2, 3), rng.uniform(0, 1, 3)
        features = np.column_stack([np.ones(3), np.full(3, accuracy), divergences, costs, np.eye(3)])
        k = selection.choose(accuracy, divergences.tolist(), costs.tolist())
        if t:
            weights = 0.8 ** (0.5 * np.arange(t)[::-1])
            design = np.vstack([weights[:, None] * np.array(rows), np.eye(7)])
            theta = np.linalg.lstsq(design, np.concatenate([weights * np.array(gains), np.zeros(7)]), rcond=None)[0]
            assert selection.expected == pytest.approx(list(features @ theta + 0.3 * divergences - 0.4 * costs))
        after = float(rng.uniform(0, 1))
        rows.append(features[k])
        gains.append(2.0 * (after - accuracy))
        accuracy = after


def test_it_mostly_chooses_the_best_teacher_and_beats_uniform_choice() -> None:
    gains = (0.001, 0.004, 0.002)
    selection = TeacherSelection(3, SelectionSettings(**GAIN_ALONE))
    chosen, accuracies = play(selection, lambda k, *_: gains[k], 100, noise=0.001)
    _, uniform = play(TeacherSelection(1, SelectionSettings()), lambda _, t, __: gains[t % 3], 100, noise=0.001)
    assert chosen.count(1) > 70
    assert chosen[-50:].count(1) > 40
    assert accuracies[-1] > uniform[-1] + 0.1


def test_it_goes_by_the_state_where_that_tells_who_helps() -> None:
    """Who helps is whoever the student is farthest from, another teacher in every round."""
    selection = TeacherSelection(3, SelectionSettings(**GAIN_ALONE))
    _, accuracies = play(selection, lambda k, _, d: 0.01 * d[k], 60, noise=0.0005)
    farthest = [max(np.random.default_rng(t).uniform(0.2, 1.0, 3)) for t in range(60)]
    assert accuracies[-1] - accuracies[0] > 0.9 * 0.01 * sum(farthest)
    assert min(selection.counts) > 10


def test_it_switches_when_another_teacher_becomes_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    def gain(k: int, t: int, _: list[float]) -> float:
        return (0.004, 0.002, 0.001)[k if t < 80 else 2 - k]

    def last_choices(forget: float) -> list[int]:
        monkeypatch.setattr(f"{SELECTION}.FORGET", forget)
        selection = TeacherSelection(3, SelectionSettings(**GAIN_ALONE))
        chosen, _ = play(selection, gain, 160, noise=0.0005)
        assert chosen[40:80].count(0) > 30
        return chosen[-40:]

    assert last_choices(0.05).count(2) > 30
    assert last_choices(0.0).count(2) < 20


def test_a_common_factor_of_the_weights_changes_no_choice() -> None:
    """So what is explored does not depend on whether accuracy counts in shares or in percent."""
    gains = (0.001, 0.003, 0.002)
    plays = []
    for factor in (1.0, 64.0):
        settings = SelectionSettings(accuracy=factor, divergence=0.01 * factor, cost=0.01 * factor)
        plays.append(play(TeacherSelection(3, settings), lambda k, *_: gains[k], 40, noise=0.001))
    assert plays[0] == plays[1]
    assert len(set(plays[0][0][3:])) > 1


def test_more_exploration_chooses_more_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    gains = (0.001, 0.004, 0.002)
    fewest = []
    for exploration in (0.0, 10.0, 30.0):
        monkeypatch.setattr(f"{SELECTION}.EXPLORATION", exploration)
        selection = TeacherSelection(3, SelectionSettings(**GAIN_ALONE))
        play(selection, lambda k, *_: gains[k], 60, noise=0.0005)
        fewest.append(min(selection.counts))
    assert fewest[0] < fewest[1] < fewest[2]


def test_a_resumed_selection_chooses_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"{SELECTION}.EXPLORATION", 2.0)
    gains = (0.002, 0.003, 0.001)

    def gain(k: int, *_: object) -> float:
        return gains[k]

    for before in (0, 2, 17):
        whole, begun, resumed = (TeacherSelection(3, SelectionSettings()) for _ in range(3))
        assert isinstance(whole, Stateful)
        expected = play(whole, gain, 40, noise=0.002)
        first, accuracies = play(begun, gain, before, noise=0.002)
        state = begun.state_dict()
        begun.choose(0.9, [1.0] * 3, [1.0] * 3)  # what goes on afterwards must not reach the saved state
        resumed.load_state_dict(state)
        assert resumed.selected == (first[-1] if first else 0)
        then, later = play(resumed, gain, 40 - before, before, accuracies[-1], noise=0.002)
        assert (first + then, accuracies + later[1:]) == expected
        assert resumed.last == whole.last
        assert resumed.expected == whole.expected


def test_the_state_is_tensors_numbers_and_lists() -> None:
    selection = TeacherSelection(2, SelectionSettings())
    play(selection, lambda *_: 0.01, 5)
    plain = {k: v.tolist() if isinstance(v, torch.Tensor) else v for k, v in selection.state_dict().items()}
    assert json.loads(json.dumps(plain)) == plain


def test_a_single_teacher_is_always_chosen_and_still_paid() -> None:
    selection = TeacherSelection(1, SelectionSettings(accuracy=1.0, divergence=0.0, cost=0.0))
    chosen, accuracies = play(selection, lambda *_: 0.01, 10)
    assert chosen == [0] * 10
    assert selection.counts == [10]
    assert selection.last == pytest.approx(accuracies[-2] - accuracies[-3])
    assert selection.expected[0] == pytest.approx(0.01, rel=0.2)


def test_a_student_that_learns_nothing_leaves_everything_finite() -> None:
    selection = TeacherSelection(2, SelectionSettings(**GAIN_ALONE))
    chosen, _ = play(selection, lambda *_: 0.0, 10)
    assert chosen == [0, 1, *[0] * 8]
    assert selection.expected == [0.0, 0.0]


def test_what_cannot_be_chosen_among_is_told() -> None:
    with pytest.raises(ConfigError, match="at least 1 teacher, got 0"):
        TeacherSelection(0, SelectionSettings())
    selection = TeacherSelection(2, SelectionSettings())
    with pytest.raises(DataError, match="a divergence and a cost of each, got 2 and 1"):
        selection.choose(0.5, [1.0, 1.0], [1.0])
    for accuracy, divergence in ((math.nan, 1.0), (0.5, math.inf)):
        with pytest.raises(DataError, match="needs finite values"):
            selection.choose(accuracy, [1.0, divergence], [1.0, 1.0])
    assert selection.counts == [0, 0]
    with pytest.raises(CheckpointError, match="selects among 2 teachers, this run among 3"):
        TeacherSelection(3, SelectionSettings()).load_state_dict(selection.state_dict())
