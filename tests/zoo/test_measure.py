"""Measuring needs a network: without one the setting would do nothing."""

import pytest
import torch

from mzsane.config import ExecutionConfig, ReadConfig
from mzsane.errors import ConfigError
from mzsane.zoo.read import read_zoo


def test_measure_of_networks_that_are_not_known_is_refused(store, tmp_path):
    for number in range(3):
        torch.save({"odd.weight": torch.randn(5, 7), "odd.bias": torch.randn(5)}, tmp_path / f"{number}.pt")
    settings = {"name": "r", "source": str(tmp_path), "images": {"source": "digits"}}
    read_zoo(ReadConfig.model_validate(settings), store, ExecutionConfig(processes=1))
    with pytest.raises(ConfigError, match="measure needs the network"):
        read_zoo(ReadConfig.model_validate(settings | {"measure": True}), store, ExecutionConfig(processes=1))
