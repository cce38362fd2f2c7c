"""The configuration of each generator, selected by `kind:`. Nothing here imports torch."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, Tag, model_validator

from synthkd.generators.method_settings import (
    BatchwiseSettings,
    ContinuousSettings,
    ContrastiveSettings,
    NoisyLabelSettings,
    PixelInversionSettings,
)
from synthkd.settings import (
    AugmentSettings,
    Batch,
    BelowOne,
    Count,
    Depth,
    Fraction,
    NonNegative,
    OptimizerSettings,
    PathText,
    PerClass,
    Positive,
    PrivacySettings,
    Settings,
    Shift,
    Units,
    Whole,
    by_kind,
)

WITHOUT_STUDENT = "batch_norm, one_hot, entropy, activation"
"""Terms of inversion that need no student."""


class InversionSettings(Settings):
    """A generator network that is trained against the frozen teacher alone, in short rounds."""

    kind: Literal["inversion"] = "inversion"
    latent: Units = 100
    """Dimensions of the latent vector."""
    width: Units = 16
    """Channels of the generator's last hidden layer; earlier layers have multiples of it."""
    batch_size: Batch = 64
    """Images of a round."""
    steps: Count = 5
    """Optimiser steps of a round."""
    lr: Positive = 5e-3
    """Learning rate of the network inside a round."""
    latent_lr: NonNegative = 1.5e-2
    """Learning rate of the latent vectors inside a round; 0 keeps them as drawn."""
    batch_norm: NonNegative = 10.0
    """Weight of the matching of BatchNorm statistics; 0 for a teacher without BatchNorm."""
    memory: BelowOne = 0.9
    """Weight of earlier rounds in the batch moments that are matched to the stored statistics."""
    one_hot: NonNegative = 0.5
    """Weight of the cross-entropy of the teacher's logits to the label."""
    adversarial: NonNegative = 1.3
    """Weight, at difficulty 1, of the divergence of student from teacher on images for which both predict one class."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on all images."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of student and teacher in which images are similar."""
    entropy: NonNegative = 0.0
    """Weight of the information entropy of the batch's mean prediction (balance of classes)."""
    activation: NonNegative = 0.0
    """Weight of the magnitude of the teacher's penultimate features."""
    shift: Shift = 0
    """Largest shift, in pixels, of the images before the networks see them; new at every step of a round."""
    flip: bool = False
    """Flip them horizontally with probability one half."""

    @property
    def needs_student(self) -> bool:
        """Whether all terms with a weight compare the teacher with a student."""
        return not any((self.batch_norm, self.one_hot, self.entropy, self.activation))

    @model_validator(mode="after")
    def _has_a_term(self) -> InversionSettings:
        if self.needs_student and not any((self.adversarial, self.distillation, self.semantic)):
            raise ValueError(f"all terms have weight 0: give one to any of {WITHOUT_STUDENT}")
        return self


class PixelSettings(Settings):
    """Drawn images that are moved in pixel space to the teacher's classes; for teachers without BatchNorm."""

    RETIRED: ClassVar = {"restart": 0.5, "step_size": 0.2, "momentum": 0.7}

    kind: Literal["pixels"]
    batch_size: Batch = 107
    """Images of a round, the drawn ones included."""
    drawn: Fraction = 0.4
    """Share of a round's images that stay as drawn."""
    steps: Count = 4
    """Gradient steps on an image of a round."""
    adversarial: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on images for which both predict one class."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on all images."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of student and teacher in which images are similar."""
    sample_steps: Count = 12
    """Gradient steps on an image that is sampled for a label."""


class ProceduralSettings(Settings):
    """Drawn images as they are, each labelled by the teacher; for teachers that give answers alone."""

    kind: Literal["procedural"]
    batch_size: Batch = 64
    """Images of a round."""


class CGANSettings(Settings):
    """A class-conditional GAN that learns from real images, many or few."""

    kind: Literal["cgan"]
    latent: Units = 128
    """Dimensions of the latent vector."""
    embedding: Units = 32
    """Dimensions of the label's embedding, which is concatenated with the latent vector."""
    width: Units = 32
    """Channels of the generator's last hidden layer; earlier layers have multiples of it."""
    critic_width: Units = 32
    """Channels of the critic's first layer; later layers have multiples of it."""
    batch_size: Batch = 64
    """Real images and generated images of a training step, and images of a round."""
    steps: Count = 10
    """Training steps of the generator in a round."""
    critic_steps: Count = 1
    """Training steps of the critic for each of the generator's."""
    lr: Positive = 5e-4
    """Learning rate of the generator."""
    critic_lr: Positive = 1e-3
    """Learning rate of the critic."""
    ema: BelowOne = 0.999
    """Decay of the average of the generator's weights, which is what is sampled and saved."""
    head: Literal["projection", "auxiliary"] = "projection"
    """How the critic uses the class: `projection` adds it to the score, `auxiliary` predicts it with a second head."""
    spectral_norm: bool | Literal["both"] = False
    """Divide the weights of the critic's convolutions by their largest singular value; both: those of the generator
    too. With this and a small `r1`, or none, samples are more certain and less varied."""
    r1: NonNegative = 0.3
    """Weight of the penalty on the critic's gradient at real images; it keeps the images of a class varied."""
    augment: Fraction = 0.0
    """Probability of each augmentation of the critic's real and generated inputs; 0.5 for few real images."""
    curriculum: bool = True
    """Whether the difficulty sets the length of latent vectors and the strength of `distillation`; if not, both are as
    at difficulty 1."""
    one_hot: NonNegative = 0.0
    """Weight of the cross-entropy of the teacher's predictions against the labels. It keeps the samples to their labels
    where the critic has few real images, or few steps, to learn the classes from."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of student and teacher in which images are similar."""
    measure_every: Count = 50
    """Rounds between two measurements of mode collapse against the holdout images."""


