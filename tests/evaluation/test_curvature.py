"""Flat noise: as far as asked, and hardly felt by the network."""

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.evaluation.curvature import count_images, flatten_noise
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.conditioning import condition_statistics
from mzsane.randomness import make_generator

CHOSEN = torch.tensor([0, 1, 1, 0, 1, 0])


def make_anchors(config=None, statistics="conditioned", channels=1, size=28):
    """Return a network, its layout, two anchors and images."""
    network = build_network(config or NetworkConfig(), channels, 10, size)
    layout = TokenLayout.from_network(network, 51, statistics)
    anchors = []
    for number in range(2):
        initialise_network(network, "kaiming_uniform", make_generator(number))
        anchors.append(2 * layout.flatten(network.state_dict()))
    images_NCHW = torch.randn(300, channels, size, size, generator=make_generator(9))
    return network, layout, torch.stack(anchors), images_NCHW


def measure_change(network, layout, before_SP, after_SP, images_NCHW):
    """Return how far logits move, without what is the same for all classes: its root mean square."""
    behaviour = NetworkBehaviour(network, layout, images_NCHW, 1, "logits")
    with torch.no_grad():
        moved_SNK = behaviour.run_models(after_SP, images_NCHW) - behaviour.run_models(before_SP, images_NCHW)
    return float((moved_SNK - moved_SNK.mean(dim=2, keepdim=True)).square().mean().sqrt())


def test_flat_noise_is_as_far_as_asked_and_its_generator_s():
    network, layout, anchors_AP, images_NCHW = make_anchors()
    distances_S = torch.tensor([0.1, 0.5, 1.0, 2.0, 4.0, 8.0])
    first, again, other = (
        flatten_noise(network, layout, anchors_AP, CHOSEN, distances_S, images_NCHW, make_generator(seed))
        for seed in (0, 0, 1)
    )
    torch.testing.assert_close((first - anchors_AP[CHOSEN]).norm(dim=1), distances_S, rtol=1e-4, atol=0)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_logits_hardly_move_along_flat_noise_on_other_images_too():
    network, layout, anchors_AP, images_NCHW = make_anchors()
    seen_NCHW, others_NCHW = images_NCHW[:200], images_NCHW[200:]
    distances_S = torch.full((6,), 0.3)
    flat_SP = flatten_noise(network, layout, anchors_AP, CHOSEN, distances_S, seen_NCHW, make_generator(0))
    noise_SP = torch.randn(flat_SP.shape, generator=make_generator(1))
    plain_SP = anchors_AP[CHOSEN] + 0.3 * noise_SP / noise_SP.norm(dim=1, keepdim=True)
    on_seen, on_others = (
        [measure_change(network, layout, anchors_AP[CHOSEN], after, images) for after in (flat_SP, plain_SP)]
        for images in (seen_NCHW, others_NCHW)
    )
    assert on_seen[0] < 0.1 * on_seen[1]
    assert on_others[0] < 0.7 * on_others[1]


def test_to_first_order_logits_of_seen_images_do_not_move_at_all():
    # A smooth network: where the largest of a pool changes, what is left is of another order.
    config = NetworkConfig(architecture="mlp", width=16, activation="tanh")
    network, layout, anchors_AP, images_NCHW = make_anchors(config, size=8)
    changes = []
    for distance in (0.4, 0.2):
        arguments = (CHOSEN, torch.full((6,), distance), images_NCHW[:80], make_generator(0))
        flat_SP = flatten_noise(network, layout, anchors_AP, *arguments)
        changes.append(measure_change(network, layout, anchors_AP[CHOSEN], flat_SP, images_NCHW[:80]))
    assert 3.5 < changes[0] / changes[1] < 4.5  # what is left is of second order


def test_images_are_counted_by_weights_and_classes():
    assert count_images(2464, 10, 1000) == 199
    assert count_images(2464, 10, 50) == 50
    assert count_images(20_000, 10, 1000) == 222
    assert count_images(11_000_000, 10, 1000) == 300
    assert count_images(8, 3, 1000) == 3


@pytest.mark.parametrize("statistics", ["in", "conditioned"])
def test_batch_norms_keep_their_statistics(statistics):
    config = NetworkConfig(architecture="resnet18", width=4)
    network, layout, anchors_AP, images_NCHW = make_anchors(config, statistics, channels=3, size=16)
    arguments = (network, layout, anchors_AP, torch.tensor([0]), torch.tensor([0.2]), images_NCHW[:60])
    flat_P = flatten_noise(*arguments, make_generator(0))[0]
    noise_P = torch.randn(layout.weights, generator=make_generator(1))
    plain_P = anchors_AP[0] + 0.2 * noise_P / noise_P.norm()

    def run(weights_P):
        network.load_state_dict(layout.unflatten(anchors_AP[0]), strict=False)
        if statistics == "conditioned":
            condition_statistics(network, images_NCHW[:60])
        network.load_state_dict(layout.unflatten(weights_P), strict=False)
        with torch.no_grad():
            return network.eval()(images_NCHW[:60])

    start_NK = run(anchors_AP[0])
    flat, plain = ((run(weights_P) - start_NK).square().mean().sqrt() for weights_P in (flat_P, plain_P))
    assert flat < 0.7 * plain


def test_a_transformer_has_flat_directions_too():
    config = NetworkConfig(architecture="vit", width=8)
    network, layout, anchors_AP, images_NCHW = make_anchors(config, size=16)
    distances_S = torch.full((6,), 0.3)
    flat_SP = flatten_noise(network, layout, anchors_AP, CHOSEN, distances_S, images_NCHW, make_generator(0))
    torch.testing.assert_close((flat_SP - anchors_AP[CHOSEN]).norm(dim=1), distances_S, rtol=1e-4, atol=0)


def test_a_network_too_large_for_whole_jacobians_is_kept_from_combinations_of_logits():
    config = NetworkConfig(architecture="mlp", width=450, activation="tanh")
    network, layout, anchors_AP, images_NCHW = make_anchors(config)
    assert count_images(layout.weights, 10, 300) == 300
    chosen_S, distances_S = torch.tensor([0]), torch.tensor([1.0])
    flat_SP = flatten_noise(network, layout, anchors_AP, chosen_S, distances_S, images_NCHW, make_generator(0))
    noise_SP = torch.randn(flat_SP.shape, generator=make_generator(1))
    plain_SP = anchors_AP[:1] + noise_SP / noise_SP.norm()
    flat, plain = (measure_change(network, layout, anchors_AP[:1], after, images_NCHW) for after in (flat_SP, plain_SP))
    assert flat < 0.95 * plain
