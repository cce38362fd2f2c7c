"""An audit of one model: both halves apart, the declared score, given lists, and the checks of those."""

import numpy as np
import pytest
import torch
from scipy.stats import hypergeom
from torch import Tensor

from synthkd.privacy.audit import (
    CONFIDENCE,
    GROUPS,
    answers_of,
    audit_lists,
    audit_model,
    blind_check,
    classes_check,
    count_duplicates,
    labels_check,
    logits_of,
    negative_check,
    roles_check,
)
from synthkd.privacy.canaries import Canaries, choose, one_run_epsilon
from synthkd.privacy.membership import Answers, attacks
from synthkd.privacy.rates import attack

COUNT, CLASSES = 400, 4


@pytest.fixture
def canaries() -> Canaries:
    return choose(torch.arange(1000) % CLASSES, CLASSES, COUNT, seed=3)


def logits(labels: Tensor, gain: Tensor, seed: int) -> Tensor:
    """Noisy logits in which the label's own is larger by a gain `[N]`."""
    noise = torch.randn(len(labels), CLASSES, generator=torch.Generator().manual_seed(seed))
    return noise + gain[:, None] * torch.nn.functional.one_hot(labels, CLASSES)


def answers(canaries: Canaries, gain: Tensor, references: int = 2) -> Answers:
    nothing = torch.zeros(len(canaries))
    others = [logits(canaries.labels, nothing, 10 + k) for k in range(references)]
    empty = torch.empty(0, COUNT, CLASSES)
    return Answers(logits(canaries.labels, gain, 1), torch.stack(others) if others else empty, canaries.labels)


def test_a_model_that_learned_the_mislabelled_half_by_heart_is_caught_there_and_only_there(canaries: Canaries) -> None:
    learned = 9.0 * (canaries.included & canaries.mislabelled)
    found = audit_model(canaries, answers(canaries, learned), None, None, 1e-5)
    natural, worst = (found[group] for group in GROUPS)
    assert worst.one_run.epsilon > 1.0 > 0.2 > natural.one_run.epsilon
    best = {attack.name: attack for attack in worst.attacks}
    assert set(best) == {"log-odds", "calibrated", "LiRA"}
    assert best[worst.headline].auc.value > 0.95
    assert all(abs(attack.auc.value - 0.5) < 0.12 for attack in natural.attacks)
    assert all(attack.family == 3 for attack in worst.attacks)
    member = canaries.mislabelled
    assert best["LiRA"].n_in == int((member & canaries.included).sum())
    assert best["LiRA"].n_out == int((member & ~canaries.included).sum())


def test_the_bound_is_of_the_declared_score_and_shares_the_error_among_halves_and_models(canaries: Canaries) -> None:
    asked = answers(canaries, 3.0 * canaries.included)
    found = audit_model(canaries, asked, None, 20, 1e-5, models=2)[GROUPS[0]].one_run
    natural = ~canaries.mislabelled
    score = attacks(asked)["LiRA"][natural]
    assert found == one_run_epsilon(score, canaries.included[natural], 20, 1e-5, 1 - 0.05 / 4)
    alone = audit_model(canaries, answers(canaries, 3.0 * canaries.included, 0), None, 20, 1e-5)[GROUPS[0]]
    assert [attack.name for attack in alone.attacks] == ["log-odds"]
    assert alone.one_run.confidence == pytest.approx(1 - 0.05 / 2)


