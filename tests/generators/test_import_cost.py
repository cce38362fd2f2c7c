"""What importing the generators costs."""

import subprocess
import sys

COST = """
import sys
import synthkd.generators.settings
assert "torch" not in sys.modules
import synthkd.generators.build
assert "torch" in sys.modules
assert "diffusers" not in sys.modules
import synthkd.generators.diffusion
import synthkd.generators.pipeline
assert "diffusers" in sys.modules
"""


def test_settings_import_no_torch_and_only_diffusion_imports_diffusers() -> None:
    subprocess.run([sys.executable, "-c", COST], check=True, timeout=120)
