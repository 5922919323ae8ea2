"""Draw new weights from a backbone: latents from a sampler, moved by guidance where there is some, and decoded.

Suffixes: A anchors, S samples, P weights of a model, T tokens, L latent width.
"""

from dataclasses import dataclass, replace

from torch import Tensor

from mzsane.config import SamplingConfig
from mzsane.metrics import MetricSink
from mzsane.randomness import make_generator
from mzsane.sampling.decoding import Decoder
from mzsane.sampling.guidance import Guidance
from mzsane.sampling.samplers import find_sampler
from mzsane.sampling.samplers.protocol import Anchors, Drawn


@dataclass(frozen=True)
class WeightSampler:
    """A sampler with the backbone that decodes what it draws.

    Attributes:
        config: which sampler.
        decoder: of the backbone, for the target.
        guidance: what drawn latents are moved by, if anything.
        seed: of all draws.
        sink: where progress goes.
    """

    config: SamplingConfig
    decoder: Decoder
    guidance: Guidance | None
    seed: int
    sink: MetricSink

    def draw(
        self, anchors: Anchors, origin_AA: Tensor, bandwidth: float, count: int, *names: int | str
    ) -> tuple[Drawn, Tensor]:
        """Draw, guide and decode some models.

        Args:
            anchors: the latents that are started from.
            origin_AA: which anchors of the first round each of these goes back to.
            bandwidth: how far from them.
            count: of models.
            names: which draw of the seed it is.

        Returns:
            The latents with the first round's anchors that they go back to, and the weights, (S, P).
        """
        generator = make_generator(self.seed, "samples", *names)
        drawn = find_sampler(self.config.sampler)(anchors, bandwidth, count, generator)
        drawn = replace(drawn, used_SA=(drawn.used_SA.float() @ origin_AA.float()) > 0)
        if self.guidance:
            deviation_TL = anchors.latents_ATL.std(dim=0, correction=0)
            moved_STL = self.guidance.move(
                drawn.latents_STL, deviation_TL, drawn.used_SA, self.decoder.decode, self.sink
            )
            drawn = replace(drawn, latents_STL=moved_STL)
        return drawn, self.decoder.renew_heads(self.decoder.decode(drawn.latents_STL), *names)
