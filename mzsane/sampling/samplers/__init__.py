"""Samplers by name. A new one is a file and a line here, and its name in `SamplingConfig`."""

from mzsane.sampling.samplers.flow import sample_flow
from mzsane.sampling.samplers.gaussian import sample_gaussian
from mzsane.sampling.samplers.interpolation import sample_interpolation
from mzsane.sampling.samplers.kde import sample_individual, sample_joint, sample_shared, sample_token
from mzsane.sampling.samplers.neighbourhood import sample_neighbourhood
from mzsane.sampling.samplers.protocol import Sampler

SAMPLERS: dict[str, Sampler] = {
    "joint": sample_joint,
    "shared": sample_shared,
    "token": sample_token,
    "individual": sample_individual,
    "neighbourhood": sample_neighbourhood,
    "interpolation": sample_interpolation,
    "gaussian": sample_gaussian,
    "flow": sample_flow,
}
