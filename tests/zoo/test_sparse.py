"""Sparse twins: as sparse as asked for, zeros that stay zeros, a trajectory that is complete."""

import polars as pl
import pytest
import torch
from torch import nn

from mzsane.config import ExecutionConfig
from mzsane.config.zoos import SparseConfig
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_loop import measure
from mzsane.problems.images.dataset import load_images
from mzsane.zoo.shards import load_weights
from mzsane.zoo.sparse import drop_epochs, measure_sparsity, plan_sparse, prune_steps, sparsify_zoo

SERIAL = ExecutionConfig(processes=1)


@pytest.fixture
def trained(tiny_zoo, tiny_zoo_config):
    """A network of the tiny zoo, and its images."""
    _, weights = load_weights(tiny_zoo)
    images = load_images(tiny_zoo_config.images)
    network = build_network(tiny_zoo_config.network, 1, 4)
    network.load_state_dict({name: value[1] for name, value in weights.items()})
    return network, images


def list_weights(network):
    return {name: p.detach().clone() for name, p in network.named_parameters() if p.ndim > 1}


class TestMagnitude:
    @pytest.mark.parametrize("scope", ["global", "layer"])
    def test_removes_the_smallest_and_keeps_them_zero(self, trained, tiny_zoo_config, scope):
        network, images = trained
        before = list_weights(network)
        config = SparseConfig(name="t", zoo=tiny_zoo_config, scope=scope, sparsity=(0.3, 0.7), epochs=1)
        zeros = []
        for share, sparse in zip(
            config.sparsity, prune_steps(network, images.splits["train"], config, torch.Generator()), strict=True
        ):
            assert measure_sparsity(sparse) == pytest.approx(share, abs=0.02)
            after = list_weights(sparse)
            if scope == "layer":
                for name, value in after.items():
                    assert (value == 0).float().mean().item() == pytest.approx(share, abs=0.05), name
            zeros.append({name: value == 0 for name, value in after.items()})
            if share == 0.3:
                pooled = torch.cat([value.abs().flatten() for value in before.values()])
                removed = torch.cat([zero.flatten() for zero in zeros[0].values()])
                if scope == "global":
                    assert pooled[removed].max() <= pooled[~removed].min()
                assert not all(torch.equal(after[name], before[name] * ~zeros[0][name]) for name in after)  # trained
        for name in zeros[0]:
            assert bool((zeros[1][name] | ~zeros[0][name]).all())

    def test_zoo_of_twins_has_the_trajectory(self, make_store, tiny_zoo, tiny_zoo_config):
        store = make_store()
        config = SparseConfig(name="twins", zoo=tiny_zoo_config, sparsity=(0.5, 0.9), epochs=1)
        zoo = sparsify_zoo(config, store, SERIAL)
        index, weights = load_weights(zoo)
        assert index.select("model", "epoch").rows() == [(f"{m:06d}", e) for m in range(6) for e in (1, 2)]
        assert index["sparsity"].to_list() == pytest.approx([0.5, 0.9] * 6, abs=0.02)
        images = load_images(tiny_zoo_config.images)
        network = build_network(tiny_zoo_config.network, 1, 4)
        for row in (0, 11):
            network.load_state_dict({name: value[row] for name, value in weights.items()})
            assert measure_sparsity(network) == index["sparsity"][row]
            assert measure(network, images.splits["test"])[0] == pytest.approx(index["test_loss"][row], rel=1e-5)
        assert zoo.manifest.inputs == {"zoo": str(tiny_zoo.ref)}
        assert sparsify_zoo(config, store).ref == zoo.ref == plan_sparse(config).ref

    @pytest.mark.parametrize("sparsity", [(), (0.5, 0.2), (0.0,), (0.5, 1.0)])
    def test_bad_trajectories_are_refused(self, tiny_zoo_config, sparsity):
        with pytest.raises(ValueError, match="sparsity"):
            SparseConfig(name="t", zoo=tiny_zoo_config, sparsity=sparsity)


class TestVariational:
    def test_finds_the_weights_that_do_not_matter(self):
        """Of 40 inputs the first two decide the class; the weights of the others go, and the accuracy stays."""
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(600, 40, 1, 1, generator=generator)
        labels = (x[:, 0, 0, 0] + x[:, 1, 0, 0] > 0).long()
        from mzsane.problems.images.dataset import ImageSplit

        split = ImageSplit(x, labels)
        network = nn.Sequential(nn.Flatten(), nn.Linear(40, 2))
        initialise_network(network, "kaiming_uniform", generator)
        from mzsane.config import DigitsConfig, ZooConfig

        zoo = ZooConfig(name="z", images=DigitsConfig(source="digits"))
        config = SparseConfig(
            name="t", zoo=zoo, method="variational", epochs=60, learning_rate=0.02, batch_size=60, threshold=1.0
        )
        for step, sparse in enumerate(drop_epochs(network, split, config, generator)):
            if step == 0:
                assert measure_sparsity(sparse) < 0.5
            last = measure_sparsity(sparse), measure(sparse, split)[1], sparse[1].weight.detach().clone()
        sparsity, accuracy, weight = last
        assert sparsity > 0.6
        assert accuracy > 0.95
        assert (weight[:, :2] != 0).any(dim=0).all()

    def test_zoo_has_plain_networks(self, make_store, tiny_zoo, tiny_zoo_config):
        config = SparseConfig(name="twins", zoo=tiny_zoo_config, method="variational", epochs=2)
        index, weights = load_weights(sparsify_zoo(config, make_store(), SERIAL))
        network = build_network(tiny_zoo_config.network, 1, 4)
        network.load_state_dict({name: value[-1] for name, value in weights.items()})
        assert measure_sparsity(network) == index["sparsity"][-1]
        assert index.filter(pl.col("epoch") == 2)["train_accuracy"].min() > 0.2
