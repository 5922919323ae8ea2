"""Buffers: which count, how they are stored, and what a state dict must keep."""

import copy

import pytest
import torch
from torch import nn

from mzsane.errors import ConfigError
from mzsane.layout.buffers import StoredBuffer, check_saved, copy_network, list_buffers, same_values
from tests.factories import Averaged, Forgetful


@pytest.mark.parametrize(
    "value",
    [
        torch.randn(3, 4).t(),
        torch.tensor(float("nan")),
        torch.arange(5),
        torch.tensor([True, False]),
        torch.randn(2).to(torch.bfloat16),
        torch.randn(2, dtype=torch.complex64),
        torch.empty(0, 3),
    ],
    ids=lambda value: f"{value.dtype}-{tuple(value.shape)}",
)
def test_a_stored_buffer_comes_back_as_it_was(value):
    stored = StoredBuffer.model_validate_json(StoredBuffer.from_tensor("name", value).model_dump_json())
    assert same_values(stored.to_tensor(), value)


def test_what_is_no_number_is_like_itself_and_types_differ():
    nan = torch.tensor([1.0, float("nan")])
    assert same_values(nan, nan.clone())
    assert not same_values(nan, torch.tensor([1.0, 2.0]))
    assert not same_values(torch.tensor([1]), torch.tensor([1.0]))
    assert not same_values(torch.tensor([1.0]), torch.tensor([1.0, 1.0]))


def test_statistics_and_counters_of_norms_are_apart():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.InstanceNorm1d(2, track_running_stats=True), Averaged(1, 2))
    assert set(list_buffers(network)) == {"2.centre", "2.steps", "2.seen"}


def test_a_state_dict_must_keep_what_training_changes():
    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("drawn", torch.randn(3), persistent=False)

        def forward(self, x):
            return x

    images = torch.randn(4, 1, 28, 28)
    check_saved(Averaged(1, 2), Averaged(1, 2), images, "fine")
    with pytest.raises(ConfigError, match=r"one changes while it is trained .* \(average\).*persistent"):
        check_saved(Forgetful(1, 2), Forgetful(1, 2), images, "one")
    with pytest.raises(ConfigError, match=r"one draws at random .* \(drawn\)"):
        check_saved(Random(), Random(), images, "one")


def test_a_weight_that_a_hook_computes_can_be_copied():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(3, 2))
    with pytest.raises(RuntimeError, match="deepcopy"):
        copy.deepcopy(layer)
    x = torch.randn(4, 3)
    torch.testing.assert_close(copy_network(layer, x)(x), layer(x))
