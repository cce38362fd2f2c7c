"""What a run directory holds, as the pages need it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from synthkd.errors import CheckpointError
from synthkd.reports.results import RESULT, DistillResult, JobResult, TeachResult, read_result
from synthkd.training.monitor import FILE_NAME, read_rows, series

REPORT = "report.html"


@dataclass(frozen=True)
class RunFiles:
    """What a run directory holds so far.

    Attributes:
        directory: the run directory.
        config_text: `config.yaml` as it stands, or None.
        config: the same, parsed; empty where there is none.
        rows: rows of the log.
        result: the content of `result.json`, or None while the run is not finished.
        samples: (step, PNG file) of each sample grid, by step.
    """

    directory: Path
    config_text: str | None
    config: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    result: JobResult | None
    samples: Sequence[tuple[int, Path]]

    @property
    def name(self) -> str:
        """Name of the run; without one, that of its directory."""
        named = None if self.result is None else self.result.name
        return str(named or self.config.get("name") or self.directory.resolve().name)

    @property
    def job(self) -> str:
        """Name of the job; that of an unfinished run is "distill" where its configuration has a student."""
        if self.result is not None:
            return self.result.job
        return "distill" if "student" in self.config else "teach"

    @property
    def has_real_images_alone(self) -> bool:
        """Whether the student learns from real images alone, which earlier versions wrote as generator.kind none."""
        sources, generator = self.config.get("transfer_set"), self.config.get("generator")
        kinds = {
            source.get("kind") if isinstance(source, dict) else None
            for source in (sources if isinstance(sources, list) else [sources])
        }
        return kinds == {"real"} or (isinstance(generator, dict) and generator.get("kind") == "none")

    @property
    def total_steps(self) -> int | None:
        """Steps that the configuration asks for, or None where it does not say."""
        phases = [phase for phase in self.config.get("phases") or () if isinstance(phase, dict)]
        steps = [n for phase in phases if isinstance(n := phase.get("steps", phase.get("rounds")), int)]
        training = self.config.get("training")
        if not phases and isinstance(training, dict) and isinstance(training.get("steps"), int):
            steps = [training["steps"]]
        more = [n for n in self.config.get("extended") or () if isinstance(n, int)]
        return sum(steps + more) or None

    @property
    def lacks_test_data(self) -> bool:
        """Whether the accuracy of the trained model is unknown because there is no real test data."""
        if self.config.get("test") is not None or series(self.rows, "test/accuracy")[0]:
            return False
        result = self.result
        if isinstance(result, DistillResult):
            return result.student.accuracy is None
        if isinstance(result, TeachResult):
            return result.teacher is None or result.teacher.accuracy is None
        return result is None and self.job == "distill" and bool(self.config)


def read_run(run: Path) -> RunFiles:
    """Read a run directory.

    Raises:
        CheckpointError: it is no run directory, or a file in it cannot be read.
    """
    config_path, rows_path = run / "config.yaml", run / FILE_NAME
    if not any(path.is_file() for path in (config_path, rows_path, run / RESULT)):
        raise CheckpointError(
            f"{run} is not a run directory: it has no config.yaml, {FILE_NAME} or {RESULT}; "
            "name the directory that a job printed as its output"
        )
    config_text = config_path.read_text(encoding="utf-8") if config_path.is_file() else None
    try:
        config = yaml.safe_load(config_text or "")
        config = config if isinstance(config, dict) else {}
        result = read_result(run, "distill" if "student" in config else "teach")
    except (yaml.YAMLError, ValueError) as error:
        path = config_path if isinstance(error, yaml.YAMLError) else run / RESULT
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path} cannot be read: {reason}; restore the file or run the job again") from error
    grids = [(re.fullmatch(r"step_(\d+)\.png", path.name), path) for path in (run / "samples").glob("step_*.png")]
    samples = sorted((int(match[1]), path) for match, path in grids if match)
    return RunFiles(run, config_text, config, read_rows(rows_path), result, samples)
