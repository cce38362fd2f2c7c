"""Noisy mean embeddings: what one look shows, how much one image can change it, what it costs."""

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from synthkd.data.read.splits import Splits
from synthkd.errors import ModelError
from synthkd.generators.embedding import Embedding, Fourier, embed, fourier_features, release, squared_discrepancy
from synthkd.privacy.accounting import epsilon
from synthkd.privacy.calibration import release_noise_for
from synthkd.privacy.ledger import Ledger, Release
from synthkd.types import ImageSpec, to_float

SPEC = ImageSpec(1, 8, 8, 10)
FEW = Fourier(SPEC, 64, (0.3, 0.15), seed=0)


def pixels(count: int, seed: int = 0, spec: ImageSpec = SPEC) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, *spec.shape), dtype=torch.uint8, generator=rng)


class TestFeatures:
    @pytest.mark.parametrize("spec", [SPEC, ImageSpec(3, 32, 28, 4), ImageSpec(1, 9, 17, 2)])
    def test_their_norm_is_one_and_never_more(self, spec: ImageSpec) -> None:
        fourier = Fourier(spec, 500, (0.2, 0.1), seed=1)
        images = torch.cat([to_float(pixels(40, spec=spec)), torch.zeros(1, *spec.shape), torch.ones(1, *spec.shape)])
        norms = fourier_features(images, fourier.frequencies()).double().square().sum(1).sqrt()
        assert (norms <= 1.0).all()
        assert (norms >= 1.0 - 3e-6).all()

    def test_they_approximate_the_mean_of_the_kernels(self) -> None:
        fourier = Fourier(SPEC, 40_000, (0.4, 0.2), seed=2)
        images = to_float(pixels(6)).mul_(0.6)
        features = fourier_features(images, fourier.frequencies())

        def kernel(x: Tensor, y: Tensor) -> float:
            """Over both bandwidths, the whole image and the 5 x 5 places of a window of half its sides."""
            squares = (x - y).double().square()[0]
            windows = [squares[top : top + 4, left : left + 4].mean() for top in range(5) for left in range(5)]
            parts = []
            for b in fourier.bandwidths:
                parts.append(math.exp(-float(squares.mean()) / (2 * b * b)))
                parts.append(sum(math.exp(-float(w) / (2 * b * b)) for w in windows) / 25)
            return sum(parts) / len(parts)

        exact = torch.tensor([[kernel(x, y) for y in images] for x in images])
        assert float(exact[0, 1]) < 0.7
        assert torch.allclose(features @ features.T, exact, atol=0.03)

    def test_images_of_sixteen_pixels_or_more_are_seen_at_half_their_size(self) -> None:
        large = Fourier(ImageSpec(1, 16, 20, 2), 100, (0.2,), seed=0).frequencies()
        assert large.shape[0] == 8 * 10
        checkers = (torch.arange(16)[:, None] + torch.arange(20)) % 2
        flat = torch.full((1, 1, 16, 20), 0.5)
        seen = [fourier_features(x, large) for x in (checkers[None, None].float(), flat)]
        torch.testing.assert_close(*seen)

    def test_they_are_a_function_of_the_seed(self) -> None:
        again, other = (Fourier(SPEC, 64, (0.3, 0.15), seed=s).frequencies() for s in (0, 1))
        assert torch.equal(FEW.frequencies(), again)
        assert not torch.equal(FEW.frequencies(), other)


