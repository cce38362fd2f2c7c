"""The file result.json: its one writer and its one reader."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from synthkd.reports.results.audit import AuditResult
from synthkd.reports.results.base import LAST, JobResult
from synthkd.reports.results.codec import from_json, to_json
from synthkd.reports.results.compression import CompressResult
from synthkd.reports.results.dataset import GenerateResult
from synthkd.reports.results.evaluation import EvaluateResult
from synthkd.reports.results.network import NetworkResult
from synthkd.reports.results.training import DistillResult, ReleaseResult, SeedsResult, TeachResult
from synthkd.system.files import write_atomically
from synthkd.system.sealed import sealed, unsealed

RESULT = "result.json"
KINDS: Mapping[str, type[JobResult]] = {
    "audit": AuditResult,
    "compress": CompressResult,
    "distill": DistillResult,
    "distill_seeds": SeedsResult,
    "evaluate": EvaluateResult,
    "evaluate_model": NetworkResult,
    "generate": GenerateResult,
    "release": ReleaseResult,
    "teach": TeachResult,
}


def result_values(result: JobResult) -> dict[str, Any]:
    """The result as it stands in result.json: first what every job has, then the job's own keys, files and hardware."""
    values: dict[str, Any] = to_json(result)
    for key in LAST:
        if key in values:
            values[key] = values.pop(key)
    return values


def write_result(run: Path, result: JobResult) -> None:
    """Write `run/result.json`, atomically and with its own checksum.

    Raises:
        ValueError: a number that is not finite.
    """
    write_atomically(run / RESULT, sealed(result_values(result)))


def read_result(run: Path, default_job: str | None = None) -> JobResult | None:
    """The result of a run, or None where it is not finished.

    Args:
        run: the run directory.
        default_job: of a file that does not name its job.

    Raises:
        ValueError: the file is damaged, or no result of a job.
    """
    path = run / RESULT
    return parse_result(unsealed(path.read_bytes()), default_job) if path.exists() else None


def parse_result(values: Mapping[str, Any], default_job: str | None = None) -> JobResult:
    """The result of which `result_values` gave the values; for `default_job` and errors see `read_result`."""
    kind = KINDS.get(str(values.get("job", default_job)))
    if kind is None:
        raise ValueError("it is no result of a job")
    return from_json(kind, values)
