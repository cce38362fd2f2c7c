"""What models and synthetic images reveal about private images: what may be claimed, and what can be measured.

Claims: `ledger` and `journal` count the noisy queries, `accounting` computes their epsilon and `calibration` the noise
for a budget, `dpsgd` trains where `own_gradients` finds that images stay apart, `claims` writes down what holds.
Measurements: `canaries` and `membership` attack a model, `rates` and `ratio` bound what an attack shows, `copies`
compares images, `blind` needs no model. `audit` puts them together; `verdict` and `report` say what follows. A public
name is imported on first use, since a journal must not wait for torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from synthkd.imports import on_first_use

if TYPE_CHECKING:
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

_MODULES = {
    "Adjacency": "ledger",
    "Answers": "membership",
    "Area": "intervals",
    "Attack": "rates",
    "Canaries": "canaries",
    "CopyTest": "copies",
    "Epsilon": "accounting",
    "Event": "ledger",
    "GroupAudit": "audit",
    "Journal": "journal",
    "Ledger": "ledger",
    "NearCopies": "copies",
    "OneRun": "canaries",
    "PoissonSteps": "ledger",
    "RateAt": "rates",
    "RateRatio": "ratio",
    "Release": "ledger",
    "WorstClass": "rates",
    "answers_of": "audit",
    "attack": "rates",
    "attacks": "membership",
    "auc": "intervals",
    "audit_lists": "audit",
    "blind_baseline": "blind",
    "calibrated": "membership",
    "check_delta": "accounting",
    "choose": "canaries",
    "clopper_pearson": "intervals",
    "copy_test": "copies",
    "copy_tests": "copies",
    "dp_statement": "claims",
    "epsilon": "accounting",
    "headline": "membership",
    "ledger_of": "claims",
    "lira": "membership",
    "log_odds": "membership",
    "noise_for": "calibration",
    "one_run_epsilon": "canaries",
    "release_noise_for": "calibration",
    "rmia": "membership",
    "student_over_teacher": "ratio",
    "tpr_ratio": "ratio",
}

__getattr__ = on_first_use(__name__, _MODULES)
