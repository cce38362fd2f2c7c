"""What is imported by name: a user's own code, `package.module:function`, and packages that only some have."""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from synthkd.errors import ConfigError, MissingExtraError, SynthkdError


def resolve(target: str, where: str) -> Callable[..., Any]:
    """The callable that `package.module:function` names; modules in the working directory are found too.

    Importing the module runs its code.

    Args:
        target: what to import.
        where: the configuration key it came from, for the message.

    Raises:
        ConfigError: not of that form, no such module, or no such function.
        SynthkdError: the module fails while it is imported.
    """
    module_name, _, function = target.partition(":")
    if not module_name or not function:
        raise ConfigError(f"{where}: expected package.module:function, got {target!r}")
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # Something missing inside the user's module is another matter than a wrong name.
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise SynthkdError(f"{where}: importing '{module_name}' of '{target}' failed: {error}") from error
        raise ConfigError(
            f"{where}: no module '{error.name}' to import for '{target}'; install it, or run from its folder"
        ) from error
    except Exception as error:  # the user's code may fail in any way; the line must say where
        raise SynthkdError(f"{where}: importing '{module_name}' of '{target}' failed: {error!r}") from error
    found: Callable[..., Any] | None = getattr(module, function, None)
    if found is not None and not callable(found):
        raise ConfigError(f"{where}: '{target}' must be a function, got a {type(found).__name__}")
    if found is None:
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        close = difflib.get_close_matches(function, names, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(f"{where}: module '{module_name}' has no function '{function}'{hint}")
    return found


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """A module of a package that an extra installs, imported where it is used.

    Args:
        module: the package, or a module inside it.
        extra: of synthkd.
        purpose: what needs it, as a noun phrase.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], extra, purpose) from error
