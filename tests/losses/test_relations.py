"""How samples lie to each other, against a slow count over pairs."""

import pytest
import torch
import torch.nn.functional as F

from synthkd.losses.relations import semantic_consistency


def test_it_is_the_mean_over_pairs_of_different_samples() -> None:
    rng = torch.Generator().manual_seed(0)
    teacher, student = torch.randn(5, 7, generator=rng), torch.randn(5, 3, 2, generator=rng)
    total = 0.0
    for i in range(5):
        for j in range(5):
            if i != j:
                theirs = F.cosine_similarity(teacher[i], teacher[j], dim=0)
                ours = F.cosine_similarity(student[i].flatten(), student[j].flatten(), dim=0)
                total += float(theirs - ours) ** 2
    assert float(semantic_consistency(teacher, student)) == pytest.approx(total / 20, rel=1e-5)


def test_scale_and_rotation_of_either_side_change_nothing() -> None:
    rng = torch.Generator().manual_seed(1)
    teacher = torch.randn(6, 4, generator=rng)
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=rng)).Q
    assert float(semantic_consistency(teacher, 3.0 * teacher @ rotation)) == pytest.approx(0.0, abs=1e-10)


def test_opposite_meanings_cost_most_and_one_image_nothing() -> None:
    alike = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    unlike = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    assert float(semantic_consistency(alike, unlike)) == pytest.approx(4.0)
    single = torch.ones(1, 2, requires_grad=True)
    value = semantic_consistency(torch.ones(1, 2), single)
    value.backward()
    assert float(value.detach()) == 0.0
