"""Real datasets in three parts to train on, and sets of images in any form to score."""

from synthkd.data.read.real import load_splits
from synthkd.data.read.sample_set import Samples
from synthkd.data.read.samples import open_samples
from synthkd.data.read.splits import RealData, Splits, channel_statistics

__all__ = ["RealData", "Samples", "Splits", "channel_statistics", "load_splits", "open_samples"]
