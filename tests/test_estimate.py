"""Settings that no machine can hold are refused by arithmetic, before any work and in the plan; usual ones are not."""

import time
from pathlib import Path

import pytest

from flows.presets import list_presets, load_preset, load_zoo_preset
from mzsane.config import NetworkConfig
from mzsane.config.images import DigitsConfig
from mzsane.errors import ConfigError
from mzsane.estimate import check_ablation, check_processes, check_zoo, count_memory, count_weights
from mzsane.plan import plan_ablation

RESNET = "targets.1={name: t, images: {source: cifar10, size: 32}, network: {architecture: resnet18}}"


@pytest.mark.parametrize("name", list_presets())
def test_shipped_ablations_fit(name: str, tmp_path: Path) -> None:
    check_ablation(load_preset(name), tmp_path / "not" / "there")


@pytest.mark.parametrize("name", list_presets("zoos"))
def test_shipped_zoos_fit(name: str, tmp_path: Path) -> None:
    check_zoo(load_zoo_preset(name), tmp_path)


@pytest.mark.parametrize(
    "overrides",
    [
        ["sampling.samples=100000000000000000000"],
        ["sampling.samples=50000000"],
        ["zoos.digits.models=1000000000"],
        ["zoos.digits.epochs=1000000000"],
        ["backbone.latent_dim=1000000000"],
        ["backbone.steps=100000000000"],
        ["zoos.letters.images.images=1000000000000"],
        ["zoos.digits.seed=1000000000000000000000000"],
        ["tokens.split_seed=18446744073709551616"],
        ["seeds=[18446744073709551616]"],
        ["evaluation.finetune_epochs=[0, 1000000000000]"],
        ["evaluation.random_models=1000000000"],
        ["evaluation.ensembles=[1000000000]"],
        ["zoos.digits.factors.width=[100000000000]"],
        ["zoos.digits.batch_size=100000000000"],
        ["compositions.0.slices.0.models=1000000000000"],
    ],
)
def test_beyond_all_sense_is_no_config(overrides: list[str]) -> None:
    with pytest.raises(ConfigError):
        load_preset("tiny", overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["sampling.samples=1000000", RESNET], "sampling.samples 1,000,000 for target 't' of 11,173,962 weights"),
        (["evaluation.random_models=1000000", RESNET], "evaluation.random_models"),
        (["backbone.d_model=65536"], "d_model 65536"),
        (["backbone.max_positions=[100000000, 100000000, 1]"], "max_positions"),
        (["backbone.batch_size=1000000", "backbone.window=1000000"], "1,000,000 windows of 1,000,000 tokens"),
        (["zoos.digits.network={architecture: resnet18, width: 65536}"], "memory"),
        ([RESNET.replace("32", "512")], "images cifar10 of 512x512 pixels"),
    ],
)
def test_more_than_the_machine_has_is_refused_by_the_plan(overrides: list[str], said: str) -> None:
    config = load_preset("tiny", overrides)
    began = time.monotonic()
    with pytest.raises(ConfigError) as caught:
        plan_ablation(config)
    assert time.monotonic() - began < 5
    assert said in str(caught.value)
    assert "choose less" in str(caught.value)


def test_a_zoo_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    overrides = [
        "models=1000000",
        "epochs=10000",
        "keep_epochs=10000",
        "network.architecture=mlp",
        "network.width=8192",
    ]
    with pytest.raises(ConfigError, match=r"models 1,000,000, 10,000 epochs kept.* of disk"):
        check_zoo(load_zoo_preset("mnist", overrides), tmp_path)


def test_processes_need_memory() -> None:
    check_processes(None)
    check_processes(2)
    with pytest.raises(ConfigError, match=r"processes 1,000,000: needs at least .* of memory"):
        check_processes(1_000_000)


def test_counts() -> None:
    digits = DigitsConfig(source="digits")
    assert count_weights(NetworkConfig(), digits) == 2464
    assert count_weights(NetworkConfig(architecture="torch:nn"), digits) is None
    assert count_memory() > 2**28
