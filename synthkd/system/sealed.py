"""JSON and safetensors files with a checksum of their own content, so that a reader notices every change.

A checksum shows damage, not intent: whoever changes a file on purpose can compute a new one.
"""

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

from synthkd.system.text import parse_json

CHECKSUM = "checksum"
"""Key of the checksum in a JSON object; in the metadata of a safetensors file the key is `sha256`."""
_DAMAGED = "it does not have its own checksum: damaged or changed"


def sealed(values: Mapping[str, Any]) -> bytes:
    """Content of a JSON file with an object and the sha256 of everything in it.

    Raises:
        TypeError, ValueError: a value that plain JSON cannot hold, such as a number that is not finite.
    """
    text = json.dumps(values, indent=2, allow_nan=False)
    # The digest is of the values as a reader will see them: JSON turns tuples into lists and keys into strings.
    return json.dumps({**values, CHECKSUM: _digest(json.loads(text))}, indent=2).encode() + b"\n"


def unsealed(data: bytes, *, bare: bool = True) -> dict[str, Any]:
    """The object in the content of a JSON file by `sealed`, verified and without the checksum.

    Args:
        data: the content.
        bare: whether an object without a checksum is returned, unverified; earlier versions wrote none.

    Raises:
        ValueError: no JSON object, or a checksum that does not fit or is missing.
    """
    values = parse_json(data)
    if not isinstance(values, dict):
        raise ValueError("no JSON object")
    expected = values.pop(CHECKSUM, None)
    if expected is None and bare:
        return values
    if expected != _digest(values):
        raise ValueError(_DAMAGED)
    return values


def sealed_tensors(tensors: Mapping[str, Tensor], about: Mapping[str, str]) -> bytes:
    """Content of a .safetensors file with the sha256 of tensors and metadata in its metadata.

    Args:
        tensors: any dtypes and shapes; no two may share memory.
        about: metadata.
    """
    metadata = {**about, "sha256": tensor_digest(_text(about), tensors)}
    return _in_order(serialise({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata))


def unsealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a .safetensors file by `sealed_tensors`, verified; without a checksum, unverified.

    Raises:
        ValueError: the file cannot be read, or its checksum does not fit.
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
    """sha256, in hexadecimal, of a text and of the names, dtypes, shapes and contents of tensors."""
    # Names, types and shapes between zero bytes, so that no other division of the same bytes has the same digest.
    result = hashlib.sha256(about.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        result.update(f"\0{name} {tensor.dtype} {list(tensor.shape)}\0".encode())
        # As bytes, since numpy has no bfloat16.
        result.update(tensor.flatten().view(torch.uint8).numpy().data)
    return result.hexdigest()


def _in_order(data: bytes) -> bytes:
    """The .safetensors file with sorted metadata: the library's order differs from run to run, and so would files."""
    # The file begins with the length of its JSON header in 8 bytes. The header is padded with spaces to a multiple of
    # 8, which aligns the tensors after it.
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[end:]


def _digest(values: Any) -> str:
    # Of one canonical form: a reader that writes the object with other indentation or order changes nothing.
    return hashlib.sha256(json.dumps(values, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _text(about: Mapping[str, str]) -> str:
    return json.dumps(about, sort_keys=True)  # sorted, since safetensors returns metadata in any order
