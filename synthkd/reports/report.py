"""The report of a run: the pages that its job has, made from the files of the run directory alone."""

from __future__ import annotations

from pathlib import Path

from synthkd.reports.compression import compression_page
from synthkd.reports.dataset import dataset_page
from synthkd.reports.evaluation import evaluation_page
from synthkd.reports.files import REPORT, read_run
from synthkd.reports.network import network_page
from synthkd.reports.privacy import PAGE, write_privacy_page
from synthkd.reports.results import (
    AuditResult,
    CompressResult,
    EvaluateResult,
    GenerateResult,
    NetworkResult,
    SeedsResult,
)
from synthkd.reports.run import run_page
from synthkd.reports.seeds import seeds_page
from synthkd.system.files import write_atomically

REFRESH = b'http-equiv="refresh"'
"""In the page of a run that goes on, and in no other."""


def write_report(run: Path) -> Path:
    """Write the pages of a run, finished or not, and return the path of its `report.html`.

    The page is that of the job which result.json names: training, dataset, evaluation or compression; `audit` and
    `compress` have `privacy_report.html` too, which `report.html` of an audit repeats. Pages are self-contained: no
    script, no network. Without result.json the page shows what is there so far, and reloads itself.

    Raises:
        CheckpointError: `run` is not a run directory, or a file in it cannot be read.
    """
    run = Path(run)
    files = read_run(run)
    match files.result:
        case AuditResult():
            page = write_privacy_page(run).read_bytes()
        case CompressResult() as result:
            write_privacy_page(run)
            page = compression_page(files, result)
        case EvaluateResult() as result:
            page = evaluation_page(files, result)
        case NetworkResult() as result:
            page = network_page(files, result)
        case GenerateResult() as result:
            page = dataset_page(files, result)
        case SeedsResult() as result:
            page = seeds_page(files, result)
        case _:
            page = run_page(files)
    write_atomically(run / REPORT, page)
    return run / REPORT


def has_report(run: Path, job: str) -> bool:
    """Whether all pages of a finished run of `job` are there; the page of a run that goes on does not count."""
    pages = (REPORT, PAGE) if job in ("audit", "compress") else (REPORT,)
    return all((run / page).exists() and REFRESH not in (run / page).read_bytes() for page in pages)
