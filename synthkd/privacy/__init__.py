"""What a model and a synthetic set give away about the images behind them: attacks, bounds and copy tests."""

from synthkd.privacy.blind import BlindBaseline, blind_baseline
from synthkd.privacy.canaries import Canaries, OneRun, choose, one_run_epsilon
from synthkd.privacy.copies import CopyTest, NearCopies, copy_test, copy_tests
from synthkd.privacy.intervals import Area, auc, clopper_pearson
from synthkd.privacy.membership import (
    Answers,
    attacks,
    calibrated,
    headline,
    lira,
    log_odds,
    rmia,
    tune_offline_a,
)
from synthkd.privacy.rates import Attack, RateAt, WorstClass, attack, ceiling
from synthkd.privacy.ratio import RateRatio, tpr_ratio

__all__ = [
    "Answers",
    "Area",
    "Attack",
    "BlindBaseline",
    "Canaries",
    "CopyTest",
    "NearCopies",
    "OneRun",
    "RateAt",
    "RateRatio",
    "WorstClass",
    "attack",
    "attacks",
    "auc",
    "blind_baseline",
    "calibrated",
    "ceiling",
    "choose",
    "clopper_pearson",
    "copy_test",
    "copy_tests",
    "headline",
    "lira",
    "log_odds",
    "one_run_epsilon",
    "rmia",
    "tpr_ratio",
    "tune_offline_a",
]
