"""Mixed precision: `auto` follows the device."""

from __future__ import annotations

import pytest

from synthkd.pipelines.config import TeachConfig
from synthkd.pipelines.run import device
from synthkd.pipelines.run.device import make_accelerator, mixed_precision
from synthkd.settings.load import load_config

TEACH = {"data": {"kind": "digits"}, "model": {"arch": "mlp"}, "device": "cpu"}


@pytest.mark.parametrize(("has_units", "chosen"), [(True, "bf16"), (False, "no")])
def test_precision_auto_is_bf16_where_the_processor_has_units_for_it(
    monkeypatch: pytest.MonkeyPatch, has_units: bool, chosen: str
) -> None:
    monkeypatch.setattr(device, "has_bfloat16_units", lambda _: has_units)
    for precision, expected in (("auto", chosen), ("no", "no"), ("bf16", "bf16")):
        config = load_config(TeachConfig, TEACH | {"precision": precision}, [])
        assert mixed_precision(config) == expected
        assert make_accelerator(config).mixed_precision == expected
