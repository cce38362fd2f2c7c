"""The typed content of result.json: a frozen dataclass for each job, one writer and one reader."""

from synthkd.reports.results.audit import AuditedModel, AuditedSet, AuditResult, CopyResult, RatioResult
from synthkd.reports.results.base import FileEntry, Hardware, JobResult, RunCost
from synthkd.reports.results.codec import from_json, to_json
from synthkd.reports.results.compression import (
    Capacity,
    CapacityOfModel,
    CompressResult,
    ExportedFile,
    FrontRow,
    Handover,
    HandoverCost,
    HandoverStudent,
    LeastCapacity,
    MeasuredFile,
    SearchResult,
)
from synthkd.reports.results.dataset import DatasetDescription, DatasetScores, DatasetTeacher, GenerateResult
from synthkd.reports.results.evaluation import EvaluateResult, GeneratedSet, NetworkName, SetName, SetResult
from synthkd.reports.results.file import KINDS, RESULT, parse_result, read_result, result_values, write_result
from synthkd.reports.results.models import (
    Agreement,
    Baseline,
    DataDescription,
    ModelDescription,
    ModelResult,
    QualityResult,
    Queries,
    RaisedAlarm,
    Ratio,
    StudentResult,
    TeamTeacher,
)
from synthkd.reports.results.network import Against, EvaluatedNetwork, NetworkResult
from synthkd.reports.results.training import (
    AccuracyEstimate,
    BudgetResult,
    DistillResult,
    EarlierResult,
    Evaluations,
    FittedGap,
    ReleaseResult,
    RunningScoresResult,
    SeedRun,
    SeedsResult,
    Spread,
    TeachResult,
)
