"""A verdict never says more than was shown, and a report holds what a reader needs and nothing private."""

import json
import math

import pytest
import torch

from synthkd.metrics.utility import Proportion
from synthkd.privacy.audit import AVERAGE_CASE, GIVEN
from synthkd.privacy.copies import copy_test
from synthkd.privacy.report import FLOWS, plain, privacy_report
from synthkd.privacy.verdict import Check, Claim, rounded_up, verdict
from synthkd.settings import Flow

CLAIM = Claim(epsilon=1.0, delta=1e-5, adjacency="add_or_remove_one", unit="image", insecure=False)
GOOD, BAD = Check("blind baseline", True, "fine"), Check("positive control", False, "nobody was caught")


@pytest.mark.parametrize(
    ("claim", "bounds", "checks", "kind", "text"),
    [
        (None, [0.0], [GOOD], "no_guarantee", "NO GUARANTEE (measured only)"),
        (None, [], [], "no_guarantee", "NO GUARANTEE (not measured either)"),
        (None, [], [GOOD], "no_guarantee", "NO GUARANTEE (measured only)"),
        (CLAIM, [], [], "dp", "DP: epsilon=1, delta=1e-05"),
        (CLAIM, [0.0, 0.99], [GOOD], "dp", "DP: epsilon=1, delta=1e-05"),
        (
            CLAIM,
            [0.0, 1.01],
            [GOOD],
            "invalid",
            "INVALID AUDIT (claimed epsilon 1 is refuted: the audit shows at least 1",
        ),
        (CLAIM, [0.0], [GOOD, BAD], "invalid", "INVALID AUDIT (positive control: nobody was caught)"),
        (None, [5.0], [BAD], "invalid", "INVALID AUDIT (positive control: nobody was caught)"),
    ],
)
def test_the_verdict(claim: Claim | None, bounds: list[float], checks: list[Check], kind: str, text: str) -> None:
    said = verdict(claim, bounds, checks)
    assert said.kind == kind
    assert said.text.startswith(text)
    assert not any(word in (said.text + said.detail).lower() for word in ("safe", "anonym", " private,"))


@pytest.mark.parametrize(("changes", "why"), [({"insecure": True}, "from a seed"), ({"epsilon": None}, "noise is 0")])
def test_a_claim_without_secret_noise_is_none(changes: dict[str, object], why: str) -> None:
    said = verdict(Claim(**{**vars(CLAIM), **changes}), [0.0], [GOOD])  # type: ignore[arg-type]
    assert said.kind == "no_guarantee"
    assert said.detail.startswith("NOT DP")
    assert why in said.detail


def test_only_the_flows_with_noise_pass_from_private_images_through_noise() -> None:
    touched = {flow: [t.noisy for t in touches if t.source == "private images"] for flow, touches in FLOWS.items()}
    assert touched == {"plain": [False], "dp_teacher": [True], "dp_generator": [True], "dp_both": [True, True]}
    for touches in FLOWS.values():
        assert all((t.noisy is None) == (t.source != "private images") for t in touches)


def test_a_report_is_json_and_names_no_row_of_a_private_image() -> None:
    rng = torch.Generator().manual_seed(0)
    copies = copy_test(*(torch.rand(30, 4, generator=rng) for _ in range(3)), permutations=10, pairs=3)
    found = privacy_report(
        verdict(None, [], []),
        "plain",
        ["student"],
        [],
        None,
        "not asked for",
        [],
        {"pixels": copies},
        "",
        {"synthkd": "1"},
    )
    told = json.loads(json.dumps(found, allow_nan=False))
    assert told == found
    assert told["dp"] is None
    assert told["copies"][0]["note"] == "a copy detector, not privacy evidence"
    assert "closest_train" not in told["copies"][0]
    assert len(told["copies"][0]["closest_distances"]) == 3
    assert any("Nothing was measured" in said for said in told["caveats"])
    assert any("one person" in said for said in told["caveats"])
    assert not any("audit attacks" in said or "canar" in said for said in told["caveats"]), "there was none"


@pytest.mark.parametrize(("flow", "trains"), [("dp_teacher", True), ("dp_generator", False), ("dp_both", True)])
def test_a_claim_says_what_it_takes_for_granted(flow: Flow, trains: bool) -> None:
    claims = [{"insecure": False}]
    found = privacy_report(verdict(CLAIM, [], []), flow, [], claims, None, "", [], {}, "", {})
    said = " ".join(found["dp"]["assumptions"])
    assert "differ in one image of the training part" in said
    assert ("independent coins" in said) == ("from that image alone" in said) == trains


def test_plain_values_are_json() -> None:
    share = Proportion(0.5, 2, 0.1, 0.9)
    assert plain({"a": (share, math.inf, torch.tensor([1.5]))}) == {"a": [vars(share), None, [1.5]]}


def test_a_report_on_given_lists_has_caveats_of_its_own() -> None:
    checks, one_model = [GOOD], {"teacher": {GIVEN: {}}}
    lists = {"kind": GIVEN, "label": AVERAGE_CASE, "population": 0, "models": one_model, "skipped": {"members": 3}}
    for references, said, unsaid in (
        (0, "the weakest attack there is", "RMIA was left out"),
        (1, "One reference model", "the weakest attack there is"),
        (2, "RMIA was left out", "One reference model"),
    ):
        audit = {**lists, "references": {"teacher": references}}
        found = privacy_report(verdict(None, [], checks), None, ["teacher"], [], audit, "", checks, {}, "", {})
        assert found["flow"] is None
        assert found["audit"]["kind"] == GIVEN
        caveats = " ".join(found["caveats"])
        assert caveats.startswith("Average-case, heuristic: not a bound.")
        assert said in caveats
        assert unsaid not in caveats
        assert "Unreadable files of the members that were left out: 3." in caveats
        assert "canar" not in json.dumps(found)
    pipeline = {"references": {"teacher": 2, "student": 2}, "population": 0}
    found = privacy_report(verdict(None, [0.0], checks), "plain", [], [], pipeline, "", checks, {}, "", {})
    assert found["audit"]["kind"] == "pipeline"
    assert "mislabelled canaries" in " ".join(found["caveats"])


@pytest.mark.parametrize(
    ("epsilon", "said"),
    [(8.0, "8"), (8.004, "8.01"), (1.0049, "1.01"), (12.34, "12.4"), (0.5, "0.5"), (1234.5, "1.24e+03")],
)
def test_a_claim_is_never_less_than_what_was_spent(epsilon: float, said: str) -> None:
    assert rounded_up(epsilon) == said
    assert f"epsilon={said}, " in verdict(Claim(**{**vars(CLAIM), "epsilon": epsilon}), [], []).text
