"""An audit of one model: both halves apart, the declared score, and who has two roles."""

import pytest
import torch
from torch import Tensor

from synthkd.privacy.audit import GROUPS, audit_model, duplicated, logits_of
from synthkd.privacy.canaries import Canaries, choose, one_run_epsilon
from synthkd.privacy.membership import Answers, attacks

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
    assert duplicated(images[:4], {"rest": images[4:], "population": images[3:5]}) == {"rest": 0, "population": 1}


def test_logits_are_the_models_own_whatever_the_batch() -> None:
    images = torch.randint(256, (10, 1, 2, 2), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)).eval()
    found = logits_of(model, images, torch.device("cpu"), batch_size=3)
    assert torch.allclose(found, model(images.float() / 255.0), atol=1e-6)
    assert not found.requires_grad
