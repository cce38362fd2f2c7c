"""Names of a user's own code, `package.module:function`, to the thing itself."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
from typing import Any

from synthkd.errors import ConfigError


def resolve(target: str, where: str) -> Any:
    """Import `package.module:name`; modules beside the working directory are found too.

    Args:
        target: what to import.
        where: the configuration key it came from, for the message.

    Raises:
        ConfigError: when the form is wrong, or the module or the name does not exist.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{where}: expected package.module:function, got {target!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"{where}: cannot import {module_name!r} ({error}); run from the folder that holds it, or install it"
        ) from error
    if not hasattr(module, name):
        close = difflib.get_close_matches(name, dir(module), n=1)
        hint = f" (did you mean {close[0]!r}?)" if close else ""
        raise ConfigError(f"{where}: {module_name!r} has no {name!r}{hint}")
    return getattr(module, name)
