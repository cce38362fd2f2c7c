"""Parts of `synthkd generate`: the request, the sampling and the statistics of a dataset."""

from synthkd.pipelines.dataset.request import Request, class_counts, plan_layout, read_request
from synthkd.pipelines.dataset.sampling import ChunkSampler, Sampling
from synthkd.pipelines.dataset.statistics import DatasetStatistics

__all__ = [
    "ChunkSampler",
    "DatasetStatistics",
    "Request",
    "Sampling",
    "class_counts",
    "plan_layout",
    "read_request",
]
