"""Read files of weights without running code that is in them, load weights strictly, and write them."""

from __future__ import annotations

import pickle
import pickletools
import re
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialise
from torch import Tensor, nn

from synthkd.errors import ModelError, TrainingError
from synthkd.system.files import write_atomically
from synthkd.system.text import one_line

WEIGHTS = "model.safetensors"
PICKLES = (".pt", ".pth", ".bin")
NESTS = ("state_dict", "model_state_dict", "model")
"""Keys under which trainers store the model's state dict in a larger dict."""
WRAPPERS = ("module.", "_orig_mod.")
"""Prefixes of the names of wrapped models: DataParallel's and torch.compile's."""
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
            f"{who}: the training diverged, {len(bad)} of {len(state)} tensors are not finite: {_some(bad)}; lower the "
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
    """The state dict in a .safetensors, .pt, .pth or .bin file, on the CPU; also one inside the dict of a trainer.

    Raises:
        ModelError: no such file, another ending, a damaged file, content that is no state dict, or a pickle that would
            import more than tensors; the error names what, and none of it has run.
    """
    if not path.is_file():
        raise ModelError(f"weights file not found: {path}")
    if path.suffix == ".safetensors":
        state = _read_safetensors(path)
    elif path.suffix in PICKLES:
        state = _state_dict(_read_pickle(path), path)
    else:
        raise ModelError(f"weights must be a .safetensors, .pt, .pth or .bin file, got {path}")
    if odd := [f"{name} ({oddity})" for name, tensor in state.items() if (oddity := _oddity(tensor))]:
        raise ModelError(f"{path}: weights must be dense real numbers, got {_some(odd)}; convert them, and save again")
    return state


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a state dict into a model: same names, same shapes.

    Prefixes of DataParallel (`module.`) and torch.compile (`_orig_mod.`) on every name are removed.

    Args:
        model: on any device.
        state: name -> tensor.
        source: where the state dict comes from, for errors.

    Raises:
        ModelError: missing, unexpected or misshapen entries, or entries that are not finite; the error names them, and
            the model is unchanged.
    """
    own = model.state_dict()
    # Only if every name in the file has the prefix and none in the model: a module may itself be called "module".
    for prefix in WRAPPERS:
        if state and all(k.startswith(prefix) for k in state) and not any(k.startswith(prefix) for k in own):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    problems = {
        "missing": [k for k in own if k not in state],
        "unexpected": [k for k in state if k not in own],
        "of another shape": [
            f"{k} ({list(state[k].shape)} in the file, {list(v.shape)} in the model)"
            for k, v in own.items()
            if k in state and state[k].shape != v.shape
        ],
    }
    if lines := [f"{len(names)} {problem}: {_some(names)}" for problem, names in problems.items() if names]:
        raise ModelError(
            f"weights in {source} do not fit the model: {'; '.join(lines)}; "
            "check the architecture, its options and the class count"
        )
    if bad := not_finite(state):
        raise ModelError(
            f"weights in {source} are not finite in {len(bad)} of {len(state)} tensors: {_some(bad)}; the file is "
            "damaged or of a training that diverged, take another"
        )
    # After every check, so that a model never has a part of the weights.
    model.load_state_dict(state)


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
            f"{path} is a pickle that wants to run more than tensors: {_some(_imports(path, str(error)))}; nothing of "
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


def _state_dict(loaded: Any, path: Path) -> dict[str, Tensor]:
    """The state dict that a pickle holds, itself or under the keys of `NESTS`."""
    for _ in NESTS:  # a bound on the nesting, since a dict may contain itself
        if not isinstance(loaded, Mapping) or all(isinstance(v, Tensor) for v in loaded.values()):
            break
        nest = next((loaded[k] for k in NESTS if isinstance(loaded.get(k), Mapping)), None)
        if nest is None:
            break
        loaded = nest
    if not isinstance(loaded, Mapping) or not loaded or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise ModelError(f"{path} holds no state dict (names to tensors); save model.state_dict() alone")
    return {str(k): v for k, v in loaded.items()}


def _oddity(tensor: Tensor) -> str:
    """Why a tensor cannot be a weight; empty if it can."""
    if tensor.is_meta:
        return "without values"
    if tensor.layout != torch.strided or tensor.is_quantized:
        return str(tensor.dtype if tensor.is_quantized else tensor.layout)
    return str(tensor.dtype) if tensor.is_complex() or tensor.dtype == torch.float4_e2m1fn_x2 else ""


def _some(names: list[str]) -> str:
    more = len(names) - NAMED
    return ", ".join(map(one_line, names[:NAMED])) + (f" and {more} more" if more > 0 else "")


def _line(error: BaseException) -> str:
    return one_line((str(error).splitlines() or [type(error).__name__])[0][:160])
