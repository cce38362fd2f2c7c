"""Import by name, load programs, and the rule that decides what may run. No other module does either.

Importing `package.module:function` runs code. A name that somebody types, in a recipe, an override or Python, may be
imported. A name that was read from a file (a run, a saved model or generator, a dataset, a checkpoint) may not, unless
this call trusts the folder of the file, or its recipe names the same function with the same options.

A file that is a program (TorchScript, `torch.export`) is loaded only if this call trusts its folder, or if its recipe
names the file and says `trust: true`.
"""

from __future__ import annotations

import difflib
import importlib
import json
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from synthkd.errors import ConfigError, MissingExtraError, ModelError, SynthkdError
from synthkd.system.text import first_line


@dataclass(frozen=True)
class _Allowed:
    """Code that may run.

    Attributes:
        names: every string in the recipe of this call; None outside any job, where all names come from the caller.
        calls: functions with their options, as the recipe has them; see `_call`.
        folders: resolved paths; files in them may name code too, and be programs.
        programs: whether files that are programs may run if the recipe names them.
    """

    names: frozenset[str] | None = None
    calls: frozenset[tuple[str, str]] = frozenset()
    folders: tuple[Path, ...] = ()
    programs: bool = False


# A context variable, so that jobs in several threads do not permit each other's code.
_ALLOWED: ContextVar[_Allowed] = ContextVar("_ALLOWED", default=_Allowed())  # noqa: B039, it is frozen


