"""The configuration of `synthkd teach`."""

from __future__ import annotations

from synthkd.pipelines.config.base import TrainingConfig
from synthkd.settings import Count, DataSettings, ModelSettings, TeachTraining


class TeachConfig(TrainingConfig):
    """Train a teacher on real data."""

    data: DataSettings
    """Labelled real images to train on."""
    model: ModelSettings
    """The network, of the zoo or from elsewhere."""
    training: TeachTraining = TeachTraining()
    evaluate_every: Count = 500
    """Steps between evaluations on the test split; they are reported and influence nothing."""
