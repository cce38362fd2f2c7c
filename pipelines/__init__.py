"""The jobs, each a function of its configuration: `from synthkd.pipelines import distill`.

A job's function has the name of the module it stands in. The import system binds every imported submodule to its
package by name, so `synthkd.pipelines.distill` would be the function or the module depending on what was imported
before. The class of this module makes it the function always; the module is `synthkd.pipelines.distill` to `from ...
import` and `importlib.import_module`. Nothing is imported before a job is asked for, since a job imports torch.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from synthkd.imports import own

if __name__ != "synthkd.pipelines":
    raise ImportError("import synthkd.pipelines")

if TYPE_CHECKING:
    from synthkd.pipelines.audit import audit
    from synthkd.pipelines.compress import compress
    from synthkd.pipelines.distill import distill
    from synthkd.pipelines.evaluate import evaluate
    from synthkd.pipelines.generate import generate
    from synthkd.pipelines.teach import teach

__all__ = ["audit", "compress", "distill", "evaluate", "generate", "teach"]


class _Jobs(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
        return own(f"{__name__}.{name}:{name}")

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Jobs
