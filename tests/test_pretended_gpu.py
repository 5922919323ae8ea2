"""All that computes on a device does so on a GPU that is pretended, without a mixture of devices or a hidden wait."""

import pytest

from tests import gpu_work
from tests.pretended_gpu import NAME, start_pretended_gpu


@pytest.fixture(scope="module")
def gpu():
    with start_pretended_gpu() as process:
        yield lambda work, *values: process.submit(work, *values).result()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return str(tmp_path_factory.mktemp("gpu") / "store")


@pytest.fixture(scope="module")
def made(gpu, folder):
    return gpu(gpu_work.run_pipeline, folder)


@pytest.fixture(scope="module")
def address_of(made):
    return {kind: address for kind, address, _ in made}


def test_whole_pipeline_runs_on_the_device(made):
    devices = {kind: counts["device"] for kind, _, counts in made if "device" in counts}
    assert set(devices.values()) == {NAME}
    assert {"zoo", "backbone", "scores", "baselines"} <= set(devices)
    assert next(counts["engine"] for kind, _, counts in made if kind == "zoo") == "batched"
    assert {"tokens", "probes", "samples"} <= {kind for kind, _, _ in made}


def test_backbone_says_the_same_there(gpu, folder, address_of):
    differences = gpu(gpu_work.use_backbone, folder, address_of["backbone"], address_of["tokens"])
    assert {name: value for name, value in differences.items() if not value < 1e-4} == {}


@pytest.mark.parametrize(
    ("settings", "step", "block"),
    [
        ({}, 0, 1),
        ({"accumulation": 2, "averaging": 0.9, "latent_noise": 0.1, "gamma": 0.0}, 0, 1),
        ({"normalisation": "token", "additive_noise": 0.1, "erasing": 0.1, "latent_norm": 0.1}, 0, 1),
        ({"behaviour": 0.3}, 1, 1),  # which models of the zoo are in the batch
        ({"shortcut": True}, 4, 1),  # how many tokens a layer has, twice each way
        ({"mix_up": 0.5, "cut_mix": 0.5}, 0, 5),  # which windows show the same places, twice each way
    ],
)
def test_host_waits_so_often_in_a_training_step(gpu, folder, address_of, settings, step, block):
    assert gpu(gpu_work.count_waits, folder, address_of["tokens"], settings) == {"step": step, "block": block}


def test_device_refuses_what_cuda_refuses(gpu):
    mixed, generator, numpy = "same device", "device type for generator", "to numpy"
    said = gpu(gpu_work.do_what_cuda_refuses)
    wanted = [mixed] * 6 + [generator] + [numpy] * 2
    assert len(said) == len(wanted)
    assert [text for text, part in zip(said, wanted, strict=True) if part not in text] == []


def test_device_counts_what_the_host_waits_for(gpu):
    waits = gpu(gpu_work.do_what_cuda_does)
    assert waits.pop("trains") == 0
    assert {name: count for name, count in waits.items() if count < 1} == {}
