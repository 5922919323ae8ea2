"""Conditioning: running statistics are the average over images, whatever they were before."""

import pytest
import torch
from torch import nn

from mzsane.layout.buffers import list_statistics
from mzsane.networks.conditioning import condition_statistics, has_statistics


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Dropout(0.5), nn.Flatten(), nn.Linear(75, 2)).eval()


def test_statistics_are_the_average_over_batches(network):
    images = torch.randn(1500, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    norm = network[1]
    with torch.no_grad():
        norm.running_mean.fill_(100.0)
        condition_statistics(network, images)
        hidden = [network[0](part) for part in images.split(500)]
    means = torch.stack([part.mean(dim=(0, 2, 3)) for part in hidden])
    variances = torch.stack([part.var(dim=(0, 2, 3)) for part in hidden])
    torch.testing.assert_close(norm.running_mean, means.mean(dim=0))
    torch.testing.assert_close(norm.running_var, variances.mean(dim=0))


def test_nothing_else_changes(network):
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" not in name}
    condition_statistics(network, torch.randn(20, 1, 7, 7))
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items() if "num_batches" not in name)
    assert not network.training
    assert not network[1].training
    assert network[1].momentum == 0.1


def test_a_network_without_batch_norm_is_not_even_run():
    class Fails(nn.Module):
        def forward(self, images):
            raise AssertionError

    assert not has_statistics(Fails())
    condition_statistics(Fails(), torch.zeros(1))
    assert has_statistics(nn.BatchNorm1d(2))
    assert not has_statistics(nn.BatchNorm1d(2, track_running_stats=False))


def test_instance_norms_that_keep_statistics_are_conditioned_too():
    torch.manual_seed(0)
    norm = nn.InstanceNorm2d(3, track_running_stats=True)
    network = nn.Sequential(nn.Conv2d(1, 3, 3), norm).eval()
    images = torch.randn(1500, 1, 7, 7, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        norm.running_mean.fill_(100.0)
        condition_statistics(network, images)
        hidden = network[0](images)
    torch.testing.assert_close(norm.running_mean, hidden.mean(dim=(2, 3)).mean(dim=0), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(norm.running_var, hidden.var(dim=(2, 3)).mean(dim=0), rtol=1e-3, atol=1e-4)
    assert norm.momentum == 0.1
    assert list_statistics(network) == {"1.running_mean", "1.running_var"}