class TestEmbedding:
    def test_it_is_the_mean_image_by_image(self) -> None:
        images, labels = pixels(30), torch.arange(30) % 7
        expected = torch.zeros(10, 65, dtype=torch.float64)
        for image, label in zip(images, labels, strict=True):
            features = fourier_features(to_float(image[None]), FEW.frequencies())[0]
            expected[label, :64] += features.double() / 30
            expected[label, 64] += 1 / 30
        assert torch.allclose(embed(images, labels, FEW), expected, atol=1e-7)

    def test_no_swap_of_one_image_moves_it_farther_than_the_sensitivity(self) -> None:
        images, labels = pixels(20), torch.arange(20) % 10
        base = embed(images, labels, FEW)
        bound = release(images, labels, FEW, 1.0).sensitivity
        assert bound == 2.0 / 20
        moved = []
        for trial in range(300):
            row = trial % 20
            other = pixels(1, 100 + trial)[0] if trial % 3 else torch.full(SPEC.shape, 255 * (trial % 2)).byte()
            swapped, renamed = images.clone(), labels.clone()
            swapped[row] = other
            renamed[row] = (int(labels[row]) + trial % 4) % 10
            moved.append(float((embed(swapped, renamed, FEW) - base).norm()))
        assert max(moved) <= bound
        assert max(moved) > 0.999 * bound, "another label costs all of it"

    def test_images_as_unlike_as_can_be_stay_within_it_too(self) -> None:
        """One frequency: the features of two images can be opposite, and their distance is all of the bound."""
        lone = Fourier(SPEC, 1, (0.05,), seed=4)
        frequencies = lone.frequencies()
        direction = (frequencies[:, :1].T > 0).float().view(1, *SPEC.shape)
        grades = to_float((torch.linspace(0, 1, 256)[:, None, None, None] * direction * 255).byte())
        features = fourier_features(grades, frequencies[:, :1]).double()
        farthest = float(torch.cdist(features, features).max())
        assert 1.99 < farthest <= 2.0

    def test_without_noise_the_release_is_the_embedding(self) -> None:
        images, labels = pixels(50), torch.arange(50) % 10
        exact = embed(images, labels, FEW).float()
        made = release(images, labels, FEW, 0.0)
        assert torch.equal(made.sums, exact[:, :-1])
        assert torch.equal(made.shares, exact[:, -1])

    def test_its_noise_has_the_stated_size_in_every_number_and_no_bias(self) -> None:
        images, labels = pixels(50), torch.arange(50) % 10
        exact = embed(images, labels, FEW)
        scale = 3.0 * 2.0 / 50
        noise = torch.stack(
            [
                torch.cat([made.sums, made.shares[:, None]], dim=1).double() - exact
                for made in (release(images, labels, FEW, 3.0, test_seed=seed) for seed in range(60))
            ]
        )
        assert abs(float(noise.mean())) < 4 * scale / math.sqrt(noise.numel())
        assert float(noise.std()) == pytest.approx(scale, rel=0.02)
        spread = noise.std(0) / scale
        assert 0.5 < float(spread.min()) < float(spread.max()) < 1.6
        assert abs(float(torch.corrcoef(noise.flatten(1))[0, 1])) < 0.2, "one release after the other"

    def test_its_noise_comes_from_the_operating_system_unless_a_test_asks_otherwise(self) -> None:
        images, labels = pixels(20), torch.arange(20) % 10
        torch.manual_seed(0)
        first = release(images, labels, FEW, 1.0)
        torch.manual_seed(0)
        second = release(images, labels, FEW, 1.0)
        assert not torch.equal(first.sums, second.sums)
        assert not first.insecure
        known = [release(images, labels, FEW, 1.0, test_seed=7) for _ in range(2)]
        assert torch.equal(known[0].sums, known[1].sums)
        assert known[0].insecure

    def test_class_means_are_those_of_unequal_classes(self) -> None:
        images, labels = pixels(60), torch.arange(60) ** 2 % 10  # of 0, 1, 4, 5, 6 and 9 only
        means, noise = release(images, labels, FEW, 0.0).means()
        own = fourier_features(to_float(images[labels == 4]), FEW.frequencies()).mean(0)
        torch.testing.assert_close(means[4], own, rtol=1e-5, atol=1e-6)
        assert torch.equal(means[2], torch.zeros(64)), "nobody there"
        assert torch.equal(noise, torch.zeros(10))

    def test_it_costs_what_its_budget_says(self) -> None:
        pytest.importorskip("dp_accounting")
        made = release(pixels(20), torch.arange(20) % 10, FEW, release_noise_for(1.0, 1e-3))
        assert made.ledger == Ledger((Release(made.noise_multiplier, "replace_one"),))
        assert epsilon(made.ledger, 1e-3, "replace_one").pld == pytest.approx(1.0, abs=1e-3)

    def test_its_statement_is_that_of_its_ledger(self) -> None:
        pytest.importorskip("dp_accounting")
        made = release(pixels(50), torch.arange(50) % 10, FEW, 3.0)
        said = made.statement(1e-5, made.ledger)
        assert said["epsilon"] == epsilon(made.ledger, 1e-5, "replace_one").pld
        assert (said["adjacency"], said["examples"], said["insecure"]) == ("replace_one", 50, False)
        assert (said["noise_multiplier"], said["sensitivity"]) == (3.0, 2.0 / 50)
        assert Ledger.from_json(said["ledger"]) == made.ledger

    def test_it_goes_through_a_file_and_a_damaged_one_is_refused(self, tmp_path: Path) -> None:
        made = release(pixels(20), torch.arange(20) % 10, FEW, 0.5, test_seed=3)
        path = tmp_path / "release.safetensors"
        made.save(path)
        again = Embedding.load(path)
        assert torch.equal(again.sums, made.sums)
        assert torch.equal(again.shares, made.shares)
        facts = ("fourier", "examples", "noise_multiplier", "adjacency", "insecure")
        assert all(getattr(again, name) == getattr(made, name) for name in facts)
        path.write_bytes(path.read_bytes()[:-100])
        for bad in (path, tmp_path / "none.safetensors"):
            with pytest.raises(ModelError, match="costs its budget a second time"):
                Embedding.load(bad)