Sampler = Literal["ddpm", "ddim", "dpm++", "unipc"]
SamplerSteps = Annotated[int, Field(ge=1, le=1000)]
"""At most one step for each of the 1000 noise levels."""


class DiffusionSettings(Settings):
    """A class-conditional diffusion model that learns from real images."""

    kind: Literal["diffusion"]
    channels: Annotated[tuple[Units, ...], Field(min_length=1, max_length=8)] = (32, 64)
    """Channels of the network's levels; each level halves the sides of the one before."""
    layers: Depth = 1
    """Residual blocks of a level."""
    attention: bool = False
    """Self-attention at the last level; doubles the time of a step on a CPU."""
    unshuffle: Annotated[int, Field(ge=1, le=64)] = 2
    """Side, in pixels, of the blocks that are folded into channels; larger is faster and coarser."""
    batch_size: Batch = 100
    """Images of a round."""
    real_batch: Batch = 64
    """Real images of a training step."""
    steps: Whole = 25
    """Training steps of a round."""
    horizon: Count = 5000
    """Training steps, over all rounds, for the schedules of the learning rate and the curriculum."""
    optimizer: OptimizerSettings = OptimizerSettings(
        lr=2e-3, weight_decay=0.01, schedule="one_cycle", warmup=0.05, final=0.05, clip=1.0, ema=0.998
    )
    augment: AugmentSettings = AugmentSettings()
    """Augmentation of the real images, for small sets of them; samples then look augmented too."""
    label_drop: Fraction = 0.1
    """Share of real images that get the null class in training, for classifier-free guidance."""
    min_snr: NonNegative = 0.0
    """Largest signal-to-noise ratio that counts in full (min-SNR weighting); 0: equal weights for all noise levels."""
    curriculum: Fraction = 0.0
    """Share of the horizon over which the training noise grows to the full schedule; 0: full from the start."""
    sampler: Sampler = "unipc"
    """Numerical method of sampling."""
    sample_steps: SamplerSteps = 10
    """Steps of the sampler."""
    guidance: NonNegative = 1.8
    """Scale of classifier-free guidance at difficulty 0; larger makes samples more certain and less varied."""
    hard_guidance: NonNegative = 1.0
    """The same at difficulty 1."""
    teacher_guidance: NonNegative = 0.0
    """Distance, in units of [-1, 1], by which a sampler step moves its predicted images along a gradient: that of the
    teacher's log-probability of the label (difficulty 0), that of the divergence of student from teacher
    (difficulty 1)."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on the images predicted in training."""
    semantic: NonNegative = 0.0
    """Weight of the consistency of student and teacher in which predicted images are similar."""
    measure_every: Count = 50
    """Rounds between two measurements of the loss on holdout images."""


class MerfSettings(PrivacySettings):
    """A differentially private generator: one noisy release of mean embeddings, then any number of training steps.

    The budget is that of the release. Neighbouring datasets differ by one image that is replaced.
    """

    kind: Literal["merf"]
    features: Annotated[int, Field(ge=8, le=10**6)] = 8000
    """Random Fourier features of an image; more approximate the kernel better and cost time, not privacy."""
    bandwidths: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=100)] = (0.18, 0.09)
    """Bandwidths of the kernel: root mean square differences of pixels, on the scale [0, 1], from which on two images
    count as different. Public numbers, each used for whole images and for windows of half their sides."""
    latent: Units = 8
    """Dimensions of the latent vector."""
    width: Units = 256
    """Units of a hidden layer."""
    batch_size: Batch = 200
    """Images of a training step, and images of a round."""
    steps: Count = 25
    """Training steps of a round."""
    lr: Positive = 2e-3
    """Learning rate."""
    ema: BelowOne = 0.99
    """Decay of the average of the weights, which is what is sampled and saved."""
    grain: NonNegative = 0.5
    """Samples get pixel noise; its standard deviation is drawn for each sample between 0 and this. The release does not
    contain fine texture, and a student should not learn that images have none. 0: smooth images."""


