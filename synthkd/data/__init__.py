"""Images to train on and to score: the memory bank, and batches that mix generated and real images."""

from synthkd.data.bank import MemoryBank
from synthkd.data.hybrid import HybridDataset

__all__ = ["HybridDataset", "MemoryBank"]
