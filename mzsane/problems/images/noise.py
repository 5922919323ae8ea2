"""Images that nobody took: noise with about the spectrum of natural images, to see what networks do without any data.

Suffixes: N images, C channels, H height, R width, F frequencies along the width.
"""

import torch
from torch import Tensor

# Amplitudes fall with the frequency as frequency^-EXPONENT. Those of natural images fall with about 1; on validation
# models of two zoos of CNN-s 1, 1.5 and 2 could hardly be told apart, and white noise (0) was worse than no images.
EXPONENT = 1.5


def draw_noise_images(
    count: int, shape: tuple[int, int, int], generator: torch.Generator, exponent: float = EXPONENT
) -> Tensor:
    """Draw images of spectral noise (arXiv 2106.05963), each with mean 0 and deviation 1, as normalised images have.

    Args:
        count: how many.
        shape: channels, height and width.
        generator: on the CPU.
        exponent: amplitudes fall with the frequency to this power; 0 is white noise.

    Returns:
        (N, C, H, R), float32.
    """
    channels, height, width = shape
    frequency_HF = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    amplitude_HF = frequency_HF.clamp(min=1 / max(height, width)) ** -exponent  # the mean counts as one wave
    white_NCHR = torch.randn(count, channels, height, width, generator=generator)
    noise_NCHR: Tensor = torch.fft.irfft2(torch.fft.rfft2(white_NCHR) * amplitude_HF, s=(height, width))
    deviation_N, mean_N = torch.std_mean(noise_NCHR, dim=(1, 2, 3), keepdim=True)
    return (noise_NCHR - mean_N) / deviation_N
