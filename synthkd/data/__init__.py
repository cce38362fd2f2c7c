"""Images to train on and to score: the memory bank, and batches that mix generated and real images."""

from synthkd.data.augment import by_difficulty
from synthkd.data.bank import BankImage, MemoryBank
from synthkd.data.epochs import EpochSource
from synthkd.data.hybrid import REST, HybridDataset
from synthkd.data.own import DatasetSource, FunctionSource
from synthkd.data.replay import ClassBalancedReplay, PrioritizedReplay, UniformReplay
from synthkd.data.sources import GeneratedSource, PartSource, RealImages, RealSource, Source
from synthkd.data.stream import ImageStream

__all__ = [
    "REST",
    "BankImage",
    "ClassBalancedReplay",
    "DatasetSource",
    "EpochSource",
    "FunctionSource",
    "GeneratedSource",
    "HybridDataset",
    "ImageStream",
    "MemoryBank",
    "PartSource",
    "PrioritizedReplay",
    "RealImages",
    "RealSource",
    "Source",
    "UniformReplay",
    "by_difficulty",
]
