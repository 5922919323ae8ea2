import torch

from mzsane.evaluation.baselines import (
    add_decoded_noise,
    add_layer_noise,
    average_anchors,
    draw_from_statistics,
    draw_random_models,
    interpolate_anchors,
)
from mzsane.randomness import make_generator


def test_noise_is_as_far_from_its_anchor_as_asked(tiny_table):
    anchors = tiny_table.load()[:3]
    chosen = torch.tensor([0, 2, 2, 1])
    distances = torch.tensor([0.5, 1.0, 2.0, 4.0])
    noisy = add_layer_noise(anchors, chosen, distances, tiny_table.layout, make_generator(0))
    torch.testing.assert_close((noisy - anchors[chosen]).norm(dim=1), distances)


def test_noise_follows_the_scale_of_each_tensor(tiny_table):
    layout = tiny_table.layout
    anchors = tiny_table.load()[:3].clone()
    first, second = layout.tensors[0].name, layout.tensors[2].name
    scales = layout.unflatten(anchors)
    scales[first] *= 100
    chosen = torch.zeros(200, dtype=torch.int64)
    noisy = add_layer_noise(anchors, chosen, torch.full((200,), 5.0), layout, make_generator(1))
    noise = layout.unflatten(noisy - anchors[chosen])
    ratio = noise[first].std() / noise[second].std()
    expected = scales[first].std() / scales[second].std()
    torch.testing.assert_close(ratio, expected, rtol=0.1, atol=0)


def test_decoded_noise_is_as_far_from_the_undecoded_anchor_as_asked(tiny_table):
    anchors = tiny_table.load()[:3]
    lost = 0.01 * torch.randn(anchors.shape, generator=make_generator(2))
    chosen = torch.tensor([0, 2, 2, 1]).repeat(25)
    distances = torch.linspace(0.6, 4.0, 100)
    noisy = add_decoded_noise(anchors, anchors + lost, chosen, distances, tiny_table.layout, make_generator(0))
    assert lost.norm(dim=1).max() < 0.6
    torch.testing.assert_close((noisy - anchors[chosen]).norm(dim=1), distances, rtol=1e-5, atol=0)
    # It starts from the decoded anchor: part of the way is the autoencoder's.
    decoded_distances = (noisy - (anchors + lost)[chosen]).norm(dim=1)
    assert decoded_distances[0] < 0.75 * distances[0]


def test_a_decoded_anchor_that_is_farther_than_the_sample_stays(tiny_table):
    anchors = tiny_table.load()[:2]
    decoded = anchors + 0.1
    distances = (decoded - anchors).norm(dim=1) * torch.tensor([0.9, 1.0])
    chosen = torch.arange(2)
    noisy = add_decoded_noise(anchors, decoded, chosen, distances, tiny_table.layout, make_generator(0))
    assert torch.equal(noisy[0], decoded[0])
    torch.testing.assert_close(noisy[1], decoded[1], rtol=1e-3, atol=1e-3)


def test_decoded_noise_has_the_same_noise_where_nothing_is_lost(tiny_table):
    anchors, chosen, distances = tiny_table.load()[:2], torch.tensor([1, 0]), torch.tensor([1.0, 2.0])
    arguments = (chosen, distances, tiny_table.layout)
    decoded = add_decoded_noise(anchors, anchors, *arguments, make_generator(3))
    torch.testing.assert_close(decoded, add_layer_noise(anchors, *arguments, make_generator(3)))


def test_average_is_one_model_weight_by_weight(tiny_table):
    anchors = tiny_table.load()[:4]
    average = average_anchors(anchors)
    assert average.shape == (1, anchors.shape[1])
    torch.testing.assert_close(average[0], sum(anchors) / 4)


def test_random_models_differ_and_start_like_a_zoo(tiny_zoo_config, tiny_table):
    layout = tiny_table.layout
    models = draw_random_models(tiny_zoo_config.network, tiny_zoo_config.images, layout, 3, make_generator(0))
    assert models.shape == (3, layout.weights)
    assert not torch.equal(models[0], models[1])
    biases = layout.unflatten(models)["module_list.0.bias"]
    assert torch.equal(biases, torch.full_like(biases, 0.01))


def test_interpolations_lie_between_two_different_anchors():
    anchors = torch.eye(3)
    drawn = interpolate_anchors(anchors, 200, make_generator(0))
    torch.testing.assert_close(drawn.sum(dim=1), torch.ones(200))
    assert ((drawn > 0).sum(dim=1) == 2).all()
    assert len({tuple(row) for row in (drawn > 0).tolist()}) == 3
    assert drawn.max() > 0.95
    assert 0.45 < float(drawn[drawn > 0].mean()) < 0.55


def test_statistics_are_those_of_each_tensor_and_nothing_else(tiny_table):
    layout = tiny_table.layout
    anchors = tiny_table.load()[:4]
    drawn = draw_from_statistics(anchors, layout, 500, make_generator(0))
    for entry, known, found in zip(
        layout.tensors, layout.unflatten(anchors).values(), layout.unflatten(drawn).values(), strict=True
    ):
        if entry.size > 20:
            torch.testing.assert_close(found.std(), known.std(correction=0), rtol=0.05, atol=0)
            assert (found.mean() - known.mean()).abs() < 0.05 * known.std()
            assert found.mean(dim=0).std() < 0.2 * known.std()
