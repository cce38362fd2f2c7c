"""The configuration of each generator, chosen by `kind:`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, Tag, model_validator

from synthkd.settings import (
    AugmentSettings,
    Batch,
    Count,
    Depth,
    Fraction,
    Noise,
    NonNegative,
    OptimizerSettings,
    PerClass,
    Positive,
    Seed,
    Settings,
    Units,
    Whole,
    by_kind,
)

ALONE = "batch_norm, one_hot, entropy, activation"
"""Terms of inversion that need no student."""


class InversionSettings(Settings):
    """A generator network trained against the frozen teacher alone, one short round at a time."""

    kind: Literal["inversion"] = "inversion"
    latent: Units = 100
    """Dimensions of the latent vector."""
    width: Units = 16
    """Channels of the generator's last hidden layer; the layers before have multiples of it."""
    batch_size: Batch = 64
    """Images a round makes."""
    steps: Count = 5
    """Optimiser steps a round takes."""
    lr: Positive = 5e-3
    """Learning rate of the network inside a round."""
    latent_lr: NonNegative = 1.5e-2
    """Learning rate of the latent vectors inside a round; 0 leaves them random."""
    batch_norm: NonNegative = 10.0
    """Weight of BatchNorm-statistics matching; 0 for a teacher without BatchNorm."""
    memory: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Weight of earlier rounds in the moments that are matched."""
    one_hot: NonNegative = 0.5
    """Weight of the teacher's cross-entropy to the asked label."""
    adversarial: NonNegative = 1.3
    """Weight, at difficulty 1, of the disagreement of student and teacher where both see the same class."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher wherever it is."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of teacher and student in which images are alike."""
    entropy: NonNegative = 0.0
    """Weight of the information entropy of the batch's mean prediction (balance of classes)."""
    activation: NonNegative = 0.0
    """Weight of the magnitude of the teacher's penultimate features."""

    @property
    def needs_student(self) -> bool:
        """Whether every term that has a weight compares the teacher with a student."""
        return not any((self.batch_norm, self.one_hot, self.entropy, self.activation))

    @model_validator(mode="after")
    def _has_a_term(self) -> InversionSettings:
        if self.needs_student and not any((self.adversarial, self.distillation, self.semantic)):
            raise ValueError(f"all terms have weight 0: give one to any of {ALONE}")
        return self


class PixelSettings(Settings):
    """Drawn images moved in pixel space to the teacher's classes; for teachers without BatchNorm."""

    kind: Literal["pixels"]
    batch_size: Batch = 107
    """Images a round makes, the drawn ones included."""
    drawn: Fraction = 0.4
    """Share of a round's images that are kept as drawn."""
    restart: Fraction = 0.5
    """Share of the moved images that start from results of earlier rounds rather than from drawn images."""
    steps: Count = 4
    """Gradient steps that move an image."""
    step_size: Positive = 0.2
    """Size of a step, in units of the image's logit."""
    momentum: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.7
    adversarial: NonNegative = 0.0
    """Weight, at difficulty 1, of the disagreement of student and teacher where both see the same class."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher wherever it is."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of teacher and student in which images are alike."""
    sample_steps: Count = 12
    """Gradient steps of an image that is asked for by its label."""


class CGANSettings(Settings):
    """A class-conditional GAN that learns from real images, many or few."""

    kind: Literal["cgan"]
    latent: Units = 128
    """Dimensions of the latent vector."""
    embedding: Units = 32
    """Dimensions of the label's embedding, which stands beside the latent vector."""
    width: Units = 32
    """Channels of the generator's last hidden layer; the layers before have multiples of it."""
    critic_width: Units = 32
    """Channels of the critic's first layer; the layers after have multiples of it."""
    batch_size: Batch = 64
    """Real and generated images a step, and images a round gives."""
    steps: Count = 10
    """Training steps of the generator a round takes."""
    critic_steps: Count = 1
    """Training steps of the critic for each of the generator's."""
    lr: Positive = 5e-4
    """Learning rate of the generator."""
    critic_lr: Positive = 1e-3
    """Learning rate of the critic."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the average of the generator's weights, which is what is sampled and saved."""
    head: Literal["projection", "auxiliary"] = "projection"
    """How the critic sees the class: in its score, or named by a second head."""
    spectral_norm: bool = False
    """Divide the weights of the critic's convolutions by their largest singular value. In place of `r1`, or with little
    of it, samples are surer and less varied."""
    r1: NonNegative = 0.3
    """Weight of the penalty on the critic's gradient at real images; what keeps a class varied."""
    augment: Fraction = 0.0
    """Probability of each augmentation of what the critic sees, real and generated; 0.5 where real images are few."""
    curriculum: bool = True
    """Let the difficulty set the length of latent vectors and the strength of `distillation`; false: both at their
    largest, whatever the difficulty."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of teacher and student in which images are alike."""
    measure_every: Count = 50
    """Rounds between two measurements of mode collapse against the holdout images."""


Sampler = Literal["ddpm", "ddim", "dpm++", "unipc"]
SamplerSteps = Annotated[int, Field(ge=1, le=1000)]
"""There are no more levels of noise."""


