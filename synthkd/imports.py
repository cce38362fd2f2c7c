"""What is imported by name, and whose word is enough for it. Nothing else in the project imports by name.

A recipe is a program, a folder is data. What somebody types, in a recipe, an override or Python, may name code of
theirs, `package.module:function`. What is read from a run, a saved model or generator, a dataset or a checkpoint may
not, unless the call at hand trusts that folder, or its recipe has the same function with the same options.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from synthkd.errors import ConfigError, MissingExtraError, ModelError, SynthkdError


@dataclass(frozen=True)
class _Allowed:
    """Whose code may run.

    Attributes:
        names: all text of the recipe at hand; None outside of any job, where the caller's own code decides.
        calls: functions with their options, as the recipe has them.
        folders: resolved; files in them may name code too.
    """

    names: frozenset[str] | None = None
    calls: frozenset[tuple[str, str]] = frozenset()
    folders: tuple[Path, ...] = ()


_UNASKED = _Allowed()
_ALLOWED: ContextVar[_Allowed] = ContextVar("_ALLOWED", default=_UNASKED)


@contextmanager
def allowing(recipe: Mapping[str, Any] | None = None, folders: Iterable[Path | str] = ()) -> Iterator[None]:
    """Inside, code may run that the recipe names or that a file in one of the folders does; all else is refused.

    What an outer call allows stays allowed.

    Args:
        recipe: plain data as somebody typed it; None leaves it to the caller which code of theirs runs.
        folders: that are trusted.

    Raises:
        ConfigError: a folder that is not there.
    """
    places = [Path(folder).expanduser() for folder in folders]
    if absent := [str(place) for place in places if not place.is_dir()]:
        raise ConfigError(f"trust: {', '.join(absent)} is no folder; give the folder whose code may run")
    outer = _ALLOWED.get()
    names, calls = outer.names, outer.calls
    if recipe is not None:
        nodes = list(_nodes(recipe))
        names = (names or frozenset()) | {node for node in nodes if isinstance(node, str)}
        calls |= {
            _call(node[key], node.get("options") or {})
            for node in nodes
            if isinstance(node, Mapping)
            for key in ("model", "target")
            if isinstance(node.get(key), str)
        }
    token = _ALLOWED.set(_Allowed(names, calls, (*outer.folders, *(place.resolve() for place in places))))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def resolve(
    target: str, where: str, source: Path | None, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """The callable that `package.module:function` names; modules in the working directory are found too.

    Importing the module runs its code.

    Args:
        target: what to import.
        where: the configuration key it came from, for the message.
        source: the file that it was read from; None for what somebody typed.
        options: with which it will be called.

    Raises:
        ConfigError: not of that form, no such module, or no such function.
        ModelError: the file must not name code in this call; nothing was imported.
        SynthkdError: the module fails while it is imported.
    """
    module_name, _, function = target.partition(":")
    if not module_name or not function:
        raise ConfigError(f"{where}: expected package.module:function, got {target!r}")
    _require_allowed(target, where, source, options or {})
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


def own(target: str) -> Any:
    """What `module:name` names inside synthkd, imported when it is needed: a job brings torch, which takes seconds."""
    module, _, name = target.partition(":")
    if not module.startswith("synthkd."):
        raise ValueError(f"{target} is no part of synthkd")
    return getattr(importlib.import_module(module), name)


def _require_allowed(target: str, where: str, source: Path | None, options: Mapping[str, Any]) -> None:
    """The one place that decides whether a name may become code."""
    allowed = _ALLOWED.get()
    if source is None and (allowed.names is None or target in allowed.names):
        return
    if source is None:
        raise ModelError(
            f"{where}: '{target}' would be imported and called, but this recipe does not name it; nothing of it was run"
        )
    if _call(target, options) in allowed.calls:
        return
    if any(source.resolve().is_relative_to(folder) for folder in allowed.folders):
        return
    raise ModelError(
        f"{source} names '{target}' ({where}), code that would be imported and called; nothing of it was run. If you "
        f"trust the folder, say trust={source.parent}; or have the same function, with the same options, in your recipe"
    )


def _call(target: str, options: Mapping[str, Any]) -> tuple[str, str]:
    return target, json.dumps(options, sort_keys=True, default=repr)


def _nodes(value: Any) -> Iterator[Any]:
    """A value and all that is inside it, keys of mappings too: terms of a loss are named by them."""
    yield value
    inside = (
        (*value, *value.values()) if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    )
    for item in inside:
        yield from _nodes(item)
