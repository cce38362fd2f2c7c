"""Features of many machines, joined: exact moments, and a sample in which every row is equally likely."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synthkd.errors import DataError
from synthkd.metrics.feature_cache import SavedSet, load_set, save_set
from synthkd.metrics.features import Features
from synthkd.metrics.frechet import frechet_distance_from_features, frechet_standard_error
from synthkd.metrics.joining import joined
from synthkd.metrics.kernel import kernel_distances
from synthkd.metrics.named_scores import SuiteOptions
from synthkd.metrics.score import ScoredSet
from synthkd.metrics.suite import measure
from synthkd.system.sealed import sealed_tensors, unsealed_tensors


def part(n: int, seed: int, **more: object) -> SavedSet:
    values = torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + seed
    features = Features(values, values[:, :2], "net", "digest", "none")
    return replace(SavedSet(features, f"content {seed}", f"part {seed}", torch.arange(n) % 2, ("a", "b")), **more)  # type: ignore[arg-type]


def all_rows(*parts: SavedSet) -> Tensor:
    return torch.cat([one.features.values for one in parts])


def moments(one: SavedSet) -> tuple[int, Tensor, Tensor]:
    assert one.whole is not None
    return one.whole.moments.n, one.whole.moments.mean, one.whole.moments.covariance


def test_moments_are_those_of_all_rows_in_whatever_order_and_depth() -> None:
    parts = [part(n, seed) for seed, n in enumerate((7, 1, 30, 12))]
    rows = all_rows(*parts).double()
    ways = [
        joined(iter(parts), 5),
        joined(parts[::-1], 5),
        joined([joined(parts[:2], 20), joined(parts[2:], 6)], 5),
        joined([joined(parts[:3], 0), parts[3]], 5),
    ]
    for found in ways:
        n, mean, covariance = moments(found)
        assert n == 50
        torch.testing.assert_close(mean, rows.mean(dim=0), rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(covariance, rows.T.cov(), rtol=1e-12, atol=1e-12)
    first = ways[0].features
    for found in ways[1:3]:
        assert torch.equal(found.features.values, first.values), "one sample, however it is reached"
    assert ways[3].features.n == 0, "a part without features leaves no sample"
    assert ways[0].name == "part 0 and 3 more"
    assert ways[2].name == "part 0 and 3 more"
    assert ways[0].content == ways[1].content == ways[2].content
    assert len({one.content for one in (ways[0], ways[3], joined(parts, 6))}) == 3, "other samples have other scores"


def test_a_sample_is_a_subset_that_keeps_rows_labels_and_logits_together() -> None:
    parts = [part(20, 0), part(30, 1)]
    found = joined(parts, 12)
    assert found.labels is not None
    assert found.features.logits is not None
    known = {
        tuple(row.tolist()): int(label)
        for one in parts
        for row, label in zip(one.features.values, one.labels, strict=True)
    }  # type: ignore[arg-type]
    for row, label, logits in zip(found.features.values, found.labels, found.features.logits, strict=True):
        assert known[tuple(row.tolist())] == int(label)
        assert torch.equal(row[:2], logits)
    assert len({tuple(row.tolist()) for row in found.features.values}) == 12
    everything = joined(parts, 100)
    assert torch.equal(everything.features.values.sort(dim=0).values, all_rows(*parts).sort(dim=0).values)
    # A sample of 12 knows no 13th row, whatever is asked for later.
    assert joined([found, part(9, 2)], 100).features.n == 12


def test_every_row_is_equally_likely() -> None:
    seen: Counter[float] = Counter()
    trials = 600
    for trial in range(trials):
        parts = [
            part(
                n,
                seed,
                content=f"{trial} {seed}",
                features=Features(torch.arange(n)[:, None] + 100.0 * seed, None, "", "", ""),
            )
            for seed, n in enumerate((2, 6, 12))
        ]
        seen.update(joined([joined(parts[:2], 5), parts[2]], 5).features.values[:, 0].tolist())
    expected = trials * 5 / 20
    chi_squared = sum((seen[value] - expected) ** 2 / expected for value in [0, 1, *range(100, 106), *range(200, 212)])
    assert chi_squared < 36.2, "the 99 % quantile of 19 degrees of freedom"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": replace(part(9, 1).features, digest="other")}, "cannot be compared"),
        ({"features": replace(part(9, 1).features, resize="pil")}, "cannot be compared"),
        ({"class_names": ("b", "a")}, r"the classes differ \(a, b and b, a\)"),
        ({"labels": None, "class_names": ()}, r"the classes differ \(a, b and none\)"),
        ({"teacher": part(9, 1).features}, "in some of the files only"),
        ({"content": "content 0"}, "the same images are there twice"),
    ],
)
def test_what_is_no_part_of_the_same_set_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        joined([part(9, 0), part(9, 1, **change)])
    with pytest.raises(DataError, match="nothing to join"):
        joined([])


def test_a_file_gives_back_what_was_joined_and_damage_is_seen(tmp_path: Path) -> None:
    found = joined([part(20, 0, teacher=part(20, 5).features), part(30, 1, teacher=part(30, 6).features)], 12)
    save_set(found, tmp_path / "file.safetensors")
    again = load_set(tmp_path / "file.safetensors")
    for mine, theirs in zip(moments(again), moments(found), strict=True):
        assert torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))
    assert again.whole is not None
    assert found.whole is not None
    assert torch.equal(again.whole.keys, found.whole.keys)
    assert again.whole.parts == found.whole.parts
    assert again.teacher is not None
    assert torch.equal(again.features.values, found.features.values)
    tensors, about = unsealed_tensors(tmp_path / "file.safetensors")
    for wrong in ({"scatter": tensors["scatter"][:2]}, {"mean": tensors["mean"].float()}):
        (tmp_path / "wrong.safetensors").write_bytes(sealed_tensors({**tensors, **wrong}, about))
        with pytest.raises(DataError, match="holds no features that this version saved"):
            load_set(tmp_path / "wrong.safetensors")


def scored(one: SavedSet) -> ScoredSet:
    return ScoredSet(one.name, one.features, one.labels, None, one.whole)


def test_scores_of_a_sample_say_so_and_fd_is_of_all() -> None:
    ours, theirs = [part(40, 0), part(60, 1)], part(80, 2)
    options = SuiteOptions(subsets=3, subset_size=10, splits=2)
    real = ScoredSet("real", theirs.features, theirs.labels)
    rows = all_rows(*ours)
    exact = frechet_distance_from_features(theirs.features.values, rows, warn=False)
    sample = joined(ours, 50)
    by_name = {score.name: score for score in measure(scored(sample), real, options).scores}
    fd, kd = by_name["FD-net"], by_name["KD-net"]
    assert fd.value == pytest.approx(exact, rel=1e-9)
    assert (fd.n, kd.n) == ((100, 80), (50, 80))
    assert "sample" not in fd.note
    assert kd.note.endswith("of a uniform sample: 50 of 100 generated images")
    assert kd.value == kernel_distances(theirs.features.values, sample.features.values, 3, 10).value
    everything = measure(scored(joined(ours, 1000)), real, options).scores
    assert all("sample" not in score.note for score in everything)
    assert everything[0].uncertainty == pytest.approx(frechet_standard_error(theirs.features.values, rows))
    assert fd.uncertainty == pytest.approx(everything[0].uncertainty, rel=0.5)


def test_moments_alone_give_fd_and_say_what_they_do_not_give() -> None:
    options = SuiteOptions(subsets=3, subset_size=10, splits=2)
    ours, theirs = joined([part(40, 0), part(60, 1)], 0), joined([part(80, 2)], 0)
    found = measure(scored(ours), scored(theirs), options)
    whole = measure(scored(part(100, 3)), scored(theirs := part(80, 2)), options)
    assert [score.name for score in found.scores] == [score.name for score in whole.scores], "the rows of one table"
    first, *others = found.scores
    rows = all_rows(part(40, 0), part(60, 1))
    assert first.value == pytest.approx(frechet_distance_from_features(theirs.features.values, rows, warn=False))
    assert first.uncertainty is None
    assert {score.value for score in others} == {None}
    assert all("has moments only" in score.note for score in others)


@pytest.mark.parametrize("rows", [1, 3])
def test_a_sample_that_is_too_small_for_scores_gives_fd(rows: int) -> None:
    options = SuiteOptions(subsets=3, subset_size=10, splits=2)
    ours, real = [part(40, 0), part(60, 1)], scored(part(80, 2))
    first, *others = measure(scored(joined(ours, rows)), real, options).scores
    assert first.value == measure(scored(joined(ours, 0)), real, options).scores[0].value
    assert {score.value for score in others} == {None}
    assert all(f"has those of {rows} only" in score.note for score in others)


def test_a_part_is_let_go_before_the_next_one_is_read() -> None:
    alive: list[weakref.ref[Features]] = []

    def read(seed: int) -> SavedSet:
        assert not [one for one in alive if one() is not None]
        new = part(20, seed)
        alive.append(weakref.ref(new.features))
        return new

    parts: Iterator[SavedSet] = map(read, range(3))
    assert joined(parts, 5).features.n == 5
    assert len(alive) == 3
