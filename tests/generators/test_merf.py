"""The DP-MERF generator on real digits: one look, and what can be made of it."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError

from synthkd.data.read.splits import RealData, Splits
from synthkd.errors import ConfigError, ModelError
from synthkd.generators import merf
from synthkd.generators.embedding import Embedding, release
from synthkd.generators.merf import Merf
from synthkd.generators.settings import MerfSettings
from synthkd.models import Classifier
from synthkd.privacy.ledger import Ledger, Release
from synthkd.rng import Rows
from synthkd.types import ImageSpec, Round, TrainableGenerator

SPEC = ImageSpec(1, 8, 8, 10)
SMALL = MerfSettings(
    kind="merf",
    noise_multiplier=0.02,
    features=1000,
    bandwidths=(0.4, 0.2),
    latent=4,
    width=64,
    batch_size=100,
    steps=20,
    lr=5e-3,
    grain=0.25,
    test_seed=0,
)
TINY = SMALL.model_copy(update={"features": 64, "width": 8, "batch_size": 20, "steps": 2})
ROUNDS = 40


def make(digits: Splits, teacher: Classifier | None = None, settings: MerfSettings = TINY, **others: Any) -> Merf:
    return Merf(settings, teacher, 0, Accelerator(cpu=True), digits.train, **others)


@pytest.fixture(scope="module")
def trained(teacher: Classifier, digits: Splits) -> Merf:
    generator = make(digits, teacher, SMALL)
    for index in range(ROUNDS):
        generator.fit(index, 0.5)
    return generator


class TestGenerator:
    def test_training_brings_the_embeddings_together(self, trained: Merf, digits: Splits) -> None:
        first = make(digits, settings=SMALL).fit(0, 0.5)["generator/loss"]
        last = trained.fit(ROUNDS, 0.5)["generator/loss"]
        assert last < 0.1 * first

    def test_it_makes_the_class_it_is_asked_for(self, trained: Merf, teacher: Classifier) -> None:
        labels = torch.arange(10).repeat(40)
        images = trained.sample(labels, 1.0, Rows(0, "asked"))
        with torch.no_grad():
            seen = teacher(images).argmax(1)
        assert float((seen == labels).float().mean()) > 0.7

    def test_with_much_noise_it_learns_nothing(self, teacher: Classifier, digits: Splits) -> None:
        generator = make(digits, teacher, SMALL.model_copy(update={"noise_multiplier": 500.0}))
        for index in range(5):
            generator.fit(index, 0.5)
        labels = torch.arange(10).repeat(40)
        with torch.no_grad():
            seen = teacher(generator.sample(labels, 1.0, Rows(0, "asked"))).argmax(1)
        assert float((seen == labels).float().mean()) < 0.35

    def test_samples_depend_on_label_and_row_not_on_the_batch(self, trained: Merf) -> None:
        labels = torch.arange(10)
        together = trained.sample(labels, 0.5, Rows(3, "x"))
        apart = torch.cat([trained.sample(labels[i : i + 1], 0.5, Rows(3, "x", i)) for i in range(10)])
        assert together.shape == (10, 1, 8, 8)
        assert 0.0 <= float(together.min()) <= float(together.max()) <= 1.0
        assert torch.allclose(together, apart, atol=1e-6)
        assert not torch.allclose(together, trained.sample(labels, 0.5, Rows(4, "x")), atol=1e-2)
        assert trained.network.training, "modes are as they were"

    def test_easy_samples_are_nearer_to_each_other(self, trained: Merf) -> None:
        labels = torch.full((60,), 3)
        smooth = trained.settings.model_copy(update={"grain": 0.0})
        trained_grain, trained.settings = trained.settings, smooth
        spread = [float(trained.sample(labels, d, Rows(0, "x")).std(0).mean()) for d in (0.0, 1.0)]
        trained.settings = trained_grain
        assert spread[0] < 0.95 * spread[1]

    def test_grain_roughens_each_sample_by_its_own_strength(self, trained: Merf, digits: Splits) -> None:
        labels = torch.zeros(300, dtype=torch.int64)
        grain = trained.settings.grain
        smooth_one = make(digits, settings=SMALL.model_copy(update={"grain": 0.0}))
        smooth_one.load_state_dict(trained.state_dict())
        smooth, rough = (g.sample(labels, 1.0, Rows(0, "x")) for g in (smooth_one, trained))
        inside = (rough > 0) & (rough < 1) & (smooth > 0.3) & (smooth < 0.7)
        strengths = ((rough - smooth) * inside).square().sum((1, 2, 3)) / inside.sum((1, 2, 3)).clamp(min=1)
        strengths = strengths.sqrt()[inside.sum((1, 2, 3)) > 5]
        assert len(strengths) > 50
        assert float(strengths.min()) < 0.2 * grain < 0.5 * grain < float(strengths.max()) < 1.5 * grain

    def test_a_resumed_run_equals_an_unbroken_one_bit_for_bit(
        self,
        teacher: Classifier,
        digits: Splits,
        resumed_rounds: Callable[[Callable[[], TrainableGenerator]], list[Round]],
    ) -> None:
        rounds = resumed_rounds(lambda: make(digits, teacher))
        assert set(rounds[0].terms) == {"generator/loss"}
        assert rounds[0].images.shape == (20, *SPEC.shape)

    def test_private_images_are_looked_at_once(
        self, teacher: Classifier, digits: Splits, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        looks = []

        def counted(*args: Any) -> Embedding:
            looks.append(1)
            return release(*args)

        monkeypatch.setattr(merf, "release", counted)
        secret = TINY.model_copy(update={"test_seed": None, "noise_multiplier": 1.0})
        run = tmp_path / "run"
        first = make(digits, teacher, secret, run=run)
        assert looks == [], "none before the first round"
        terms = [first.fit(index, 0.3) for index in range(3)]
        assert len(looks) == 1
        assert first.embedding is not None

        cut_short = make(digits, teacher, secret, run=run)
        assert [cut_short.fit(index, 0.3) for index in range(3)] == terms
        resumed = make(digits, teacher, secret)
        resumed.load_state_dict(first.state_dict())
        resumed.fit(3, 0.3)
        assert len(looks) == 1, "neither the file nor the checkpoint needs another"
        assert resumed.embedding is not None
        assert torch.equal(resumed.embedding.sums, first.embedding.sums)
        assert resumed.embedding.ledger == first.embedding.ledger

    def test_nothing_of_the_private_images_matters_after_the_release(self, digits: Splits) -> None:
        ends = []
        for spoil in (False, True):
            train = digits.train
            own = RealData(train.images.clone(), train.labels.clone(), train.spec, train.class_names, train.name)
            generator = Merf(TINY, None, 0, Accelerator(cpu=True), own)
            generator.fit(0, 0.3)
            if spoil:
                own.images.zero_()
                own.labels.zero_()
            generator.fit(1, 0.3)
            ends.append(generator.sample(torch.arange(10), 1.0, Rows(0, "x")))
        assert torch.equal(*ends)

    def test_a_saved_one_samples_the_same_says_what_it_cost_and_may_train_on(
        self, trained: Merf, teacher: Classifier, tmp_path: Path
    ) -> None:
        trained.save(tmp_path)
        restored = Merf(SMALL, None, 5, Accelerator(cpu=True), spec=teacher.spec)
        restored.restore(tmp_path)
        labels = torch.arange(10)
        assert torch.equal(restored.sample(labels, 0.7, Rows(0, "x")), trained.sample(labels, 0.7, Rows(0, "x")))
        assert restored.embedding is not None
        assert restored.embedding.ledger == Ledger((Release(0.02),))
        assert restored.embedding.insecure
        assert math.isfinite(restored.fit(0, 0.5)["generator/loss"])
        with pytest.raises(ModelError, match="of another shape"):
            Merf(TINY, teacher, 0, Accelerator(cpu=True)).restore(tmp_path)

    def test_a_release_of_other_settings_is_refused(self, digits: Splits, tmp_path: Path) -> None:
        make(digits, run=tmp_path).fit(0, 0.3)
        with pytest.raises(ModelError, match=r"with noise 0\.02, the settings ask for .* with noise 3"):
            make(digits, settings=TINY.model_copy(update={"noise_multiplier": 3.0}), run=tmp_path)
        other = ImageSpec(1, 12, 12, 10)
        with pytest.raises(ModelError, match="release of 1x8x8"):
            Merf(TINY, None, 0, Accelerator(cpu=True), spec=other, run=tmp_path)

    def test_noise_that_another_machine_computed_with_other_last_digits_is_the_same(
        self, digits: Splits, tmp_path: Path
    ) -> None:
        make(digits, run=tmp_path).fit(0, 0.3)
        other = TINY.model_copy(update={"noise_multiplier": math.nextafter(0.02, 1.0)})
        resumed = make(digits, settings=other, run=tmp_path)
        assert resumed.embedding is not None
        assert resumed.embedding.ledger == resumed.ledger == Ledger((Release(0.02),))

    def test_without_release_and_images_or_teacher_it_says_so(self, digits: Splits) -> None:
        with pytest.raises(ConfigError, match="no release, and no private images"):
            Merf(TINY, None, 0, Accelerator(cpu=True), spec=SPEC).fit(0, 0.5)
        with pytest.raises(ConfigError, match="no teacher"):
            make(digits).round(0, 0.5)
        with pytest.raises(ConfigError, match="neither teacher nor real data"):
            Merf(TINY, None, 0, Accelerator(cpu=True))

    def test_budget_and_delta_are_checked_at_the_door(self, digits: Splits) -> None:
        for chosen in ({}, {"epsilon": 1.0, "noise_multiplier": 1.0}):
            with pytest.raises(ValidationError, match="one of the two"):
                MerfSettings(kind="merf", **chosen)
        with pytest.raises(ConfigError, match=r"below 1 / 1\d+ \(examples\)"):
            make(digits, settings=MerfSettings(kind="merf", epsilon=1.0, delta=0.01))
