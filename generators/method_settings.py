"""Settings of the generators of published data-free methods, which `configs/methods/` names. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from synthkd.settings import Batch, BelowOne, Count, Fraction, NonNegative, Positive, Rate, Settings, Shift, Units


class ContinuousSettings(Settings):
    """A generator network that is trained throughout the run, on new latent vectors at every step (DAFL, DFAD, ZSKT,
    DFQ).

    No class can be asked for: the label of an image is what the teacher predicts.
    """

    kind: Literal["continuous"]
    latent: Units = 100
    """Dimensions of the latent vector."""
    width: Units = 16
    """Channels of the generator's last hidden layer; earlier layers have multiples of it."""
    batch_size: Batch = 64
    """Images of a step, and of a round."""
    steps: Count = 1
    """Optimiser steps of a round."""
    lr: Rate = 1e-3
    """Learning rate of the network, a number or a curve over the rounds of the run, extensions included."""
    beta1: BelowOne = 0.5
    """First beta of its Adam."""
    clip: Positive | None = None
    """Largest norm of its gradient; None: no clipping."""
    output: Literal["sigmoid", "normalised"] = "sigmoid"
    """Last layer: a sigmoid, or Tanh and BatchNorm without parameters, which gives each batch the mean and deviation of
    the teacher's normalisation. Behind a sigmoid all images can become one grey."""
    batch_norm: NonNegative = 0.0
    """Weight of the matching of BatchNorm statistics."""
    one_hot: NonNegative = 0.0
    """Weight of the cross-entropy of the teacher's logits to the class that they predict."""
    entropy: NonNegative = 0.0
    """Weight of the information entropy of the batch's mean prediction (balance of classes)."""
    activation: NonNegative = 0.0
    """Weight of the magnitude of the teacher's penultimate features."""
    adversarial: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on images for which both predict one class."""
    distillation: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on all images."""
    logit_gap: NonNegative = 0.0
    """Weight, at difficulty 1, of the mean absolute difference of the logits of student and teacher."""

    @property
    def opposes(self) -> bool:
        """Whether a term with a weight compares the teacher with a student."""
        return any((self.adversarial, self.distillation, self.logit_gap))

    @property
    def needs_student(self) -> bool:
        """Whether all terms with a weight compare the teacher with a student."""
        return not any((self.batch_norm, self.one_hot, self.entropy, self.activation))

    @model_validator(mode="after")
    def _has_a_term(self) -> ContinuousSettings:
        if self.needs_student and not self.opposes:
            raise ValueError("all terms have weight 0: give one to any of batch_norm, one_hot, adversarial, logit_gap")
        return self


class BatchwiseSettings(Settings):
    """What the generators share that optimise each batch of images anew."""

    batch_size: Batch = 64
    """Images of a round."""
    steps: Count = 100
    """Optimiser steps of a round."""
    lr: Positive = 1e-3
    """Learning rate of these steps."""
    batch_norm: NonNegative = 1.0
    """Weight of the matching of BatchNorm statistics; 0 for a teacher without BatchNorm."""
    memory: BelowOne = 0.0
    """Weight of earlier rounds in the batch moments that are matched to the stored statistics."""
    one_hot: NonNegative = 1.0
    """Weight of the cross-entropy of the teacher's logits to the label."""
    shift: Shift = 0
    """Largest shift, in pixels, of the images before the teacher sees them; new at every step. Each image is shifted by
    itself and gets black edges; those of `pixel_inversion` are rolled, the whole batch alike."""
    flip: bool = False
    """Flip them horizontally with probability one half: each by itself, those of `pixel_inversion` all or none."""

    @model_validator(mode="after")
    def _has_a_term(self) -> BatchwiseSettings:
        if not self.batch_norm and not self.one_hot:
            raise ValueError("batch_norm and one_hot have weight 0: give one of them a weight")
        return self


class PixelInversionSettings(BatchwiseSettings):
    """Images that are optimised themselves, from noise (DeepInversion, SRe2L)."""

    kind: Literal["pixel_inversion"]
    lr: Positive = 0.1
    """Learning rate of the pixels, in the units of the teacher's normalised input."""
    decay: bool = False
    """Let the learning rate fall to 0 within a round, by a cosine, and keep the images of the last step."""
    competition: NonNegative = 0.0
    """Weight, at difficulty 1, of the agreement of student and teacher, which is lowered (Adaptive DeepInversion)."""
    total_variation: NonNegative = 0.0
    """Weight of the differences of neighbouring pixels."""
    magnitude: NonNegative = 0.0
    """Weight of the Euclidean norm of the normalised pixels."""
    first_layer: Positive = 1.0
    """Weight of the statistics of the first BatchNorm layer, relative to those of the others."""
    crop: Fraction = 1.0
    """Smallest area of the random crop that the teacher sees, resized to the whole; 1: no crop. With crops the images
    of the last step are kept, without those of the step with the lowest loss."""


class _NetworkSettings(BatchwiseSettings):
    """What the batch-wise generators share that train a network."""

    width: Units = 16
    """Channels of the generator's last hidden layer; earlier layers have multiples of it."""
    adversarial: NonNegative = 0.0
    """Weight, at difficulty 1, of the divergence of student from teacher on images for which both predict one class."""


class ContrastiveSettings(_NetworkSettings):
    """A network that starts anew for every batch, whose images must differ from all earlier ones (CMI)."""

    kind: Literal["contrastive"]
    latent: Units = 100
    """Dimensions of the latent vectors, which are optimised too."""
    contrast: NonNegative = 0.8
    """Weight of the contrastive loss."""
    temperature: Positive = 0.2
    """Of the contrastive loss."""
    dimension: Units = 128
    """Dimensions in which images are compared."""
    negatives: Annotated[int, Field(ge=1, le=2**16)] = 256
    """Earlier images that a batch is compared with."""
    crop: Fraction = 0.25
    """Smallest area of the crop that is the second view of an image."""


class NoisyLabelSettings(_NetworkSettings):
    """A network from class embeddings to images through a random layer that is new for every batch (NAYER)."""

    kind: Literal["noisy_label"]
    batch_size: Annotated[Batch, Field(ge=2)] = 100
    """Images of a round."""
    steps: Count = 15
    """Optimiser steps of a round; 30 as published, which gave worse students in the same time."""
    lr: Positive = 4e-3
    """Learning rate of these steps."""
    batch_norm: NonNegative = 10.0
    """Weight of the matching of BatchNorm statistics; 0 for a teacher without BatchNorm."""
    memory: BelowOne = 0.9
    """Weight of earlier rounds in the batch moments that are matched to the stored statistics."""
    one_hot: NonNegative = 0.5
    """Weight of the cross-entropy of the teacher's logits to the label."""
    adversarial: NonNegative = 13.0
    """Weight, at difficulty 1, of the divergence of student from teacher on images for which both predict one class.
    At the difficulty 0.1, where runs of few minutes stay, that is 1.3; published is 1.33."""
    noise: Units = 256
    """Units of the random layer."""
    life: Count = 20
    """Rounds after which the network starts anew."""
