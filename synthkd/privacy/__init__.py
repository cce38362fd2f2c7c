"""What models and synthetic images reveal about private images: accounting, DP-SGD, attacks, bounds and copy tests."""

from synthkd.privacy.accounting import Epsilon, check_delta, epsilon
from synthkd.privacy.audit import GroupAudit, answers_of, audit_lists
from synthkd.privacy.blind import blind_baseline
from synthkd.privacy.calibration import noise_for, release_noise_for
from synthkd.privacy.canaries import Canaries, OneRun, choose, one_run_epsilon
from synthkd.privacy.claims import dp_statement, ledger_of
from synthkd.privacy.copies import CopyTest, NearCopies, copy_test, copy_tests
from synthkd.privacy.intervals import Area, auc, clopper_pearson
from synthkd.privacy.journal import Journal
from synthkd.privacy.ledger import Adjacency, Event, Ledger, PoissonSteps, Release
from synthkd.privacy.membership import Answers, attacks, calibrated, headline, lira, log_odds, rmia
from synthkd.privacy.rates import Attack, RateAt, WorstClass, attack
from synthkd.privacy.ratio import RateRatio, student_over_teacher, tpr_ratio

__all__ = [
    "Adjacency",
    "Answers",
    "Area",
    "Attack",
    "Canaries",
    "CopyTest",
    "Epsilon",
    "Event",
    "GroupAudit",
    "Journal",
    "Ledger",
    "NearCopies",
    "OneRun",
    "PoissonSteps",
    "RateAt",
    "RateRatio",
    "Release",
    "WorstClass",
    "answers_of",
    "attack",
    "attacks",
    "auc",
    "audit_lists",
    "blind_baseline",
    "calibrated",
    "check_delta",
    "choose",
    "clopper_pearson",
    "copy_test",
    "copy_tests",
    "dp_statement",
    "epsilon",
    "headline",
    "ledger_of",
    "lira",
    "log_odds",
    "noise_for",
    "one_run_epsilon",
    "release_noise_for",
    "rmia",
    "student_over_teacher",
    "tpr_ratio",
]
