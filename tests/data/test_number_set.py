"""A set of numbers as bits, against Python's."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from synthkd.data.number_set import NumberSet

NUMBERS = st.lists(st.integers(0, 300), max_size=30)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(NUMBERS, max_size=5), more=NUMBERS)
def test_it_has_what_was_added_and_a_restored_one_goes_on(parts: list[list[int]], more: list[int]) -> None:
    numbers, plain = NumberSet(), set[int]()
    for part in parts:
        numbers.update(torch.tensor(part, dtype=torch.int64))
        plain.update(part)
    assert [*numbers] == sorted(plain)
    assert len(numbers) == len(plain)
    for again in (NumberSet(numbers.state()), NumberSet(sorted(plain))):
        again.update(torch.tensor(more, dtype=torch.int64))
        assert [*again] == sorted(plain | {*more})
    assert len(numbers.state()) <= max(plain, default=-1) // 8 + 1
