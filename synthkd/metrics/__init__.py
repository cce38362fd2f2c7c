"""Metrics: pure functions of predictions and features."""

from synthkd.metrics.utility import Proportion, accuracy, proportion

__all__ = ["Proportion", "accuracy", "proportion"]
