"""Images of spectral noise: normalised, reproducible, and with the spectrum that they claim."""

import pytest
import torch

from mzsane.problems.images.noise import EXPONENT, draw_noise_images
from mzsane.randomness import make_generator


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 20), (2, 5, 9), (1, 1, 16)])
def test_each_has_mean_0_and_deviation_1(shape):
    images_NCHR = draw_noise_images(7, shape, make_generator(0))
    assert images_NCHR.shape == (7, *shape)
    assert images_NCHR.dtype == torch.float32
    torch.testing.assert_close(images_NCHR.mean(dim=(1, 2, 3)), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(images_NCHR.std(dim=(1, 2, 3)), torch.ones(7))


def test_the_generator_decides():
    first, again, other = (draw_noise_images(2, (1, 8, 8), make_generator(seed)) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.1)


@pytest.mark.parametrize("exponent", [0.0, 1.0, EXPONENT, 2.0])
def test_amplitudes_fall_with_the_frequency(exponent):
    """Along the first axis of the spectrum: the slope of logarithms over 3,000 images."""
    images_NCHR = draw_noise_images(3000, (1, 32, 32), make_generator(0), exponent)
    amplitude_F = torch.fft.rfft2(images_NCHR).abs().mean(dim=(0, 1))[0, 1:16].log()
    frequency_F = torch.arange(1.0, 16.0).log()
    centred_F = frequency_F - frequency_F.mean()
    slope = (centred_F * (amplitude_F - amplitude_F.mean())).sum() / centred_F.square().sum()
    assert slope == pytest.approx(-exponent, abs=0.05)
