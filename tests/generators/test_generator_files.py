"""A generator that leaves its run and samples the same images elsewhere."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from synthkd.data.read.real import load_splits
from synthkd.errors import ConfigError, ModelError
from synthkd.generators.build import build_generator
from synthkd.generators.files import CONFIG, read_saved, save_generator
from synthkd.generators.settings import (
    CGANSettings,
    DiffusionSettings,
    GeneratorSettings,
    InversionSettings,
    PixelSettings,
    PythonGenerator,
    SavedSettings,
)
from synthkd.models import Classifier, build
from synthkd.rng import Rows
from synthkd.settings import DigitsData, ZooModel
from synthkd.system.sealed import sealed
from synthkd.types import ImageSpec, Round

SETTINGS: list[GeneratorSettings] = [
    InversionSettings(batch_size=10, width=4, latent=8),
    PixelSettings(kind="pixels", batch_size=10),
    CGANSettings(kind="cgan", batch_size=10, steps=2, width=8, critic_width=8),
    DiffusionSettings(kind="diffusion", channels=(8, 8), batch_size=10, real_batch=10, steps=2, sample_steps=2),
]


@pytest.fixture(scope="module")
def teacher(taught: Callable[[ZooModel, float], Classifier]) -> Classifier:
    return taught(ZooModel(arch="convnet", width=8), 3e-3)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: s.kind)
def test_a_saved_generator_samples_what_it_sampled(
    settings: GeneratorSettings, teacher: Classifier, tmp_path: Path
) -> None:
    accelerator = Accelerator(cpu=True)
    generator = build_generator(settings, teacher, 3, accelerator, load_splits(DigitsData(kind="digits")))
    generator.round(0, 0.3)
    assert save_generator(generator, settings, tmp_path / "generator", teacher.spec, teacher.class_names, 3, 7)
    saved, directory = read_saved(tmp_path)
    assert (saved.settings, saved.real_images, directory) == (settings, 7, tmp_path / "generator")

    again = build_generator(SavedSettings(kind="saved", path=str(tmp_path)), teacher, 99, accelerator)
    labels, rows = torch.arange(5), Rows(1, "x")
    images = again.sample(labels, 0.3, rows)
    torch.testing.assert_close(images, generator.sample(labels, 0.3, rows), rtol=0, atol=1e-6)
    made = again.round(1, 0.3)
    assert made.images.shape == (10, *teacher.spec.shape)


def test_those_that_learn_from_real_images_need_some(teacher: Classifier) -> None:
    with pytest.raises(ConfigError, match="learns from real images: set data"):
        build_generator(SETTINGS[2], teacher, 0, Accelerator(cpu=True))


def test_a_python_generator_that_lacks_methods_is_refused(teacher: Classifier) -> None:
    settings = PythonGenerator(kind="python", target="builtins:dict")
    with pytest.raises(ConfigError, match="returned a dict, which has no round, sample, state_dict, load_state_dict"):
        build_generator(settings, teacher, 0, Accelerator(cpu=True))


def test_a_python_generator_with_a_wrong_option_is_refused(teacher: Classifier) -> None:
    settings = PythonGenerator(kind="python", target="synthkd.generators.drawn:Drawn", options={"colour": 1})
    with pytest.raises(ConfigError, match=r"Drawn failed: TypeError.*colour.*; check the generator's options"):
        build_generator(settings, teacher, 0, Accelerator(cpu=True))


class Given:
    """A generator whose rounds are what a test gives it."""

    given: Any = None
    state_dict = load_state_dict = sample = lambda *_: None

    def __init__(self, teacher: Classifier, seed: int) -> None: ...

    def round(self, index: int, difficulty: float, student: object = None) -> Any:
        return self.given


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 8, 8)}, r"images float32 \[4, 8, 8\]; return float32 \[N, 1, 8, 8\]"),
        ({"images": torch.zeros(4, 1, 8, 8, dtype=torch.uint8)}, r"images uint8 .*; return float32 "),
        ({"images": torch.full((4, 1, 8, 8), 255.0)}, "images from 255 to 255; they must be in 0 to 1"),
        ({"images": torch.full((4, 1, 8, 8), torch.nan)}, "images from nan to nan"),
        ({"images": torch.zeros(0, 1, 8, 8)}, r"images float32 \[0, 1, 8, 8\]"),
        ({"labels": torch.zeros(4)}, r"labels float32 \[4\]; return int64 \[N\]"),
        ({"labels": torch.full((4,), 10)}, "labels from 10 to 10; they must be in 0 to 9"),
        ({"teacher_logits": None}, r"teacher_logits NoneType; return float32 \[N, 10\]"),
        ({"terms": None}, "terms None; return a dict"),
    ],
)
def test_the_rounds_of_a_python_generator_are_checked(
    change: dict[str, Any], message: str, teacher: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = PythonGenerator(kind="python", target=f"{__name__}:Given")
    generator = build_generator(settings, teacher, 0, Accelerator(cpu=True))
    good = Round(torch.zeros(4, 1, 8, 8), torch.arange(4), torch.zeros(4, 10), {})
    monkeypatch.setattr(Given, "given", good)
    assert generator.round(0, 0.5) is good
    monkeypatch.setattr(Given, "given", replace(good, **change))
    with pytest.raises(ConfigError, match=f"round of {__name__}:Given returned {message}"):
        generator.round(0, 0.5)
    monkeypatch.setattr(Given, "given", (good.images, good.labels))
    with pytest.raises(ConfigError, match=r"returned a tuple; return synthkd\.types\.Round\(images, labels, "):
        generator.round(0, 0.5)


def test_what_is_no_generator_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no generator\.json"):
        read_saved(tmp_path)
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(ModelError, match="damaged"):
        read_saved(tmp_path)


def test_a_generator_of_an_earlier_version_is_read_if_its_keys_have_the_values_of_today(tmp_path: Path) -> None:
    spec = {"channels": 1, "height": 8, "width": 8, "classes": 10}
    earlier = {"kind": "pixels", "drawn": 0.25, "restart": 0.5, "step_size": 0.2, "momentum": 0.7}
    (tmp_path / CONFIG).write_bytes(sealed({"settings": earlier, "spec": spec, "seed": 3}))
    assert read_saved(tmp_path)[0].settings == PixelSettings(kind="pixels", drawn=0.25)

    (tmp_path / CONFIG).write_bytes(sealed({"settings": {**earlier, "momentum": 0.0}, "spec": spec, "seed": 3}))
    with pytest.raises(ModelError) as caught:
        read_saved(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path / CONFIG} is damaged or of another version: settings.momentum: fixed at 0.7 now, got 0.0: leave it "
        "out; copy it again, or train the generator again"
    )


def test_another_image_size_is_refused(teacher: Classifier, tmp_path: Path) -> None:
    accelerator = Accelerator(cpu=True)
    generator = build_generator(SETTINGS[0], teacher, 0, accelerator)
    save_generator(generator, SETTINGS[0], tmp_path, teacher.spec, (), 0, 0)
    other = build(ZooModel(arch="convnet", width=8), ImageSpec(1, 12, 12, 10))
    with pytest.raises(ConfigError, match="makes 1x8x8 images"):
        build_generator(SavedSettings(kind="saved", path=str(tmp_path)), other, 0, accelerator)
