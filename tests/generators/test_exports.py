"""The public names of the package, and what importing them costs."""

import subprocess
import sys

import pytest

from synthkd import generators

COST = """
import sys
from synthkd import generators
import synthkd.generators.settings
assert "torch" not in sys.modules
for name in generators.__all__:
    if name not in ("Diffusion", "Pipeline"):
        getattr(generators, name)
assert "torch" in sys.modules
assert "diffusers" not in sys.modules
"""


def test_every_public_name_is_there() -> None:
    for name in generators.__all__:
        assert getattr(generators, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        generators.nothing  # noqa: B018


def test_settings_import_no_torch_and_only_diffusion_imports_diffusers() -> None:
    subprocess.run([sys.executable, "-c", COST], check=True, timeout=120)
