"""Mean and standard deviation of a network from elsewhere: both or neither, of images in [0, 1]."""

from typing import Any

import pytest

from synthkd.errors import ConfigError
from synthkd.settings import LoadedModel
from synthkd.settings.load import load_config


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"mean": [0.5]}, "std: it is missing beside mean: write both"),
        ({"std": [0.5]}, "mean: it is missing beside std: write both"),
        (
            {"mean": [125.3, 123.0, 113.9], "std": [63.0, 62.1, 66.7]},
            r"divide both by 255 and write mean: \[0.4914, 0.4824, 0.4467\], std: \[0.2471, 0.2435, 0.2616\]",
        ),
        ({"mean": [0.0], "std": [255.0]}, "divide both by 255"),
        ({"weights": "w.pt", "untrained": True}, "untrained: there are weights, w.pt"),
    ],
)
def test_what_cannot_be_meant_is_one_line_that_says_what_to_write(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(LoadedModel, {"kind": "load", "model": "zoo:mlp", **keys}, [])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("std", [[1 / 255], [0.5], [1.0]])
def test_networks_of_images_in_0_to_255_or_minus_1_to_1_can_be_written(std: list[float]) -> None:
    model = load_config(LoadedModel, {"kind": "load", "model": "zoo:mlp", "mean": [0.5], "std": std}, [])
    assert model.std == tuple(std)
