"""Distillation: students come to do what their teachers do on the mean."""

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.evaluation.distillation import choose_rate, distil, write_mean_targets
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.build import build_network, initialise_network
from mzsane.problems.images.pseudo import draw_pseudo_images
from mzsane.randomness import make_generator
from mzsane.sampling.guidance import write_soft_targets

STUDENTS = 3


def make_parts():
    """Return a network, its layout, two teachers, images, and fresh students."""
    network = build_network(NetworkConfig(architecture="mlp", width=4), 1, 3, 8)
    layout = TokenLayout.from_network(network, 16, "in")
    models = []
    for number in range(2 + STUDENTS):
        initialise_network(network, "kaiming_uniform", make_generator(number))
        models.append(layout.flatten(network.state_dict()))
    models_SP = torch.stack(models)
    images_NCHW = torch.randn(600, 1, 8, 8, generator=make_generator(0))
    return network, layout, 3 * models_SP[:2], images_NCHW, models_SP[2:]


def make_lessons(output="probabilities"):
    """Return what the teachers say, and the students."""
    *parts, start_SP = make_parts()
    return write_mean_targets(*parts, output), start_SP


def measure_distance(lessons, flat_SP):
    """Return the root mean square difference of the students' outputs and the lessons."""
    with torch.no_grad():
        outputs_SNK = write_soft_targets(lessons.network, flat_SP, lessons.images_NCHW)
    return float((outputs_SNK - lessons.goals_NK).square().mean().sqrt())


@pytest.mark.parametrize("output", ["probabilities", "logits"])
def test_more_steps_bring_students_nearer_to_the_mean_of_their_teachers(output):
    lessons, start_SP = make_lessons(output)
    found = [measure_distance(lessons, distil(lessons, start_SP, steps, 0.03, 0).flat_SP) for steps in (0, 10, 200)]
    assert found[1] < 0.95 * found[0]
    assert found[2] < 0.6 * found[0]


def test_lessons_are_the_mean_of_the_teachers_and_probabilities_add_up():
    network, layout, teachers_AP, images_NCHW, _ = make_parts()
    both, first, second = (
        write_mean_targets(network, layout, teachers_AP[some], images_NCHW, "logits").goals_NK
        for some in ([0, 1], [0], [1])
    )
    torch.testing.assert_close(both, (first + second) / 2)
    said_NK = write_mean_targets(network, layout, teachers_AP, images_NCHW, "probabilities").goals_NK
    torch.testing.assert_close(said_NK.sum(dim=1), torch.ones(600))


def test_the_seed_decides_and_a_student_alone_learns_the_same():
    lessons, start_SP = make_lessons()
    first, again, other = (distil(lessons, start_SP, 20, 0.03, seed).flat_SP for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.testing.assert_close(distil(lessons, start_SP[1:2], 20, 0.03, 0).flat_SP, first[1:2])


def test_rates_fall_with_the_steps_to_a_floor():
    rates = [choose_rate(steps) for steps in (1, 30, 100, 300, 1000)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == rates[1] == 0.03
    assert 0.015 < rates[2] < 0.02
    assert rates[3] == rates[4] == 0.01


def test_what_a_student_costs_is_counted():
    lessons, start_SP = make_lessons()
    done = distil(lessons, start_SP, 20, 0.03, 0)
    assert done.gradient_steps == 20
    assert done.image_passes == 20 * 64 + 2 * 600 // STUDENTS
    assert 0 < done.seconds < 60


def test_pseudo_images_have_the_statistics_of_their_clusters_and_are_none_of_the_images():
    dark, bright = (
        level + 0.1 * torch.randn(200, 1, 4, 4, generator=make_generator(number)) for number, level in enumerate((0, 5))
    )
    images_NCHW = torch.cat([dark, bright[:100]])
    drawn_NCHW = draw_pseudo_images(images_NCHW, 3000, make_generator(0), clusters=2)
    assert drawn_NCHW.shape == (3000, 1, 4, 4)
    of_bright = drawn_NCHW.mean(dim=(1, 2, 3)) > 2.5
    assert 0.30 < float(of_bright.float().mean()) < 0.37
    torch.testing.assert_close(drawn_NCHW[~of_bright].mean(dim=0), dark.mean(dim=0), rtol=0, atol=0.02)
    torch.testing.assert_close(drawn_NCHW[~of_bright].std(dim=0), dark.std(dim=0), rtol=0.1, atol=0)
    assert drawn_NCHW.min() >= images_NCHW.min()
    assert drawn_NCHW.max() <= images_NCHW.max()
    assert torch.cdist(drawn_NCHW.flatten(1), images_NCHW.flatten(1)).min() > 0.01


def test_pseudo_images_are_their_generator_s_and_small_clusters_will_do():
    images_NCHW = torch.randn(40, 1, 4, 4, generator=make_generator(0))
    first, again, other = (draw_pseudo_images(images_NCHW, 5, make_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.isfinite().all()
