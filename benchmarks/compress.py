"""The quick recipe of `synthkd compress`, end to end: a teacher, a student, its exports, and an audit of the pipeline.

    python benchmarks/compress.py [--threads 2]

Run it alone on the machine. `seconds` is all of configs/compress_digits.yaml, from the first image to the reports:
the pipeline, three more runs of it for the audit (400 canaries, two references), and the control. A run that was
interrupted goes on, but its seconds are then only those of the last part. Written to benchmarks/results/compress.json.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from synthkd.pipelines import compress
from synthkd.pipelines.config import CompressConfig
from synthkd.pipelines.run.result import Result
from synthkd.settings.load import load_config
from synthkd.system.files import write_atomically
from synthkd.system.hardware import describe

HERE = Path(__file__).parent
RUN, RESULTS = HERE / "runs" / "compress" / "digits", HERE / "results" / "compress.json"
RECIPE = HERE.parent / "configs" / "compress_digits.yaml"


def measured(result: Result, seconds: float) -> dict[str, Any]:
    """The row of a run."""
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


def table(row: dict[str, Any]) -> str:
    """The row as a table."""
    teacher, student, int8 = row["teacher"], row["student"], row["int8"]
    cells = {
        "minutes": f"{row['seconds'] / 60:.1f}",
        "parameters of the teacher's": f"{row['parameters']:.1%}",
        "teacher, %": f"{100 * teacher['accuracy']:.2f} [{', '.join(f'{100 * x:.2f}' for x in teacher['interval'])}]",
        "student, %": f"{100 * student['value']:.2f} [{100 * student['low']:.2f}, {100 * student['high']:.2f}]",
        "int8, %": f"{100 * int8['accuracy']['value']:.2f}",
        "int8 smaller": f"{int8['smaller']:.2f} x",
        "verdict": row["verdict"],
    }
    return "\n".join([f"| {' | '.join(cells)} |", "|" + "---|" * len(cells), f"| {' | '.join(cells.values())} |"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2, help="of torch")
    arguments = parser.parse_args()
    began = time.perf_counter()
    result = compress(load_config(CompressConfig, RECIPE, [f"out={RUN}", f"threads={arguments.threads}"]))
    assert isinstance(result, Result)
    row = measured(result, time.perf_counter() - began)
    print(table(row))
    if row["seconds"] < sum(row["stages"].values()) - 1:
        print("the run was finished before; remove its directory to measure it")
        return
    content = {
        "command": "python benchmarks/compress.py",
        **row,
        "threads": arguments.threads,
        "versions": {name: version(name) for name in ("torch", "onnxruntime", "numpy")},
        "hardware": describe(torch.device("cpu")),
    }
    write_atomically(RESULTS, json.dumps(content, indent=1).encode() + b"\n")


if __name__ == "__main__":
    main()
