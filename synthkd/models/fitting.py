"""Copy weights into a network: the same names and shapes, after what trainers and wrappers did to the names is undone.

Prefixes of wrappers are removed, counters of BatchNorm that old PyTorch did not save are filled, and tensors that the
network shares are taken from the name that the file has. Each of these only where all names then fit.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from synthkd.errors import ConfigError, ModelError
from synthkd.models.weights import not_finite, read_state_dicts, some
from synthkd.system.text import first_line

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "backbone.")
"""What wrappers put before each name: DataParallel, torch.compile, Lightning and networks inside networks."""
AVERAGES = "n_averaged"
"""Counter beside the weights of torch's `AveragedModel`."""
COUNTER = "num_batches_tracked"
"""BatchNorm's counter of batches, which PyTorch before 0.4.1 did not have."""
PREFERRED = ("", "state_dict", "model_state_dict", "model", "net", "module")
"""Keys of trainers' dicts, first choice first; averages (`ema`) come after them, in the order of the file."""

State = Mapping[str, Tensor]
Rename = Callable[[State], State]


@dataclass(frozen=True)
class Fit:
    """A state dict under the names of a network.

    Attributes:
        state: what was candidates for the network's names.
        problems: what keeps it from fitting; empty if it fits.
        notes: what was undone.
    """

    state: State
    problems: tuple[str, ...]
    notes: tuple[str, ...]


def load_strictly(model: nn.Module, state: State, source: str, rename: Rename | None = None) -> tuple[str, ...]:
    """Copy a state dict into a model, and return what was undone to make its names fit.

    Args:
        model: on any device.
        state: name -> tensor.
        source: where the state dict comes from, for errors.
        rename: gives a state dict of a public file under the model's names; it is tried after the names as they are.

    Raises:
        ModelError: missing, unexpected or misshapen entries, or entries that are not finite; the error names them, and
            the model is unchanged.
    """
    fit = fitted(model, state, rename)
    if fit.problems:
        raise ModelError(
            f"weights in {source} do not fit the model: {'; '.join(fit.problems)}; "
            "check the architecture, its options and the class count"
        )
    if bad := not_finite(fit.state):
        raise ModelError(
            f"weights in {source} are not finite in {len(bad)} of {len(fit.state)} tensors: {some(bad)}; the file is "
            "damaged or of a training that diverged, take another"
        )
    # After every check, so that a model never has a part of the weights.
    _load(model, fit.state, source)
    return fit.notes


def _load(model: nn.Module, state: State, source: str) -> None:
    """Copy a state that fits, under the versions of the model's own modules: some (MNASNet) refuse one without them."""
    versioned = OrderedDict(state)
    versioned._metadata = getattr(model.state_dict(), "_metadata", None)  # type: ignore[attr-defined]
    try:
        model.load_state_dict(versioned)
    except Exception as error:  # other people's modules may refuse what has the right names and shapes
        line = first_line(error)
        raise ModelError(f"weights in {source}: the network refuses them: {line}; save them again with it") from error


def load_file(
    model: nn.Module, path: Path | str, key: str | None = None, rename: Rename | None = None
) -> tuple[str, ...]:
    """Copy the weights in a file into a model, and return how: what was chosen, removed or filled.

    Of several state dicts in the file, those that fit count: `PREFERRED` orders them.

    Args:
        model: on any device.
        path: the file, see `read_state_dicts`.
        key: of the state dict inside the file; None chooses.
        rename: as in `load_strictly`.

    Raises:
        ConfigError: the file has no state dict under this key.
        ModelError: as `read_state_dicts` and `load_strictly`.
    """
    candidates = read_state_dicts(Path(path))
    if key is not None:
        if key not in candidates:
            raise ConfigError(f"weights_key: {path} has no state dict under '{key}'; it has {some(_named(candidates))}")
        return (f"`{key}` of the file", *load_strictly(model, candidates[key], f"`{key}` of {path}", rename))
    ordered = sorted(candidates, key=lambda name: PREFERRED.index(name) if name in PREFERRED else len(PREFERRED))
    fitting = [name for name in ordered if not fitted(model, candidates[name], rename).problems]
    chosen = (fitting or ordered)[0]
    notes = load_strictly(model, candidates[chosen], f"`{chosen}` of {path}" if chosen else str(path), rename)
    if not chosen:
        return notes
    others = f" ({some(fitting[1:])} would fit too: weights_key chooses)" if len(fitting) > 1 else ""
    return (f"`{chosen}` of the file{others}", *notes)