def test_an_image_in_two_roles_is_counted() -> None:
    images = torch.randint(256, (10, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert count_duplicates(images[:4], {"rest": images[4:], "population": images[3:5]}) == {"rest": 0, "population": 1}


def test_logits_are_the_models_own_whatever_the_batch() -> None:
    images = torch.randint(256, (10, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    found = logits_of(model, images, torch.device("cpu"), batch_size=3)
    assert torch.allclose(found, model(images.float() / 255.0), atol=1e-6)
    assert not found.requires_grad


def test_an_audit_takes_any_module_and_images_of_either_form() -> None:
    images = torch.randint(256, (40, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    labels, members = torch.arange(40) % 3, torch.arange(40) < 20
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    one, other = (answers_of({"the model": model}, values, labels) for values in (images, images.float() / 255.0))
    assert torch.equal(torch.as_tensor(one.target), torch.as_tensor(other.target))
    assert torch.equal(torch.as_tensor(one.target), model.eval()(images.float() / 255.0))
    assert audit_lists(one, members) == audit_lists(other, members, None, 1e-5)


def test_lists_give_every_attack_and_no_bound_of_one_run() -> None:
    labels = torch.arange(COUNT) % CLASSES
    members = torch.arange(COUNT) % 3 == 0
    nothing = torch.zeros(COUNT)
    references = torch.stack([logits(labels, nothing, 10 + k) for k in range(2)])
    asked = Answers(logits(labels, 4.0 * members, 1), references, labels)
    found = audit_lists(asked, members, None, 1e-5)
    assert found.one_run is None
    assert [one.name for one in found.attacks] == ["log-odds", "calibrated", "LiRA"]
    scores = attacks(asked)
    for one in found.attacks:
        values = scores[one.name]
        sides = values[members], values[~members], labels[members], labels[~members]
        assert one == attack(one.name, *sides, 1e-5, CONFIDENCE, family=3)
        assert one.heuristic
        assert one.auc.low > 0.9
    alone = audit_lists(Answers(asked.target, references[:0], labels), ~members, None, 1e-5)
    assert [one.name for one in alone.attacks] == [alone.headline] == ["log-odds"]
    assert alone.attacks[0].auc.high < 0.1, "the lists exchanged: members look less like members"


def test_roles_are_compared_in_pairs_whatever_the_order() -> None:
    images = torch.randint(256, (12, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert roles_check({"members": images[:4], "non-members": images[4:8], "population": images[8:]}).passed
    found = roles_check({"members": images[:4], "non-members": images[4:8], "population": images[6:10]})
    assert not found.passed
    assert found.found == "2 of the population are among the non-members, pixel by pixel"
    both = roles_check({"members": images[:5], "non-members": images[4:8], "population": images[:1]})
    assert both.found.startswith("1 of the non-members are among the members, 1 of the population are among the mem")


def test_lists_that_differ_in_brightness_fail_the_blind_baseline() -> None:
    images = torch.randint(100, (120, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert blind_check(images[:60], images[60:]).passed
    assert not blind_check(images[:60], images[60:] + 30).passed


@pytest.mark.parametrize("members_of_the_first", [9, 13, 18])
def test_class_counts_are_judged_as_the_hypergeometric_distribution_has_it(members_of_the_first: int) -> None:
    inside = (torch.arange(30) >= members_of_the_first).long()
    outside = (torch.arange(20) >= 4).long()
    first = members_of_the_first + 4
    counts = np.arange(31)
    far = np.abs(counts - 30 * first / 50) >= abs(members_of_the_first - 30 * first / 50) - 1e-9
    exact = float(hypergeom(50, first, 30).pmf(counts)[far].sum())
    found = classes_check(inside, outside)
    assert float(found.found.split()[-3].rstrip("%")) / 100 == pytest.approx(exact, abs=0.035)
    assert found.passed == (exact >= 0.01)


def test_lists_of_the_same_source_fail_by_their_classes_as_rarely_as_said() -> None:
    rng = np.random.default_rng(0)
    failed = 0
    for seed in range(300):
        labels = torch.from_numpy(rng.integers(5, size=150))
        failed += not classes_check(labels[:100], labels[100:], seed).passed
    assert failed <= 8, "binomial, 300 times 1 %: more than 8 in 1 of 1,000 seeds"


def test_a_class_on_one_list_only_is_seen_and_one_on_neither_does_no_harm() -> None:
    assert not classes_check(torch.arange(40) % 4, torch.arange(40) % 3).passed
    assert classes_check(2 * (torch.arange(40) % 4), 2 * (torch.arange(40) % 4)).passed


@pytest.mark.parametrize(("right", "passed"), [(40, True), (13, False), (0, False)])
def test_labels_must_be_known_to_a_model_better_than_by_chance(right: int, passed: bool) -> None:
    labels = torch.arange(40) % CLASSES
    given = torch.where(torch.arange(40) < right, labels, (labels + 1) % CLASSES)
    answers = torch.nn.functional.one_hot(given, CLASSES).float()
    found = labels_check({"student": answers}, labels)
    assert found.passed == passed
    assert f"{right / 40:.1%} by the student" in found.found
    assert ("as guesses would be" in found.found) == (not passed)
    knowing = torch.nn.functional.one_hot(labels, CLASSES).float()
    assert labels_check({"teacher": knowing, "student": answers}, labels).passed


def test_a_reference_that_saw_the_members_fails_among_others() -> None:
    labels, members = torch.arange(COUNT) % CLASSES, torch.arange(COUNT) < COUNT // 2
    fair = [logits(labels, torch.ones(COUNT), seed) for seed in range(3)]
    guilty = logits(labels, 1.0 + 2.0 * members, 9)
    found = negative_check(fair, labels, members)
    assert found.passed
    assert not negative_check([*fair, guilty], labels, members).passed
    easier = logits(labels, 1.0 + 2.0 * ~members, 9)
    assert not negative_check([easier], labels, members).passed, "non-members that are easier by themselves"


def test_fair_references_fail_as_rarely_as_said() -> None:
    labels, members = torch.arange(200) % CLASSES, torch.arange(200) < 80
    failed = 0
    for seed in range(200):
        fair = [logits(labels, torch.ones(200), 3 * seed + k) for k in range(3)]
        failed += not negative_check(fair, labels, members).passed
    assert failed <= 7, "binomial, 200 times 1 %: more than 7 in 1 of 1,000 seeds; three references share the 1 %"
