"""The device that work runs on."""

import pytest
import torch

from mzsane.device import choose_device
from mzsane.errors import ConfigError


@pytest.mark.parametrize("available", [False, True])
def test_device(monkeypatch, available):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
    assert choose_device("auto").type == ("cuda" if available else "cpu")
    assert choose_device("cpu").type == "cpu"
    if available:
        assert choose_device("cuda").type == "cuda"
    else:
        with pytest.raises(ConfigError, match="torch finds no GPU"):
            choose_device("cuda")
