"""Files that carry their own checksum, so that a reader notices whatever was changed in them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialise
from torch import Tensor

from synthkd.system.json_text import parse_json

CHECKSUM = "checksum"
"""Key of the checksum in a JSON object; in the metadata of tensors it is `sha256`."""
_DAMAGED = "it does not have its own checksum: damaged or changed"


def sealed(values: Mapping[str, Any]) -> bytes:
    """A JSON object, with the sha256 of everything in it beside it.

    Raises:
        TypeError, ValueError: what plain JSON cannot hold, such as numbers that are not finite.
    """
    text = json.dumps(values, indent=2, allow_nan=False)
    return json.dumps({**values, CHECKSUM: _digest(json.loads(text))}, indent=2).encode() + b"\n"


def unsealed(data: bytes) -> dict[str, Any]:
    """The object that was sealed, verified; one without a checksum is of an earlier version, and is taken as it is.

    Raises:
        ValueError: no JSON object, or not what was sealed.
    """
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    expected = values.pop(CHECKSUM, None)
    if expected is not None and expected != _digest(values):
        raise ValueError(_DAMAGED)
    return values


def sealed_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """The content of a .safetensors file, with the sha256 of tensors and metadata in its metadata."""
    metadata = {**about, "sha256": tensor_digest(_text(about), tensors)}
    return _in_order(serialise({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def unsealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata that were sealed, verified; a file without a checksum is taken as it is, as in `unsealed`.

    Raises:
        ValueError: no readable file, or not what was sealed.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error
    expected = about.pop("sha256", None)
    if expected is not None and expected != tensor_digest(_text(about), tensors):
        raise ValueError(_DAMAGED)
    return tensors, about


def tensor_digest(about: str, tensors: Mapping[str, Tensor]) -> str:
    """sha256, in hexadecimal, of a text and of the names, types, shapes and contents of tensors."""
    result = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        result.update(tensor.flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()


def _in_order(data: bytes) -> bytes:
    """The same .safetensors file with its metadata in order, which the library writes in another one each time."""
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _text(about: Mapping[str, str]) -> str:
    return json.dumps(about, sort_keys=True)  # a file gives its metadata back in any order