class PipelineSettings(Settings):
    """A trained class-conditional diffusers pipeline in a local folder (DiT, consistency models), only sampled."""

    kind: Literal["pipeline"]
    path: PathText
    """Folder written by `save_pretrained`; nothing is downloaded."""
    batch_size: Batch = 32
    """Images of a round."""
    sample_steps: SamplerSteps = 10
    """Steps of the pipeline's sampler."""
    guidance: NonNegative = 4.0
    """Scale of classifier-free guidance at difficulty 0, if the pipeline has guidance."""
    hard_guidance: NonNegative = 1.0
    """The same at difficulty 1."""
    class_ids: Annotated[tuple[Whole, ...], PerClass] | None = None
    """The pipeline's class for each label; None: the label itself."""


class SavedSettings(Settings):
    """A generator that an earlier run saved; it is only sampled."""

    kind: Literal["saved"]
    path: PathText
    """A run directory, or the `generator/` inside one."""


class PythonGenerator(Settings):
    """A generator of your own: the result of `function(teacher=..., seed=..., **options)`."""

    kind: Literal["python"]
    target: str
    """The function, as `package.module:function`."""
    options: dict[str, Any] = Field(default_factory=dict)
    """Further keyword arguments of the function."""


_Named = (
    Annotated[InversionSettings, Tag("inversion")]
    | Annotated[PixelSettings, Tag("pixels")]
    | Annotated[ProceduralSettings, Tag("procedural")]
    | Annotated[ContinuousSettings, Tag("continuous")]
    | Annotated[ContrastiveSettings, Tag("contrastive")]
    | Annotated[NoisyLabelSettings, Tag("noisy_label")]
    | Annotated[PixelInversionSettings, Tag("pixel_inversion")]
    | Annotated[CGANSettings, Tag("cgan")]
    | Annotated[DiffusionSettings, Tag("diffusion")]
    | Annotated[MerfSettings, Tag("merf")]
    | Annotated[PipelineSettings, Tag("pipeline")]
    | Annotated[SavedSettings, Tag("saved")]
    | Annotated[PythonGenerator, Tag("python")]
)
GeneratorSettings = Annotated[_Named, by_kind("inversion")]


class ChosenByTeacher(Settings):
    """The generator that suits the teacher, one of `CHOICES`, with keys of the kind that it turns out to be."""

    model_config = ConfigDict(extra="allow")
    kind: Literal["auto"]

    @model_validator(mode="after")
    def _has_such_keys(self) -> ChosenByTeacher:
        for key in self.model_extra or {}:
            if not any(key in one.model_fields for one in CHOICES):
                raise ValueError(f"{key}: no kind that a teacher chooses has such a key")
        return self


CHOICES = (NoisyLabelSettings, InversionSettings, PixelSettings, ProceduralSettings)
"""Settings of the generators that a teacher chooses."""
GeneratorOrAuto = Annotated[Annotated[ChosenByTeacher, Tag("auto")] | _Named, by_kind("inversion")]
"""A generator, or `auto`. Keys without a kind are those of inversion."""

FROM_REAL = (CGANSettings, DiffusionSettings, MerfSettings)
"""Settings of the generators that learn from real images."""

TeacherAccess = Literal["labels", "logits", "gradients", "batch_norm"]
"""What is taken from a teacher: predicted classes, logits, gradients to its inputs, stored BatchNorm statistics."""


def access_of(generator: GeneratorOrAuto) -> frozenset[TeacherAccess]:
    """What a generator takes from its teacher; a generator of kind `python` may take everything."""
    # All take logits, which every round stores beside its images. Gradients are for terms that move images or weights.
    match generator:
        case InversionSettings() | ContinuousSettings() | BatchwiseSettings():
            # Contrastive compares features at BatchNorm layers, whatever the weight of their statistics.
            if generator.batch_norm or isinstance(generator, ContrastiveSettings):
                return frozenset({"logits", "gradients", "batch_norm"})
            return frozenset({"logits", "gradients"})
        case PixelSettings():
            return frozenset({"logits", "gradients"})
        case CGANSettings() if generator.one_hot or generator.distillation or generator.semantic:
            return frozenset({"logits", "gradients"})
        case DiffusionSettings() if generator.distillation or generator.semantic or generator.teacher_guidance:
            return frozenset({"logits", "gradients"})
        case PythonGenerator():
            return frozenset({"logits", "gradients", "batch_norm"})
        case _:
            return frozenset({"logits"})