def fitted(model: nn.Module, state: State, rename: Rename | None = None) -> Fit:
    """A state dict under the names of a model: as it is, or without prefixes, or renamed; the first that fits.

    If none fits, the problems are those of the names that come closest.
    """
    own = model.state_dict()
    tries: list[Fit] = []
    for names, notes in _renamed(state, rename):
        tries.append(_completed(own, names, notes))
        if not tries[-1].problems:
            return tries[-1]
    return min(tries, key=lambda one: len(_differing(own, one.state)))


def _renamed(state: State, rename: Rename | None) -> Iterator[tuple[State, tuple[str, ...]]]:
    """The state dict under its names, then without one prefix, without two and so on; each also renamed."""
    if AVERAGES in state and all(name == AVERAGES or name.startswith(PREFIXES[0]) for name in state):
        state = {name: value for name, value in state.items() if name != AVERAGES}
    removed = ""
    while True:
        notes = (f"without the prefix {removed}",) if removed else ()
        yield state, notes
        if rename is not None:
            yield rename(state), (*notes, "public names renamed")
        prefix = next((one for one in PREFIXES if state and all(name.startswith(one) for name in state)), None)
        if prefix is None:
            return
        removed += prefix
        state = {name.removeprefix(prefix): value for name, value in state.items()}


def _completed(own: State, state: State, notes: tuple[str, ...]) -> Fit:
    """The state dict with counters and shared tensors that the file left out, and what does not fit then."""
    # A frozen BatchNorm has the moments and no counter.
    means = {name.replace(COUNTER, "running_mean"): name for name in state if name.endswith(f".{COUNTER}")}
    dropped = {name for mean, name in means.items() if mean in own and name not in own}
    if dropped:
        state = {name: value for name, value in state.items() if name not in dropped}
        notes = (*notes, f"{len(dropped)} counters of BatchNorm left out")
    missing = [name for name in own if name not in state]
    counters = {name: torch.zeros_like(own[name]) for name in missing if name.endswith(f".{COUNTER}")}
    # Files of shared tensors have one name for all of them.
    place = {_place(own[name]): name for name in own if name in state and own[name].numel()}
    shared = {name: state[place[_place(own[name])]] for name in missing if _place(own[name]) in place}
    state = {**state, **counters, **shared}
    if counters:
        notes = (*notes, f"{len(counters)} counters of BatchNorm filled with 0")
    if shared:
        notes = (*notes, f"{len(shared)} shared tensors taken by their other names")
    problems = {
        "missing": [name for name in own if name not in state],
        "unexpected": [name for name in state if name not in own],
        "of another shape": [
            f"{name} ({list(state[name].shape)} in the file, {list(value.shape)} in the model)"
            for name, value in own.items()
            if name in state and state[name].shape != value.shape
        ],
    }
    lines = tuple(f"{len(names)} {problem}: {some(names)}" for problem, names in problems.items() if names)
    return Fit(state, lines, notes)


def _differing(own: State, state: State) -> set[str]:
    return own.keys() ^ state.keys()


def _place(tensor: Tensor) -> tuple[int, tuple[int, ...]]:
    """Where a tensor lies in memory; tied tensors lie in one place."""
    return tensor.data_ptr(), tuple(tensor.shape)


def _named(candidates: Mapping[str, State]) -> Sequence[str]:
    return [f"'{name}'" if name else "one without a key" for name in candidates]
