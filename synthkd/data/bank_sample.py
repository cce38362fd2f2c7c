"""The images of a memory bank that a finished run keeps, so that they can be scored later."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from synthkd.system.files import write_atomically
from synthkd.training.shared_rows import Rows

BANK_SAMPLE = Path("samples") / "bank.npz"
"""Relative to the run; holds `images` uint8 `[N, C, H, W]`, `labels` int64 `[N]` and `logits` float32 `[N, K]`."""


def save_bank_sample(rows: Rows, count: int | None, class_names: Sequence[str], run: Path) -> int:
    """Write images of a memory bank to `BANK_SAMPLE`, and return their number.

    Args:
        rows: of the bank.
        count: largest number of images, evenly spaced from the oldest to the newest; None: all images.
        class_names: one for each class; if empty, the numbers of the classes are saved.
        run: its directory.
    """
    size = rows.stop - rows.first
    chosen = torch.arange(size) if count is None else torch.linspace(0, size - 1, min(count, size)).round().long()
    if not len(chosen):
        return 0
    # The bank may be larger than the memory, so only the chosen images of a block are kept.
    parts: dict[str, list[torch.Tensor]] = {"images": [], "labels": [], "logits": []}
    for block in rows.blocks(rows.first):
        first = block.first - rows.first
        inside = chosen[(chosen >= first) & (chosen < first + len(block))] - first
        for name, values in parts.items():
            values.append(block.columns[name][inside])
    images, labels, logits = (torch.cat(values).numpy() for values in parts.values())
    names = np.array(class_names or [str(label) for label in range(logits.shape[1])], dtype=np.str_)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, images=images, labels=labels, logits=logits, class_names=names)
    write_atomically(run / BANK_SAMPLE, buffer.getvalue())
    return len(chosen)
