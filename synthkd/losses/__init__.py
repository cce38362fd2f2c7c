"""Losses as plain functions of tensors, and the objective that sums them with scheduled weights.

`synthkd.losses.logits` compares logits, `features` and `attention` intermediate features, `relations` and `contrast`
the images of a batch with each other, `alignment` distributions; `inversion` trains data-free generators.
"""

from synthkd.losses.alignment import heterogeneous_alignment, sinkhorn_wasserstein, sliced_wasserstein
from synthkd.losses.attention import attention_map, attention_transfer
from synthkd.losses.contrast import crd, instance_contrast, sskd
from synthkd.losses.features import hint
from synthkd.losses.inversion import (
    activation,
    adversarial,
    batch_norm,
    competition,
    information_entropy,
    logit_gap,
    magnitude,
    one_hot,
    total_variation,
)
from synthkd.losses.logits import (
    agreement,
    centred_difference,
    decoupled,
    distillation_loss,
    hard_label,
    kl_divergence,
    standardised,
)
from synthkd.losses.objective import Loss, Objective
from synthkd.losses.relations import (
    linear_cka,
    rkd_angle,
    rkd_distance,
    semantic_consistency,
    similarity_preserving,
)

__all__ = [
    "Loss",
    "Objective",
    "activation",
    "adversarial",
    "agreement",
    "attention_map",
    "attention_transfer",
    "batch_norm",
    "centred_difference",
    "competition",
    "crd",
    "decoupled",
    "distillation_loss",
    "hard_label",
    "heterogeneous_alignment",
    "hint",
    "information_entropy",
    "instance_contrast",
    "kl_divergence",
    "linear_cka",
    "logit_gap",
    "magnitude",
    "one_hot",
    "rkd_angle",
    "rkd_distance",
    "semantic_consistency",
    "similarity_preserving",
    "sinkhorn_wasserstein",
    "sliced_wasserstein",
    "sskd",
    "standardised",
    "total_variation",
]
