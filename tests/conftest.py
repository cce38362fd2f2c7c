"""One torch thread, so that tests are deterministic and do not fight over cores, quick dry runs, full precision after
each test, and `--runslow`."""

import os
import sys
from collections.abc import Iterator

# Before torch is imported, and for the processes that tests start.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _quick_dry_runs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dry run takes each step once instead of up to 16 times to measure it, except in the tests of that."""
    timing = sys.modules.get("synthkd.pipelines.run.timing")
    if timing is not None and not request.node.path.name.endswith("timing.py"):
        monkeypatch.setattr(timing, "MOST_CALLS", 1)
    budget = sys.modules.get("synthkd.pipelines.student.budget")
    if budget is not None and not request.node.path.name.endswith("budget.py"):
        monkeypatch.setattr(budget, "MOST_PASSES", 1)


@pytest.fixture(autouse=True)
def _full_precision_afterwards() -> Iterator[None]:
    """A job in bf16, which `precision: auto` may come to, leaves its precision to every accelerator of the process."""
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None and state.AcceleratorState._shared_state.get("_mixed_precision", "no") != "no":
        state.AcceleratorState._reset_state(reset_partial_state=True)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--runslow", action="store_true", help="also run the tests marked slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--runslow"):
        for item in items:
            if "slow" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="slow; run with --runslow"))
