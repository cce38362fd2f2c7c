"""What importing the generators and the jobs costs."""

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


JOBS = """
import sys
import synthkd.pipelines.cli
import synthkd.pipelines.config.distill
assert "torch" not in sys.modules
from synthkd.pipelines import audit, compress, distill, evaluate, generate, teach
assert "torch" in sys.modules
print(sorted({"matplotlib", "pandas", "scipy", "sklearn", "torchvision", "torch._dynamo"} & set(sys.modules)))
"""


def test_jobs_import_no_library_that_only_some_of_their_steps_use() -> None:
    """Together these cost more than torch itself."""
    loaded = subprocess.run([sys.executable, "-c", JOBS], check=True, timeout=120, capture_output=True, text=True)
    assert loaded.stdout == "[]\n"
