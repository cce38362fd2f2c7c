"""Generators of labelled images; import them as `synthkd.generators`.

`build_generator` makes any of them from its settings. A public name is imported on first use, since the settings must
not wait for torch, nor the generators for diffusers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthkd.imports import on_first_use

if __name__ != "synthkd.generators":
    raise ImportError("import synthkd.generators")

if TYPE_CHECKING:
    from synthkd.generators.build import build_generator
    from synthkd.generators.cgan import CGAN
    from synthkd.generators.continuous import Continuous
    from synthkd.generators.contrastive import Contrastive
    from synthkd.generators.diffusion import Diffusion
    from synthkd.generators.files import SavedGenerator, read_saved, real_images_seen, save_generator
    from synthkd.generators.inversion import Inversion
    from synthkd.generators.merf import Merf
    from synthkd.generators.method_settings import (
        ContinuousSettings,
        ContrastiveSettings,
        NoisyLabelSettings,
        PixelInversionSettings,
    )
    from synthkd.generators.noisy_label import NoisyLabel
    from synthkd.generators.pipeline import Pipeline
    from synthkd.generators.pixel_inversion import PixelInversion
    from synthkd.generators.pixels import Pixels
    from synthkd.generators.settings import (
        CGANSettings,
        DiffusionSettings,
        InversionSettings,
        MerfSettings,
        PipelineSettings,
        PixelSettings,
        PythonGenerator,
        SavedSettings,
    )

__all__ = [
    "CGAN",
    "CGANSettings",
    "Continuous",
    "ContinuousSettings",
    "Contrastive",
    "ContrastiveSettings",
    "Diffusion",
    "DiffusionSettings",
    "Inversion",
    "InversionSettings",
    "Merf",
    "MerfSettings",
    "NoisyLabel",
    "NoisyLabelSettings",
    "Pipeline",
    "PipelineSettings",
    "PixelInversion",
    "PixelInversionSettings",
    "PixelSettings",
    "Pixels",
    "PythonGenerator",
    "SavedGenerator",
    "SavedSettings",
    "build_generator",
    "read_saved",
    "real_images_seen",
    "save_generator",
]

_MODULES = {
    "CGAN": "cgan",
    "CGANSettings": "settings",
    "Continuous": "continuous",
    "ContinuousSettings": "method_settings",
    "Contrastive": "contrastive",
    "ContrastiveSettings": "method_settings",
    "Diffusion": "diffusion",
    "DiffusionSettings": "settings",
    "Inversion": "inversion",
    "InversionSettings": "settings",
    "Merf": "merf",
    "MerfSettings": "settings",
    "NoisyLabel": "noisy_label",
    "NoisyLabelSettings": "method_settings",
    "Pipeline": "pipeline",
    "PipelineSettings": "settings",
    "PixelInversion": "pixel_inversion",
    "PixelInversionSettings": "method_settings",
    "PixelSettings": "settings",
    "Pixels": "pixels",
    "PythonGenerator": "settings",
    "SavedGenerator": "files",
    "SavedSettings": "settings",
    "build_generator": "build",
    "read_saved": "files",
    "real_images_seen": "files",
    "save_generator": "files",
}

__getattr__ = on_first_use(__name__, _MODULES)
