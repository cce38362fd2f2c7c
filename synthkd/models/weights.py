"""Read files of weights without running code that is in them, and write them. What a file is, its content decides."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from synthkd.errors import ModelError, TrainingError
from synthkd.models.file_kinds import kind_of
from synthkd.system.files import write_atomically
from synthkd.system.text import one_line

WEIGHTS = "model.safetensors"
NESTED = 4
"""Dicts in dicts that are searched for state dicts; a bound, since a dict may contain itself."""
NAMED = 4
"""Largest number of tensors that an error names."""
LARGEST_HEADER = 1 << 24
"""Largest header of a .safetensors file, in bytes; it has room for some hundred thousand tensors."""


def finite_state(model: nn.Module, who: str) -> dict[str, Tensor]:
    """The state dict of a model, if every tensor is finite; what is saved goes through this check.

    Args:
        model: on any device.
        who: name of the model in the error.

    Raises:
        TrainingError: a tensor is not finite; the error names the first few.
    """
    state = dict(model.state_dict())
    if bad := not_finite(state):
        raise TrainingError(
            f"{who}: the training diverged, {len(bad)} of {len(state)} tensors are not finite: {some(bad)}; lower the "
            "learning rate or set clip"
        )
    return state


def not_finite(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors with a NaN or an infinity."""
    return [k for k, v in state.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())]


def serialised(model: nn.Module, who: str = "the model") -> bytes:
    """The content of a .safetensors file with the state dict of a model.

    Args:
        model: on any device.
        who: name of the model in the error.

    Raises:
        TrainingError: a tensor is not finite.
    """
    # Every tensor is copied, since safetensors refuses those that share memory, as tied weights do.
    state = {k: v.detach().to("cpu", copy=True).contiguous() for k, v in finite_state(model, who).items()}
    return serialise(state, metadata={"format": "pt"})


def save_weights(model: nn.Module, path: Path) -> None:
    """Write the state dict of a model to a .safetensors file, atomically.

    Raises:
        TrainingError: a tensor is not finite.
    """
    write_atomically(path, serialised(model, str(path.parent)))


def read_weights(path: Path) -> dict[str, Tensor]:
    """The state dict in a file, on the CPU. The file holds one, itself or under a key.

    Raises:
        ModelError: as `read_state_dicts`, or several state dicts.
    """
    candidates = read_state_dicts(path)
    if len(candidates) > 1:
        names = some(list(candidates))
        raise ModelError(f"{path} holds several state dicts: {names}; save the one that is meant alone")
    return next(iter(candidates.values()))


def read_state_dicts(path: Path) -> dict[str, dict[str, Tensor]]:
    """All state dicts in a file, on the CPU, by their keys: "" for the file itself, "ema" or "best.model" inside it.

    The content decides how the file is read, whatever its ending: safetensors, or a pickle of `torch.save`.

    Raises:
        ModelError: no such file, a damaged file, a file of another kind, content without a state dict, or a pickle that
            would import more than tensors; the error names what, and none of it has run.
    """
    if not path.is_file():
        raise ModelError(f"weights file not found: {path}")
    kind = kind_of(path)
    if kind.reader is None:
        raise ModelError(f"{path} is {kind.name}, not a file of weights; {kind.remedy}")
    candidates = {"": _read_safetensors(path)} if kind.reader == "safetensors" else _state_dicts(_read_pickle(path))
    if not candidates:
        raise ModelError(f"{path} holds no state dict (names to tensors); save model.state_dict() alone")
    for key, state in candidates.items():
        if odd := [f"{name} ({oddity})" for name, tensor in state.items() if (oddity := _oddity(tensor))]:
            where = f" under {key}" if key else ""
            raise ModelError(
                f"{path}: weights{where} must be dense real numbers, got {some(odd)}; convert them, and save again"
            )
    return candidates


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        # The first 8 bytes are the length of the header, which the library would allocate before it reads on.
        with path.open("rb") as file:
            if (header := int.from_bytes(file.read(8), "little")) > LARGEST_HEADER:
                raise ValueError(f"a header of {header:,} bytes, at most {LARGEST_HEADER:,} are allowed")
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ModelError(f"{path} is not a readable safetensors file ({_line(error)}); copy it again") from error


def _read_pickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ModelError(
            f"{path} is a pickle that wants to run more than tensors: {some(_imports(path, str(error)))}; nothing of "
            "it was run. Save the state dict alone: torch.save(model.state_dict(), path), or as safetensors"
        ) from error
    except Exception as error:  # arbitrary instructions end in nearly any error
        raise ModelError(f"{path} is not a readable torch file ({_line(error)}); copy or save it again") from error


def _imports(path: Path, message: str) -> list[str]:
    """Names that a refused pickle would import, from reading it without running it.

    Args:
        path: the pickle.
        message: what torch said when it refused.
    """
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # arbitrary instructions, as above
        # The file is not the zip archive of today's torch.save. In the older format the error names the first import.
        return re.findall(r"GLOBAL (\S+)", message)[:1] or _imports_of_bare(path) or ["(unreadable instructions)"]


def _imports_of_bare(path: Path) -> list[str]:
    """Names in the instructions of a bare pickle, up to the first that is damaged."""
    names: list[str] = []
    strings: list[str] = []
    with path.open("rb") as file, suppress(ValueError, EOFError, MemoryError):
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "GLOBAL":
                names.append(str(argument).replace(" ", "."))
            elif opcode.name == "STACK_GLOBAL":  # it takes module and name from the stack, usually the last two strings
                names.append(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return names


def _state_dicts(loaded: Any, key: str = "", depth: int = NESTED) -> dict[str, dict[str, Tensor]]:
    """The state dicts that a pickle holds: itself, or those in its dicts."""
    if not isinstance(loaded, Mapping) or not loaded or depth == 0:
        return {}
    if all(isinstance(value, Tensor) for value in loaded.values()):
        return {key: {str(name): value for name, value in loaded.items()}}
    candidates: dict[str, dict[str, Tensor]] = {}
    for name, value in loaded.items():
        candidates |= _state_dicts(value, f"{key}.{name}" if key else str(name), depth - 1)
    return candidates


def _oddity(tensor: Tensor) -> str:
    """Why a tensor cannot be a weight; empty if it can."""
    if tensor.is_meta:
        return "without values"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return str(tensor.dtype if tensor.is_quantized else tensor.layout)
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype == torch.float4_e2m1fn_x2 else ""


def some(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    more = len(names) - NAMED
    return ", ".join(map(one_line, names[:NAMED])) + (f" and {more} more" if more > 0 else "")


def _line(error: BaseException) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0][:160])
