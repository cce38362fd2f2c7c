"""The quick recipe of `synthkd compress`, end to end: a teacher, a student, its exports, and an audit of the pipeline.

    python -m benchmarks.compress [--threads 2]

Run it alone on the machine. `seconds` is all of configs/compress_digits.yaml, from the first image to the reports:
the pipeline, three more runs of it for the audit (400 canaries, two references), and the control. A run that was
interrupted goes on, but its seconds are then only those of the last part. Written to benchmarks/results/compress.json.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from benchmarks import common
from benchmarks.common import Row
from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.run.result import Result
from synthkd.reports.results import JobResult

RUN = common.RUNS / "compress" / "digits"
RECIPE = common.ROOT / "configs" / "compress_digits.yaml"


def measured(result: Result[JobResult], seconds: float) -> Row:
    """What is kept of a run that took `seconds`."""
    values = result.values
    handover = values["handover"]
    cost, files = handover["cost"], handover["files"]
    return {
        "seconds": round(seconds, 1),
        "stages": values["cost"]["seconds"],
        "interrupted": values["interrupted"],
        "parameters": cost["student"]["parameters"] / cost["teacher"]["parameters"],
        "teacher": {"accuracy": values["teacher"]["accuracy"], "interval": values["teacher"]["accuracy_interval"]},
        "student": handover["student"]["accuracy"],
        "int8": {"smaller": files["onnx"]["bytes"] / files["int8"]["bytes"], "accuracy": files["int8"]["accuracy"]},
        "n": handover["student"]["accuracy"]["n"],
        "verdict": values["verdict"]["text"],
    }


def tables(content: Row) -> str:
    """The one row as a table."""
    teacher, student, int8 = content["teacher"], content["student"], content["int8"]
    cells = {
        "minutes": f"{content['seconds'] / 60:.1f}",
        "parameters of the teacher's": f"{content['parameters']:.1%}",
        "teacher, %": common.percent(teacher["accuracy"], teacher["interval"]),
        "student, %": common.percent(student["value"], (student["low"], student["high"])),
        "int8, %": f"{100 * int8['accuracy']['value']:.2f}",
        "int8 smaller": f"{int8['smaller']:.2f} x",
        "verdict": content["verdict"],
    }
    return common.table(" | ".join(cells), [list(cells.values())])


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe, print the row and write it."""
    parser = common.options("compress", __doc__)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    threads = parser.parse_args(argv).threads
    began = time.perf_counter()
    result = common.run(compress, CompressConfig, RECIPE, RUN, f"threads={threads}")
    row = measured(result, time.perf_counter() - began)
    print(tables(row))
    if row["seconds"] < sum(row["stages"].values()) - 1:
        print("the run was finished before; remove its directory to measure it")
        return
    versions = common.environment("torch", "onnxruntime", "numpy")
    common.save("compress", {**row, "threads": threads, **versions})


if __name__ == "__main__":
    main()
