"""Randomness is a function of (seed, purpose, step) and of the row, never of the batch."""

import pytest
import torch

from synthkd.rng import Rows, derive, stream, unpredictable


def test_derive_differs_in_every_argument() -> None:
    seeds = {derive(0, "a", 0), derive(1, "a", 0), derive(0, "b", 0), derive(0, "a", 1)}
    assert len(seeds) == 4


def test_stream_repeats() -> None:
    assert torch.equal(torch.rand(5, generator=stream(3, "x", 7)), torch.rand(5, generator=stream(3, "x", 7)))


@pytest.mark.parametrize("width", [1, 3, 4, 5, 100])
def test_rows_do_not_depend_on_the_batch(width: int) -> None:
    together = Rows(0, "latent", 10).normal(9, width)
    apart = torch.cat([Rows(0, "latent", 10 + i).normal(1, width) for i in range(9)])
    assert torch.equal(together, apart)
    assert torch.equal(Rows(0, "latent", 10).uniform(9, width)[4:], Rows(0, "latent", 14).uniform(5, width))


def test_rows_are_normal() -> None:
    values = Rows(1, "latent").normal(4000, 25).double()
    n = values.numel()
    assert abs(float(values.mean())) < 4 / n**0.5
    assert abs(float(values.var()) - 1) < 4 * (2 / n) ** 0.5
    assert abs(float((values**4).mean()) - 3) < 4 * (96 / n) ** 0.5
    correlation = torch.corrcoef(values.T) - torch.eye(25)
    assert float(correlation.abs().max()) < 5 / 4000**0.5


def test_an_unpredictable_generator_is_not_drawn_again_by_its_seed() -> None:
    rng = unpredictable()
    again = torch.Generator().manual_seed(rng.initial_seed())
    numbers = torch.randn(1000, generator=rng, dtype=torch.float64)
    assert not torch.equal(numbers, torch.randn(1000, generator=again, dtype=torch.float64))
    assert abs(float(numbers.mean())) < 0.2
    assert 0.85 < float(numbers.std()) < 1.15
    words = [one.get_state()[24:].view(torch.int64)[:624] for one in (rng, unpredictable())]
    assert len(torch.cat(words).unique()) > 1200, "every word of the state is of its own"