class TestDiscrepancy:
    def test_it_leaves_out_the_pairs_of_an_image_with_itself(self) -> None:
        features = fourier_features(to_float(pixels(12)), FEW.frequencies()).view(3, 4, -1)
        means = 0.3 * torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
        total = 0.0
        for own, mean in zip(features.double(), means.double(), strict=True):
            pairs = [float(own[i] @ own[j]) for i in range(4) for j in range(4) if i != j]
            total += sum(pairs) / 12 - 2 * float((own @ mean).mean()) + float(mean @ mean)
        assert float(squared_discrepancy(features, means)) == pytest.approx(total / 3, abs=1e-5)

    def test_images_of_the_same_distribution_have_none_on_average(self, digits: Splits) -> None:
        train = digits.train
        release_of = release(train.images, train.labels, FEW, 0.0)
        features = fourier_features(to_float(train.images), FEW.frequencies())
        rng = torch.Generator().manual_seed(0)
        values = []
        for _ in range(200):
            rows = [torch.nonzero(train.labels == c)[:, 0] for c in range(10)]
            few = torch.stack([features[r[torch.randint(len(r), (5,), generator=rng)]] for r in rows])
            values.append(squared_discrepancy(few, release_of.means()[0]))
        found = torch.stack(values)
        assert abs(float(found.mean())) < 4 * float(found.std()) / math.sqrt(len(values))
        assert float(found.std()) < 0.05

    def test_the_noise_is_taken_off(self, digits: Splits) -> None:
        """What training reports is the distance to the private embedding, though it only knows the noisy one."""
        train = digits.train
        features = fourier_features(to_float(train.images[:200]), FEW.frequencies())
        means = release(train.images, train.labels, FEW, 0.0).means()[0]
        exact = float((features.mean(0) - means).square().sum(1).mean())
        estimates = []
        for seed in range(100):
            noisy, variance = release(train.images, train.labels, FEW, 5.0, test_seed=seed).means()
            estimates.append(float((features.mean(0) - noisy).square().sum(1).mean() - 64 * variance.mean()))
        found = torch.tensor(estimates)
        assert float(variance.mean()) * 64 > 0.1 * exact, "there is something to take off"
        assert float(found.mean()) == pytest.approx(exact, abs=4 * float(found.std()) / 10 + 0.02 * exact)