class DiffusionSettings(Settings):
    """A class-conditional diffusion model that learns from real images."""

    kind: Literal["diffusion"]
    channels: Annotated[tuple[Units, ...], Field(min_length=1, max_length=8)] = (32, 64)
    """Channels of the network's levels; each level has half the sides of the one before."""
    layers: Depth = 1
    """Residual blocks of a level."""
    attention: bool = False
    """Self-attention at the last level; doubles the time of a step on a CPU."""
    unshuffle: Annotated[int, Field(ge=1, le=64)] = 2
    """Blocks of this many pixels squared are folded into channels first; larger is faster and coarser."""
    batch_size: Batch = 100
    """Images a round gives."""
    real_batch: Batch = 64
    """Real images of a training step."""
    steps: Whole = 25
    """Training steps a round takes."""
    horizon: Count = 5000
    """Training steps, of all rounds together, over which the learning rate falls and the curriculum moves."""
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=2e-3, weight_decay=0.01, schedule="one_cycle", warmup=0.05, final=0.05, clip=1.0, ema=0.998
    )
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of the real images, for few of them; the samples then show it too."""
    label_drop: Fraction = 0.1
    """Share of real images that are shown with the null class, for classifier-free guidance."""
    min_snr: NonNegative = 0.0
    """Largest signal-to-noise ratio that counts in full (min-SNR weighting); 0: all noise levels count alike."""
    curriculum: Fraction = 0.0
    """Share of the horizon during which the noise grows from gentle to full; 0: full from the start."""
    sampler: Sampler = "unipc"
    sample_steps: SamplerSteps = 10
    """Steps of the sampler."""
    guidance: NonNegative = 1.8
    """Scale of classifier-free guidance at difficulty 0; more makes samples surer and less varied."""
    hard_guidance: NonNegative = 1.0
    """The same at difficulty 1."""
    teacher_guidance: NonNegative = 0.0
    """How far, in units of [-1, 1], a step's predicted images move along the gradient of the teacher's log-probability
    of the asked label (difficulty 0) or of teacher-student disagreement (difficulty 1)."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on predicted images while training."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of teacher and student in which predicted images are alike."""
    measure_every: Count = 50
    """Rounds between two measurements of the loss on holdout images."""


class MerfSettings(Settings):
    """A differentially private generator: one noisy release of mean embeddings, then training for ever."""

    kind: Literal["merf"]
    epsilon: Positive | None = None
    """Budget of the release under replacing one image, from which its noise follows."""
    noise_multiplier: Noise | None = None
    """The noise itself, over the sensitivity, in place of a budget."""
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = 1e-5
    """Must be below 1 / images."""
    features: Annotated[int, Field(ge=8, le=10**6)] = 8000
    """Random Fourier features of an image; more follow the kernel better and cost time, not privacy."""
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=100)] = (0.18, 0.09)
    """Root mean square differences of pixels, on the scale [0, 1], at which two images count as unlike; public numbers,
    each for whole images and for windows of half their sides."""
    latent: Units = 8
    """Dimensions of the latent vector."""
    width: Units = 256
    """Units of a hidden layer."""
    batch_size: Batch = 200
    """Images of a training step, and images a round gives."""
    steps: Count = 25
    """Training steps a round takes."""
    lr: Positive = 2e-3
    """Learning rate."""
    ema: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.99
    """Decay of the average of the weights, which is what is sampled and saved."""
    grain: NonNegative = 0.5
    """Samples get pixel noise, its standard deviation drawn for each between 0 and this. The release cannot tell fine
    texture, and a student must not learn that there is none; 0 for smooth images."""
    test_seed: Seed | None = None
    """For tests: noise that can be drawn again, which is NOT DP. None: from the operating system."""

    @model_validator(mode="after")
    def _one(self) -> MerfSettings:
        if (self.epsilon is None) == (self.noise_multiplier is None):
            raise ValueError("set epsilon or noise_multiplier, one of the two")
        return self


class PipelineSettings(Settings):
    """A finished class-conditional diffusers pipeline in a local folder (DiT, consistency models); only sampled."""

    kind: Literal["pipeline"]
    path: str
    """Folder that `save_pretrained` wrote; nothing is downloaded."""
    batch_size: Batch = 32
    """Images a round gives."""
    sample_steps: SamplerSteps = 10
    """Steps of the pipeline's sampler."""
    guidance: NonNegative = 4.0
    """Scale of classifier-free guidance at difficulty 0, where the pipeline has it."""
    hard_guidance: NonNegative = 1.0
    """The same at difficulty 1."""
    class_ids: Annotated[tuple[Whole, ...], PerClass] | None = None
    """The pipeline's class of each label; None: the same numbers."""


class SavedSettings(Settings):
    """A generator that an earlier run saved; it is sampled, never trained further."""

    kind: Literal["saved"]
    path: str
    """A run directory, or the `generator/` in one."""


class PythonGenerator(Settings):
    """A generator of your own: `target` is a `package.module:function` called with teacher, seed and the options."""

    kind: Literal["python"]
    target: str
    options: dict[str, Any] = Field(default_factory=dict)


GeneratorSettings = Annotated[
    Annotated[InversionSettings, Tag("inversion")]
    | Annotated[PixelSettings, Tag("pixels")]
    | Annotated[CGANSettings, Tag("cgan")]
    | Annotated[DiffusionSettings, Tag("diffusion")]
    | Annotated[MerfSettings, Tag("merf")]
    | Annotated[PipelineSettings, Tag("pipeline")]
    | Annotated[SavedSettings, Tag("saved")]
    | Annotated[PythonGenerator, Tag("python")],
    by_kind("inversion"),
]

FROM_REAL = (CGANSettings, DiffusionSettings, MerfSettings)
"""Generators that learn from real images."""
