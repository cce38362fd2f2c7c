"""Names of tensors in public files, and those of the networks that they are read into."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from synthkd.imports import optional
from synthkd.models.factories import TRANSFORMERS, ZOO

_RESNET_NAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"conv1\.(\w+)", r"stem.0.\1"),
        (r"bn1\.(\w+)", r"stem.1.\1"),
        (r"layer(\d+)\.(\d+)\.conv1\.(\w+)", r"stage\1.\2.branch.0.\3"),
        (r"layer(\d+)\.(\d+)\.bn1\.(\w+)", r"stage\1.\2.branch.1.\3"),
        (r"layer(\d+)\.(\d+)\.conv2\.(\w+)", r"stage\1.\2.branch.3.\3"),
        (r"layer(\d+)\.(\d+)\.bn2\.(\w+)", r"stage\1.\2.branch.4.\3"),
        (r"layer(\d+)\.(\d+)\.(?:downsample|shortcut)\.([01])\.(\w+)", r"stage\1.\2.shortcut.\3.\4"),
        (r"(?:fc|linear|classifier)\.(\w+)", r"head.\1"),
    )
)
"""Names of tensors in public ResNets of this form, and those of the zoo's."""


def public_names(name: str, network: nn.Module) -> Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None:
    """From a state dict of a public file to one under the names of a network; None where public files have no other.

    Args:
        name: of the network, as a recipe has it.
        network: the network itself.
    """
    if name.startswith(TRANSFORMERS):
        return partial(_by_transformers, network)
    return _of_resnet if name == f"{ZOO}resnet" else None


def _of_resnet(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The state dict of a public ResNet under the names of the zoo's."""
    return {_resnet_name(name): value for name, value in state.items()}


def _resnet_name(public: str) -> str:
    """The zoo's name of a tensor of a public ResNet (`layer1.0.conv2.weight`), or the name itself."""
    for pattern, replacement in _RESNET_NAMES:
        if (match := pattern.fullmatch(public)) is not None:
            return match.expand(replacement)
    return public


def _by_transformers(network: Any, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """What transformers makes of a state dict: it saves networks under names, and in parts, that it no longer has."""
    library = optional("transformers", "transformers", "its classifiers")
    # A second network is read, and given to nobody; its fresh weights must not move the random state.
    with _quiet(library.utils.logging), torch.random.fork_rng(devices=[]):
        try:
            read, report = type(network).from_pretrained(
                None, config=network.config, state_dict=dict(state), dtype=torch.float32, output_loading_info=True,
                ignore_mismatched_sizes=True,
            )  # fmt: skip
        except Exception:  # what it cannot read keeps its names, and the error says what does not fit
            return state
    misshapen = {str(entry[0]) for entry in report["mismatched_keys"]}
    drawn = {*report["missing_keys"], *misshapen}
    unread = {name: state[name] for name in {*report["unexpected_keys"], *misshapen} if name in state}
    return {name: value for name, value in read.state_dict().items() if name not in drawn} | unread


@contextmanager
def _quiet(logging: Any) -> Iterator[None]:
    """Without the messages and bars of transformers, whose own settings come back."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
