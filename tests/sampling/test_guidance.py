"""Guidance: moved models do what their teachers do, and nothing else changes."""

import pytest
import torch

from mzsane.config import NetworkConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.build import build_network, initialise_network
from mzsane.randomness import make_generator
from mzsane.sampling.guidance import Guidance, write_soft_targets

SAMPLES = 3


def make_parts(steps=100, **changes):
    """Return guidance with two random teachers on random images, and the teachers' weights."""
    network = build_network(NetworkConfig(architecture="mlp", width=4), 1, 3, 8)
    layout = TokenLayout.from_network(network, 16, "in")
    images_NCHW = torch.randn(50, 1, 8, 8, generator=make_generator(0))
    teachers = []
    for number in range(2):
        initialise_network(network, "kaiming_uniform", make_generator(number))
        teachers.append(layout.flatten(network.state_dict()))
    teachers_AP = 3 * torch.stack(teachers)
    behaviour = NetworkBehaviour(network, layout, images_NCHW, 20, "probabilities")
    settings = {"steps": steps, "batch_size": 20, "learning_rate": 0.1, "seed": 0} | changes
    lessons_ANK = write_soft_targets(behaviour, teachers_AP, images_NCHW)
    return Guidance(behaviour, images_NCHW, lessons_ANK, **settings), teachers_AP


def shift(teachers_AP):
    """Return models away from the first teacher."""
    noise_SP = torch.randn(SAMPLES, teachers_AP.shape[1], generator=make_generator(1))
    return teachers_AP[0] + 0.5 * teachers_AP.std() * noise_SP


def agree(guidance, flat_SP, teacher):
    classes_SN = write_soft_targets(guidance.network, flat_SP, guidance.images_NCHW).argmax(dim=2)
    return float((classes_SN == guidance.lessons_ANK[teacher].argmax(dim=1)).double().mean())


def only(teacher):
    return torch.eye(2, dtype=torch.bool)[[teacher] * SAMPLES]


@pytest.mark.parametrize("teacher", [0, 1])
def test_samples_learn_from_their_own_teachers(teacher):
    guidance, teachers_AP = make_parts()
    start_SP = shift(teachers_AP)
    moved_SP = guidance.move(start_SP, teachers_AP.std(dim=0), only(teacher), lambda flat_SP: flat_SP)
    assert agree(guidance, moved_SP, teacher) > agree(guidance, start_SP, teacher) + 0.05
    assert agree(guidance, moved_SP, teacher) > agree(guidance, moved_SP, 1 - teacher)


def test_a_sample_of_no_teacher_learns_from_all():
    guidance, teachers_AP = make_parts()
    start_SP, deviation_P = shift(teachers_AP), teachers_AP.std(dim=0)
    none, all_of_them = (torch.full((SAMPLES, 2), value) for value in (False, True))
    moved = [guidance.move(start_SP, deviation_P, which, lambda flat_SP: flat_SP) for which in (none, all_of_them)]
    assert torch.equal(*moved)


def test_the_gradient_goes_through_the_decoder_and_what_has_no_deviation_stays():
    guidance, teachers_AP = make_parts()
    start_SP = shift(teachers_AP)
    deviation_P = teachers_AP.std(dim=0)
    deviation_P[:10] = 0
    moved_SP = guidance.move(start_SP / 2, deviation_P / 2, only(0), lambda flat_SP: 2 * flat_SP)
    assert torch.equal(moved_SP[:, :10], start_SP[:, :10] / 2)
    assert not (moved_SP[:, 10:] == start_SP[:, 10:] / 2).all()
    assert agree(guidance, 2 * moved_SP, 0) > agree(guidance, start_SP, 0)


def test_same_seed_same_result_and_samples_do_not_mix():
    guidance, teachers_AP = make_parts(steps=3)
    start_SP, deviation_P = shift(teachers_AP), teachers_AP.std(dim=0)
    both, again = (guidance.move(start_SP, deviation_P, only(0), lambda flat_SP: flat_SP) for _ in range(2))
    alone = guidance.move(start_SP[1:2], deviation_P, only(0)[:1], lambda flat_SP: flat_SP)
    assert torch.equal(both, again)
    torch.testing.assert_close(both[1:2], alone)
    other, _ = make_parts(steps=3, seed=1)
    assert not torch.equal(other.move(start_SP, deviation_P, only(0), lambda flat_SP: flat_SP), both)


def test_a_sample_that_is_no_network_stays_and_harms_no_other():
    guidance, teachers_AP = make_parts(steps=3)
    start_SP, deviation_P = shift(teachers_AP), teachers_AP.std(dim=0)
    well = guidance.move(start_SP, deviation_P, only(0), lambda flat_SP: flat_SP)
    start_SP[0, 3] = float("nan")
    moved_SP = guidance.move(start_SP, deviation_P, only(0), lambda flat_SP: flat_SP)
    assert torch.equal(moved_SP[0].isnan(), start_SP[0].isnan())
    torch.testing.assert_close(moved_SP[1:], well[1:])
