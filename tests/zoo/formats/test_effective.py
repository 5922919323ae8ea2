"""What layers compute with: masks, norms and spectral norms of torch's own tools give the same outputs."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from mzsane.errors import ConfigError
from mzsane.zoo.formats.effective import compute_weights, is_derived


def make_plain(conv=True):
    torch.manual_seed(0)
    first = nn.Conv2d(1, 3, 3) if conv else nn.Linear(5, 3)
    return nn.Sequential(first, nn.Flatten(), nn.Linear(3 * 36, 2)) if conv else nn.Sequential(first, nn.Linear(3, 2))


def prune_all(network):
    for number, amount in ((0, 0.4), (-1, 0.7)):
        prune.l1_unstructured(network[number], "weight", amount)
        prune.random_unstructured(network[number], "bias", 0.5)


def prune_channels(network):
    prune.ln_structured(network[0], "weight", 0.4, n=2, dim=0)


def warm_up(network):
    network.train()
    for _ in range(5):
        network(torch.randn(4, 1, 8, 8))


def spectral(network):
    parametrizations.spectral_norm(network[0])
    parametrizations.spectral_norm(network[-1])
    warm_up(network)


def spectral_old(network):
    nn.utils.spectral_norm(network[0])
    nn.utils.spectral_norm(network[-1])
    warm_up(network)


def norm_of_all(network):
    parametrizations.weight_norm(network[-1], dim=None)


def norm_of_columns(network):
    parametrizations.weight_norm(network[-1], dim=1)


CHANGES = {
    "pruned": prune_all,
    "pruned channels": prune_channels,
    "weight norm": lambda network: [parametrizations.weight_norm(network[n]) for n in (0, -1)],
    "weight norm of all": norm_of_all,
    "weight norm of columns": norm_of_columns,
    "weight norm of before": lambda network: [nn.utils.weight_norm(network[n]) for n in (0, -1)],
    "spectral norm": spectral,
    "spectral norm of before": spectral_old,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", CHANGES)
def test_outputs_are_those_of_the_layers(kind):
    network = make_plain()
    CHANGES[kind](network)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.dim() != 1:
                parameter.mul_(1.3)
    state = network.state_dict()
    assert is_derived(state)
    plain = make_plain()
    plain.load_state_dict(compute_weights(state))
    images = torch.randn(4, 1, 8, 8)
    network.eval()
    torch.testing.assert_close(plain(images), network(images), rtol=1e-5, atol=1e-6)


def test_masks_of_ones_own_are_applied():
    state = {"fc.weight": torch.ones(2, 2), "fc.mask": torch.tensor([[1.0, 0.0], [0.0, 1.0]]), "mask": torch.ones(3)}
    made = compute_weights(state)
    assert torch.equal(made["fc.weight"], torch.eye(2))
    assert list(made) == ["fc.weight", "mask"]
    with pytest.raises(ConfigError, match="not only zeros and ones"):
        compute_weights({"fc.weight": torch.ones(2, 2), "fc.weight_mask": torch.full((2, 2), 0.5)})


class Twice(nn.Module):
    def forward(self, weight):
        return weight + weight


def test_what_the_file_does_not_tell_is_refused():
    network = nn.Linear(3, 3)
    parametrize.register_parametrization(network, "weight", Twice())
    with pytest.raises(ConfigError, match=r"^another form: weight is made of original .*remove_parametrizations"):
        compute_weights(network.state_dict())
    network = parametrizations.orthogonal(nn.Linear(3, 3))
    with pytest.raises(ConfigError, match=r"^another form: weight .*remove_parametrizations"):
        compute_weights(network.state_dict())
    both = parametrizations.weight_norm(nn.Linear(3, 3))
    parametrize.register_parametrization(both, "weight", Twice())
    if "parametrizations.weight.original0" in (state := both.state_dict()):
        assert is_derived(state)


def test_observers_of_quantisation_are_refused():
    state = {"fc.weight": torch.ones(2, 2), "fc.weight_fake_quant.scale": torch.ones(1)}
    with pytest.raises(ConfigError, match=r"^quantised: .*observers"):
        compute_weights(state)


def test_plain_weights_are_not_derived():
    assert not is_derived(make_plain().state_dict())
    assert not is_derived({"bias_v": torch.ones(3), "weight_g": torch.ones(3), "a.mask": torch.ones(2)})
