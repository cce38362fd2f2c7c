"""Noise that is left out while a small epsilon is claimed is found by the audit; noise that is there is not."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F

from synthkd.models import build
from synthkd.privacy.audit import GROUPS, audit_model, logits_of
from synthkd.privacy.canaries import choose
from synthkd.privacy.dpsgd import PoissonSource, PrivateLearner, plan_mechanism
from synthkd.privacy.journal import Journal
from synthkd.privacy.membership import Answers
from synthkd.privacy.verdict import Claim, Verdict, verdict
from synthkd.settings import AugmentSettings, DPSettings, OptimizerSettings, ZooModel
from synthkd.types import ImageSpec

pytest.importorskip("opacus")
pytest.importorskip("dp_accounting")

SPEC = ImageSpec(1, 8, 8, 4)
STEPS = 80


def audited(noiseless: bool) -> tuple[Verdict, float]:
    """The verdict on a model that claims epsilon 1, trained on images of noise, all of them canaries."""
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(256, (300, 1, 8, 8), dtype=torch.uint8, generator=rng)
    canaries = choose(torch.randint(4, (300,), generator=rng), 4, 300, seed=1)
    included = canaries.rows[canaries.included]
    torch.manual_seed(0)
    model = build(ZooModel(arch="mlp", width=64, depth=1), SPEC)
    settings = DPSettings(epsilon=1.0, delta=1e-4, test_seed=0)
    planned = plan_mechanism(settings, len(included), 75, STEPS)
    optimizer = OptimizerSettings(kind="adam", lr=0.02, schedule="constant")
    cpu = torch.device("cpu")
    learner = PrivateLearner("teacher", model, optimizer, planned, settings, cpu, Journal(None))
    if noiseless:
        learner._optimizer.noise_multiplier = 0.0
    trained_on = images[included], canaries.labels[canaries.included]
    source = PoissonSource(*trained_on, planned, AugmentSettings(), learner.entropy("batch"), cpu)
    for step in range(STEPS):
        learner.update(partial(source.batch, step), F.cross_entropy, step)
    logits = logits_of(learner.finished().eval(), images[canaries.rows], cpu)
    answers = Answers(logits, torch.empty(0, *logits.shape), canaries.labels)
    found = audit_model(canaries, answers, None, None, 1e-4)
    spent = learner.spent()
    claim = Claim(spent.pld, spent.delta, spent.adjacency, "image", insecure=False)
    return verdict(claim, [found[group].one_run.epsilon for group in GROUPS], []), spent.pld


def test_noise_that_is_left_out_refutes_the_claim() -> None:
    said, claimed = audited(noiseless=True)
    assert claimed <= 1.0
    assert said.kind == "invalid"
    assert "is refuted" in said.text


def test_noise_that_is_there_does_not() -> None:
    said, _ = audited(noiseless=False)
    assert said.text.startswith("DP: epsilon=")