@contextmanager
def allowing(
    recipe: Mapping[str, object] | None = None, folders: Iterable[Path | str] = (), programs: bool = False
) -> Iterator[None]:
    """Context manager in which only code named by the recipe, or by a file in one of the folders, may run.

    What an outer `allowing` permits stays permitted.

    Args:
        recipe: plain data as somebody typed it; None permits every name that does not come from a file.
        folders: trusted folders.
        programs: trust the programs that the recipe names as a model.

    Raises:
        ConfigError: a folder that does not exist.
    """
    paths = [Path(folder).expanduser() for folder in folders]
    if absent := [str(path) for path in paths if not path.is_dir()]:
        raise ConfigError(f"trust: {', '.join(absent)} is no folder; give the folder whose code may run")
    outer = _ALLOWED.get()
    names, calls = outer.names, outer.calls
    if recipe is not None:
        nodes = list(_nodes(recipe))
        # Every string of the recipe counts as a name: whether one is a target is known only where it is used.
        names = (names or frozenset()) | {node for node in nodes if isinstance(node, str)}
        calls |= {
            _call(node[key], node.get("options") or {})
            for node in nodes
            if isinstance(node, Mapping)
            for key in ("model", "target")
            if isinstance(node.get(key), str)
        }
    trusted = (*outer.folders, *(path.resolve() for path in paths))
    token = _ALLOWED.set(_Allowed(names, calls, trusted, programs or outer.programs))
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def resolve(
    target: str, where: str, source: Path | None, options: Mapping[str, object] | None = None
) -> Callable[..., object]:
    """Import the callable named `package.module:function`; modules in the working directory can be named too.

    Importing the module runs its code.

    Args:
        target: the name.
        where: the configuration key that holds it, for messages.
        source: the file it was read from; None if somebody typed it.
        options: keyword arguments of the later call.

    Raises:
        ConfigError: a name of another form, no such module, or no such function.
        ModelError: the file must not name code in this call; nothing was imported.
        SynthkdError: the module raises an error while it is imported.
    """
    module_name, _, name = target.partition(":")
    if not module_name or not name:
        raise ConfigError(f"{where}: expected package.module:function, got {target!r}")
    # Before the import, which runs the code.
    _require_allowed(target, where, source, options or {})
    module = _import_users_module(module_name, target, where)
    function = getattr(module, name, None)
    if function is None:
        names = [n for n in vars(module) if callable(getattr(module, n)) and not n.startswith("_")]
        close = difflib.get_close_matches(name, names, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(f"{where}: module '{module_name}' has no function '{name}'{hint}")
    if not callable(function):
        raise ConfigError(f"{where}: '{target}' must be a function, got a {type(function).__name__}")
    return function  # type: ignore[no-any-return]


def _require_trusted(path: Path, what: str, source: Path | None = None) -> None:
    """Raise `ModelError` unless a file that is a program may run.

    Args:
        path: the program.
        what: it is, in words.
        source: the file that names it; None if somebody typed it.
    """
    allowed = _ALLOWED.get()
    by_name = source is None and allowed.programs and any(Path(name) == path for name in allowed.names or ())
    files = [path.resolve(), *([] if source is None else [source.resolve()])]
    if by_name or any(file.is_relative_to(folder) for file in files for folder in allowed.folders):
        return
    remedy = f"trust={path.parent}" if source is not None else "trust=true, beside the sections"
    raise ModelError(f"{path} is {what}, which would run; nothing of it was run. If you trust it, say {remedy}")


def load_program(
    path: Path,
    form: Literal["TorchScript", "torch.export"],
    source: Path | None = None,
    extra_files: dict[str, str] | None = None,
) -> object:
    """Load a file that is a program: a `torch.jit.ScriptModule` in eval mode, or a `torch.export.ExportedProgram`.

    Args:
        path: the file.
        form: what it is.
        source: the file that names it; None if somebody typed it.
        extra_files: name -> text that lies beside an exported program, which is filled in.

    Raises:
        ModelError: the program is not trusted, or holds a pickled object, and nothing of it has run; or it is damaged
            or of another torch.
    """
    _require_trusted(path, f"a program of {form}", source)
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated, and what people have
            if form == "TorchScript":
                return torch.jit.load(path, map_location="cpu").eval()
            _refuse_pickles(path)
            return torch.export.load(path, extra_files=extra_files)
    except ModelError:
        raise
    except Exception as error:  # a damaged program may fail in any way
        raise ModelError(
            f"{path} is not a readable program of {form} ({first_line(error)}); save it with torch {torch.__version__}"
        ) from error


def _refuse_pickles(path: Path) -> None:
    """Refuse an exported program with anything but tensors in its pickles, which `torch.export.load` would run."""
    import torch

    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if name.endswith("_config.json") and _has_pickle(json.loads(archive.read(name))):
                raise ModelError(f"{path} holds a pickled object ({name}), which is not run; export the network again")
            if name.endswith(".pt"):
                try:
                    torch.load(archive.open(name), map_location="cpu", weights_only=True)
                except Exception as error:
                    raise ModelError(
                        f"{path} holds a pickle that wants to run more than tensors ({name}); nothing of it was run. "
                        "Export the network again, with images alone as its example"
                    ) from error


def _has_pickle(config: Any) -> bool:
    if isinstance(config, dict):
        return config.get("use_pickle") is True or any(map(_has_pickle, config.values()))
    return isinstance(config, list) and any(map(_has_pickle, config))


def optional(module: str, extra: str, purpose: str) -> ModuleType:
    """Import a module of a package that an extra installs.

    Args:
        module: the package, or a module inside it.
        extra: the extra of synthkd.
        purpose: what needs it, as a noun phrase for the message.

    Raises:
        MissingExtraError: it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(module.partition(".")[0], extra, purpose) from error


def own(target: str) -> Any:
    """The object that `synthkd.module:name` names.

    Jobs are imported this way when they are needed: they import torch, which takes seconds.

    Raises:
        ValueError: the module is not part of synthkd.
    """
    module, _, name = target.partition(":")
    if not module.startswith("synthkd."):
        raise ValueError(f"{target} is no part of synthkd")
    return getattr(importlib.import_module(module), name)


def on_first_use(package: str, modules: Mapping[str, str]) -> Callable[[str], object]:
    """The `__getattr__` of a package whose public names are imported on first use.

    Args:
        package: its dotted name.
        modules: public name -> the module of the package that has it.
    """

    def get(name: str) -> object:
        if name in modules:
            return own(f"{package}.{modules[name]}:{name}")
        raise AttributeError(f"module '{package}' has no attribute '{name}'")

    return get


def _require_allowed(target: str, where: str, source: Path | None, options: Mapping[str, object]) -> None:
    """Raise `ModelError` unless the name may become code; nothing else decides this."""
    allowed = _ALLOWED.get()
    if source is None:
        if allowed.names is None or target in allowed.names:
            return
        raise ModelError(
            f"{where}: '{target}' would be imported and called, but this recipe does not name it; nothing of it was run"
        )
    # With its options: a file could otherwise call a function that the recipe names with arguments that it does not.
    if _call(target, options) in allowed.calls:
        return
    if any(source.resolve().is_relative_to(folder) for folder in allowed.folders):
        return
    raise ModelError(
        f"{source} names '{target}' ({where}), code that would be imported and called; nothing of it was run. If you "
        f"trust the folder, say trust={source.parent}; or have the same function, with the same options, in your recipe"
    )


def _import_users_module(module_name: str, target: str, where: str) -> ModuleType:
    # At the end of the path, so that a file in the working directory hides no installed module.
    directory = str(Path.cwd())
    if directory not in sys.path:
        sys.path.append(directory)
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        # If a module is missing that the user's module imports, the name in the recipe is right.
        if error.name is None or not (module_name == error.name or module_name.startswith(error.name + ".")):
            raise SynthkdError(f"{where}: importing '{module_name}' of '{target}' failed: {error}") from error
        raise ConfigError(
            f"{where}: no module '{error.name}' to import for '{target}'; install it, or run from its folder"
        ) from error
    except Exception as error:  # the user's code may raise anything; the message must say where
        raise SynthkdError(f"{where}: importing '{module_name}' of '{target}' failed: {error!r}") from error


def _call(target: str, options: Mapping[str, object]) -> tuple[str, str]:
    """A function with its options, in a form that can be compared."""
    return target, json.dumps(options, sort_keys=True, default=repr)


def _nodes(value: object) -> Iterator[Any]:
    """A value and everything inside it, also the keys of mappings, since loss terms are named by keys."""
    yield value
    if isinstance(value, Mapping):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            yield from _nodes(item)
