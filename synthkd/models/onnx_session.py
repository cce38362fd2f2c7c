"""ONNX files run by ONNX Runtime on the processor, whatever their operators; they have no layers and no gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import optional
from synthkd.system.text import first_line

KINDS = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}
"""Types of images that a file may take, as ONNX Runtime names them."""


class OnnxSession:
    """A file that takes images `[N, C, H, W]` alone, ready to run; its first output is the answer.

    Args:
        model: its path, or its content.
        who: names it in errors.
        threads: of ONNX Runtime.

    Attributes:
        kind: of the numbers that it takes, float32 or uint8.

    Raises:
        MissingExtraError: onnxruntime is not installed.
        ModelError: a file that cannot be read.
        ConfigError: a file with other inputs than images.
    """

    def __init__(self, model: Path | bytes, who: str, threads: int = 1) -> None:
        runtime = optional("onnxruntime", "export", "an ONNX file that is run as it is")
        self._who = who
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1  # the layers run one after the other, so a second pool would only wait
        options.log_severity_level = 4  # fatal errors only; others are raised
        content = model if isinstance(model, bytes) else str(model)
        try:
            self._session = runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors have no common parent
            raise ModelError(
                f"{who} is no ONNX file that can be read ({first_line(error)}); copy or export it again"
            ) from error
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or inputs[0].type not in KINDS:
            raise ConfigError(
                f"{who} must have one input of float or uint8 images, got {', '.join(one.type for one in inputs)}; "
                "call it from a function of yours"
            )
        self.kind, self._input = KINDS[inputs[0].type], inputs[0].name
        count = inputs[0].shape[0] if inputs[0].shape else None
        self._count = count if isinstance(count, int) and count > 0 else None

    def __call__(self, images: NDArray[Any]) -> Any:
        """The first output for at least one image of type `kind`; where a file takes a fixed number, in such parts.

        Raises:
            ModelError: it cannot take such images.
        """
        count = self._count or len(images)
        try:
            parts = [self._run(images[first : first + count]) for first in range(0, len(images), count)]
            return parts[0] if len(parts) == 1 else np.concatenate(parts)
        except Exception as error:  # as above
            raise ModelError(f"{self._who} cannot take images {list(images.shape)}: {first_line(error)}") from error

    def _run(self, images: NDArray[Any]) -> Any:
        missing = (self._count or len(images)) - len(images)
        if not missing:
            return self._session.run(None, {self._input: images})[0]
        filled = np.concatenate([images, images[-1:].repeat(missing, axis=0)])
        return self._session.run(None, {self._input: filled})[0][: len(images)]


class OnnxNetwork(nn.Module):
    """A session as a network without weights; see `OnnxSession` for arguments and errors."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._session = OnnxSession(path, str(path))
        if self._session.kind is not np.float32:
            raise ConfigError(f"{path} takes images of uint8, which no mean and std go with; wrap it in a function")

    def forward(self, images: Tensor) -> Tensor:
        """Its answers to images float32 `[N, C, H, W]`, on the CPU."""
        return torch.from_numpy(self._session(np.ascontiguousarray(images.detach().cpu().numpy())))
