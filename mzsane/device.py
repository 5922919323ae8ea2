"""The device that work runs on."""

from typing import Literal

import torch

from mzsane.config import ExecutionConfig
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


def count_memory(device: torch.device) -> int:
    """Return the memory of a GPU, bytes: all of it, whoever has some, so that it is the same in every run."""
    return int(torch.cuda.get_device_properties(device).total_memory)


def find_device(execution: ExecutionConfig | None) -> torch.device:
    """Return the device of an execution, by default that of an `ExecutionConfig` as it is.

    Raises:
        ConfigError: as `choose_device`.
    """
    return choose_device((execution or ExecutionConfig()).device)
