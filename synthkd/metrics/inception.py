"""Inception v3 of the FID (Heusel et al. 2017), with torch-fidelity's layers and the known weights."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import torch
from torch import nn

from synthkd.errors import ConfigError, ModelError
from synthkd.imports import optional
from synthkd.metrics.efficientnet import read_known_weights
from synthkd.models.classifier import Classifier
from synthkd.models.fitting import load_strictly
from synthkd.types import ImageSpec

URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
CLASSES = 1008
SIZE = 299


def inception(weights: str | None = None, download: bool = False) -> Classifier:
    """The network in eval mode; images `[N, 3, 299, 299]` to logits `[N, 1008]`.

    The logits do not include the bias, as in the code of the Inception score (Salimans et al. 2016).

    Args:
        weights: the weights file; None takes the one in torch.hub's folder.
        download: fetch the file if torch.hub's folder does not have it.

    Raises:
        ConfigError: there is no file, and `download` is False.
        ModelError: the file does not exist, has other content, or cannot be downloaded.
        MissingExtraError: torch-fidelity is not installed.
    """
    library = optional("torch_fidelity.feature_extractor_inceptionv3", "inception", "the feature network inception")
    path = Path(weights).expanduser() if weights is not None else _cached_weights(download)
    state = read_known_weights(path, SHA256, f"fetch {URL}")
    # Building a network draws initial weights, which must not advance the random numbers of the caller.
    with torch.random.fork_rng(devices=[]):
        whole = library.FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=str(path))
    # torch-fidelity's own forward pass resizes and casts; its children in their order are the bare network. They end
    # with pooling and the linear layer, between which that forward pass flattens.
    layers = dict(whole.named_children())
    last = layers.pop("fc")
    body = nn.Sequential()
    for name, layer in {**layers, "flatten": nn.Flatten(), "fc": last}.items():
        body.add_module(name, layer)
    load_strictly(body, state, str(path))
    # Published Inception scores are of the logits without the bias.
    with torch.no_grad():
        last.bias.zero_()
    # The network takes (x - 128) / 128 of 8-bit values x; a Classifier gets x / 255.
    spec = ImageSpec(3, SIZE, SIZE, CLASSES)
    return Classifier(body, spec, (128 / 255,) * 3, (128 / 255,) * 3, {"network": "inception"}).eval()


def _cached_weights(download: bool) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / URL.rpartition("/")[2]
    if path.is_file():
        return path
    if not download:
        raise ConfigError(
            f"the extractor inception needs its weights: set `weights` to a local copy of {URL}, or `download: true` "
            "to fetch it"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(URL, str(path), hash_prefix=SHA256)
    except (OSError, RuntimeError, HTTPException) as error:  # no network, another file, a broken connection
        raise ModelError(
            f"downloading {URL} failed ({error}); fetch it elsewhere and set `weights` to the local file"
        ) from error
    return path
