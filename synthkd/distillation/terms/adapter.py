"""The architecture adapter: cross-attention brings student features into the layout of the teacher's."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from synthkd.errors import ModelError
from synthkd.losses.alignment import positions

# Both divide the width, which is a multiple of 8.
GROUPS = 4
HEADS = 4
_WIDEST = 128
_FREQUENCIES = 4  # of the embedding of a position: from half a period over the image to four periods


class ArchitectureAdapter(nn.Module):
    """Student features of any layout, resampled at the teacher's positions; trained with the student, never saved.

    The student's positions go through a 1x1 projection, GroupNorm and GELU and become keys and values; each position of
    the teacher is a query, and a linear layer maps the result to the teacher's channels. Published forms take the
    teacher's features as queries. They leak the target to the attention, which can reconstruct it from almost any
    student features, so by default queries are positional embeddings only (set `content` for the published form).

    Positions are coordinates in the unit square, at any resolution. Each head prefers keys near its query, within a
    neighbourhood whose size is learned. An untrained adapter does little more than resample the student's map. Memory
    grows with heads x teacher positions x student positions for each image, so average large maps down first
    (`no_finer`).

    Args:
        teacher: channels of the teacher's features.
        student: channels of the student's features.
        content: add a projection of the teacher's features to the queries; they get no gradient.

    Attributes:
        channels: those of teacher and student.
        width: channels of keys, queries and values: the smaller of the two rounded up to a multiple of 8, in 16..128.
    """

    def __init__(self, teacher: int, student: int, content: bool = False) -> None:
        super().__init__()
        self.channels = (teacher, student)
        self.width = min(_WIDEST, max(16, -(-min(teacher, student) // 8) * 8))
        self.project = _projection(student, self.width)
        # `ask` projects the teacher's features to queries; `place` embeds the positions of queries and keys.
        self.ask = _projection(teacher, self.width) if content else None
        self.place = nn.ModuleDict({side: nn.Linear(4 * _FREQUENCIES + 1, self.width) for side in ("query", "key")})
        self.query, self.key, self.value = (nn.Linear(self.width, self.width) for _ in range(3))
        self.out = nn.Linear(self.width, teacher)
        # 1 / radius^2 of each head's neighbourhood, as a logarithm so that it stays positive. The first head attends to
        # nearly all positions, each next one to fewer, down to a radius of 1/16 of the image.
        self.log_nearness = nn.Parameter(torch.linspace(0.0, math.log(256.0), HEADS))

    def forward(self, teacher: Tensor, student: Tensor) -> Tensor:
        """The student's features in the layout of the teacher's.

        Args:
            teacher: `[N, C, H, W]`, `[N, T, C]` or `[N, C]`; without `content` only its shape is used.
            student: `[N, ...]` likewise, with its own channels and sizes.

        Returns:
            Features of the teacher's shape, with gradient to the student. If the student has a single position, they
            are equal at all positions.

        Raises:
            ModelError: other channels than those of the adapter, or different numbers of images.
        """
        target, source = positions(teacher), positions(student)
        got = (target.shape[-1], source.shape[-1])
        if got != self.channels or len(target) != len(source):
            raise ModelError(
                f"an adapter for {self.channels[0]} teacher and {self.channels[1]} student channels of the same images "
                f"got teacher {list(teacher.shape)} and student {list(student.shape)}; make one for these features"
            )
        # float32 also in mixed precision: half precision is too coarse for products of features.
        with torch.autocast(source.device.type, enabled=False):
            resampled = self._attend(target.float(), source.float(), coordinates(teacher), coordinates(student))
        if teacher.dim() == 4:
            return resampled.transpose(1, 2).reshape(teacher.shape)
        return resampled if teacher.dim() == 3 else resampled.squeeze(1)

    def _attend(self, target: Tensor, source: Tensor, there: Tensor, here: Tensor) -> Tensor:
        """Cross-attention from positions `there [T, 3]` of the teacher to positions `here [S, 3]` of the student."""
        there, here = there.to(source.device), here.to(source.device)
        tokens = self._through(self.project, source)
        queries = self.place["query"](_waves(there)).expand(len(source), -1, -1)
        if self.ask is not None:
            # Detached: a teacher that learned from this term could make its features easy to reconstruct.
            queries = queries + self._through(self.ask, target.detach())
        q, k, v = (
            layer(x).unflatten(-1, (HEADS, -1)).transpose(1, 2)
            for layer, x in (
                (self.query, queries),
                (self.key, tokens + self.place["key"](_waves(here))),
                (self.value, tokens),
            )
        )
        # Each score of a query at x and a key at y gets -n |x - y|^2 = 2 n x.y - n |y|^2 - n |x|^2. The last part is
        # the same for all keys, so the softmax ignores it. The rest is a dot product, so it becomes three further
        # dimensions of queries and keys, which saves an array over all pairs of positions.
        nearness = self.log_nearness.exp()[:, None, None]
        # The scale of dot-product attention is for the content alone; distances have n as their own.
        q = _append(q / math.sqrt(q.shape[-1]), torch.cat([2.0 * there, -torch.ones_like(there[:, :1])], 1) * nearness)
        k = _append(k, torch.cat([here, here.square().sum(dim=1, keepdim=True)], dim=1))
        resampled: Tensor = self.out(((q @ k.transpose(-1, -2)).softmax(dim=-1) @ v).transpose(1, 2).flatten(2))
        return resampled

    @staticmethod
    def _through(projection: nn.Module, tokens: Tensor) -> Tensor:
        projected: Tensor = projection(tokens.transpose(1, 2))
        return projected.transpose(1, 2)


def no_finer(teacher: Tensor, student: Tensor) -> Tensor:
    """The teacher's map averaged down to the student's numbers of rows and columns; other layouts are unchanged.

    A student of 7x7 positions cannot resolve 14x14, and the attention would cost four times as much.

    Args:
        teacher: `[N, C, H, W]`, `[N, T, C]` or `[N, C]`.
        student: `[N, ...]` likewise; tokens count as the largest square grid that they fill, a class token left out.
    """
    if teacher.dim() != 4:
        return teacher
    side = math.isqrt(positions(student).shape[1])
    rows, columns = student.shape[2:] if student.dim() == 4 else (side, side)
    size = (min(teacher.shape[2], rows), min(teacher.shape[3], columns))
    return teacher if size == teacher.shape[2:] else F.adaptive_avg_pool2d(teacher, size)


def coordinates(features: Tensor) -> Tensor:
    """Coordinates of the positions of features.

    A square number of tokens is read as a grid, a square number plus one as a class token before a grid, and any other
    number as a line from top to bottom. A vector and a class token lie in the middle.

    Args:
        features: `[N, C, H, W]`, `[N, T, C]` or `[N, C]`.

    Returns:
        float32 `[T, 3]`: row and column in (0, 1), and 1 for a class token, else 0.
    """
    if features.dim() == 4:
        return _grid(features.shape[2], features.shape[3])
    count = 1 if features.dim() == 2 else features.shape[1]
    side = math.isqrt(count)
    if side * side == count:
        return _grid(side, side)
    side = math.isqrt(count - 1)
    if side * side == count - 1:
        return torch.cat([torch.tensor([[0.5, 0.5, 1.0]]), _grid(side, side)])
    return _grid(count, 1)


def _grid(height: int, width: int) -> Tensor:
    rows, columns = ((torch.arange(n) + 0.5) / n for n in (height, width))
    return torch.cartesian_prod(rows, columns, torch.zeros(1))


def _waves(places: Tensor) -> Tensor:
    """Sines and cosines of row and column at doubling frequencies, and the class token's mark: `[T, 17]`."""
    angles = math.pi * places[:, :2, None] * 2.0 ** torch.arange(_FREQUENCIES, device=places.device)
    return torch.cat([angles.sin().flatten(1), angles.cos().flatten(1), places[:, 2:]], dim=1)


def _append(x: Tensor, more: Tensor) -> Tensor:
    """`[N, heads, T, d]` with further dimensions, the same for every image."""
    return torch.cat([x, more.expand(*x.shape[:2], -1, -1)], dim=-1)


def _projection(channels: int, width: int) -> nn.Sequential:
    # GroupNorm, because it has no running statistics and no image depends on the others of its batch.
    return nn.Sequential(nn.Conv1d(channels, width, 1), nn.GroupNorm(GROUPS, width), nn.GELU())
