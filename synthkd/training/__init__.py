"""Training: the loop of all trainings, its log, display and checkpoints, and the optimizer step."""

from synthkd.training.checkpoint import Checkpoint, CheckpointStore
from synthkd.training.display import Display
from synthkd.training.ema import WeightAverage
from synthkd.training.learner import Learner, optimizer_for, require_finite
from synthkd.training.loop import Action, Loop, Progress, Stage, Values
from synthkd.training.memory import fitting_batch_size, restored
from synthkd.training.monitor import Monitor, read_rows, series
from synthkd.training.shared_rows import Block, Rows

__all__ = [
    "Action",
    "Block",
    "Checkpoint",
    "CheckpointStore",
    "Display",
    "Learner",
    "Loop",
    "Monitor",
    "Progress",
    "Rows",
    "Stage",
    "Values",
    "WeightAverage",
    "fitting_batch_size",
    "optimizer_for",
    "read_rows",
    "require_finite",
    "restored",
    "series",
]
