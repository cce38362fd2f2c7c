"""Who teaches among networks that learn together: when it changes, that it cannot flap, and what a checkpoint holds."""

import numpy as np
import pytest
from pydantic import ValidationError

from synthkd.distillation.control.roles import Roles
from synthkd.settings import SwapSettings
from synthkd.types import Stateful


def roles(above: float = 0.95, again_below: float = 0.9, teaching: int = 1) -> Roles:
    return Roles(SwapSettings(above=above, again_below=again_below), teaching)


def test_the_learner_teaches_once_it_exceeds_the_share() -> None:
    one = roles()
    assert not one.update([0.75, 0.8])
    assert not one.update([0.95 * 0.8, 0.8]), "it must exceed the share, not reach it"
    assert one.teaching == 1
    assert one.update([0.7601, 0.8])
    assert one.teaching == 0


def test_two_equals_change_places_once() -> None:
    one = roles()
    changes = [one.update([0.8, 0.8]) for _ in range(100)]
    assert changes == [True] + [False] * 99
    assert one.teaching == 0


def test_noise_within_the_band_cannot_make_it_flap() -> None:
    """Two networks of 0.8 whose accuracies waver by 0.03, less than the band between the shares."""
    noise = np.random.default_rng(0).uniform(-0.03, 0.03, (500, 2))
    held, loose = roles(), roles(again_below=0.95)
    swaps = sum(held.update([0.8 + a, 0.8 + b]) for a, b in noise)
    flaps = sum(loose.update([0.8 + a, 0.8 + b]) for a, b in noise)
    assert swaps == 1
    assert flaps > 10, "without a band it does"


def test_a_learner_that_is_clearly_ahead_takes_over_even_while_disarmed() -> None:
    one = roles()
    assert one.update([0.11, 0.10])
    # now 0 teaches, disarmed, and stays behind
    assert not one.update([0.20, 0.20])
    assert not one.update([0.20, 0.222]), "ahead, but 0.9 of it is not above"
    assert (one.teaching, one.armed) == (0, False)
    assert one.update([0.20, 0.223])
    assert one.teaching == 1
    assert not one.update([0.20, 0.95])
    assert one.teaching == 1


def test_the_way_back_needs_the_same_gap_the_other_way_round() -> None:
    one = roles(again_below=0.8, teaching=0)
    assert one.update([0.5, 0.6])
    assert one.update([0.9, 0.6]), "disarmed, and clearly ahead"
    for behind in (0.81, 1.0, 1.24):
        assert not one.update([0.6, behind * 0.6])
        assert (one.teaching, one.armed) == (0, False)
    assert one.update([0.6, 1.26 * 0.6])
    assert one.teaching == 1


def test_a_share_above_one_is_what_a_learner_must_always_be_ahead_by() -> None:
    one = roles(above=1.2, again_below=1.1)
    assert [one.update([0.5, 0.5]) for _ in range(5)] == [False] * 5
    assert not one.update([0.59, 0.5])
    assert one.update([0.61, 0.5])
    assert [one.update([0.61, 0.61 * ahead]) for ahead in (1.0, 1.15, 1.19)] == [False] * 3
    assert one.update([0.61, 0.61 * 1.21])


def test_the_faster_of_two_teaches_to_the_end_whoever_was_the_first() -> None:
    """Accuracies that rise from 0.1, of one network to 0.3 and of the other to 0.95, both with noise."""
    noise = np.random.default_rng(0).uniform(-0.02, 0.02, (60, 2))
    looks = 0.1 + np.outer(1.0 - np.exp(-np.arange(60) / 10), [0.2, 0.85]) + noise
    for start in (0, 1):
        one = roles(teaching=start)
        swaps = sum(one.update(look) for look in looks.tolist())
        assert one.teaching == 1
        assert swaps <= 2


def test_it_is_armed_again_only_after_the_learners_have_fallen_behind() -> None:
    one = roles()
    assert one.update([0.9, 0.8])
    # now 0 teaches, and 1 is the learner
    assert not one.update([0.9, 0.91])
    assert not one.armed
    assert not one.update([0.9, 0.9 * 0.9]), "to reach the lower share is not to fall below it"
    assert not one.update([0.9, 0.91])
    assert not one.update([0.9, 0.80])
    assert one.armed
    assert not one.update([0.9, 0.85]), "armed, and not above"
    assert one.update([0.9, 0.86])
    assert one.teaching == 1


def test_of_three_the_best_learner_counts() -> None:
    one = roles(teaching=1)
    assert not one.update([0.7, 0.9, 0.8])
    assert one.update([0.87, 0.9, 0.88])
    assert one.teaching == 2
    # a single learner that falls behind does not arm it while another is near
    assert not one.update([0.5, 0.9, 0.88])
    assert not one.armed
    assert not one.update([0.5, 0.7, 0.88])
    assert one.armed
    assert one.update([0.88, 0.7, 0.88])
    assert one.teaching == 0


def test_of_equal_learners_the_first_teaches() -> None:
    one = roles(teaching=2)
    assert one.update([0.9, 0.9, 0.9])
    assert one.teaching == 0


def test_networks_that_know_nothing_keep_their_roles() -> None:
    one = roles()
    assert not one.update([0.0, 0.0])
    assert (one.teaching, one.armed) == (1, True)
    assert one.update([0.1, 0.0])
    assert not one.update([0.0, 0.0])
    assert one.update([0.0, 0.1]), "ahead of nothing is clearly ahead"


def test_a_state_goes_on_where_it_was_taken() -> None:
    looks = [[0.7, 0.8], [0.9, 0.8], [0.9, 0.91], [0.9, 0.7], [0.9, 0.88], [0.5, 0.9], [0.9, 0.9]]
    for stop in range(len(looks)):
        whole, first, second = roles(), roles(), roles()
        assert isinstance(first, Stateful)
        for look in looks[:stop]:
            whole.update(look)
            first.update(look)
        second.load_state_dict(first.state_dict())
        after = [[one.update(look) for look in looks[stop:]] for one in (whole, second)]
        assert after[0] == after[1]
        assert (second.teaching, second.armed) == (whole.teaching, whole.armed)


def test_a_band_upside_down_is_refused() -> None:
    with pytest.raises(ValidationError, match="again_below must not be above"):
        SwapSettings(above=0.8, again_below=0.9)
