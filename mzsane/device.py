"""The device that work runs on."""

from typing import Literal

import torch

from mzsane.errors import ConfigError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Return the device for `execution.device`.

    Raises:
        ConfigError: a GPU is asked for and there is none.
    """
    there = torch.cuda.is_available()
    if wanted == "cuda" and not there:
        raise ConfigError("execution.device is cuda, but torch finds no GPU: leave it at auto, or mend the driver")
    return torch.device("cuda" if there and wanted != "cpu" else "cpu")
