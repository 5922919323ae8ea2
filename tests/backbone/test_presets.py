"""The presets of backbones: their sizes, and that a config holds values, not where they came from."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from mzsane.backbone.autoencoder import Autoencoder
from mzsane.config import BackboneConfig, load_config
from mzsane.config.backbone import PRESETS
from mzsane.config.base import Config


def count_parameters(config: BackboneConfig, token_dim: int) -> int:
    with torch.device("meta"):  # sizes alone: the largest has 3.5 GB of weights
        return sum(parameter.numel() for parameter in Autoencoder(config, token_dim).parameters())


@pytest.mark.parametrize(
    ("name", "token_dim", "exact", "about"),
    [
        ("tiny", 51, 319_391, 0.3e6),
        ("cnn", 51, 9_943_391, 10e6),
        ("sane-cnn", 289, 203_240_861, 202e6),
        ("paper-resnet18", 288, 870_509_980, 869e6),
    ],
)
def test_parameters(name: str, token_dim: int, exact: int, about: float) -> None:
    count = count_parameters(BackboneConfig.model_validate(name), token_dim)
    assert count == exact
    assert count == pytest.approx(about, rel=0.07)


def test_every_preset_is_counted_and_valid() -> None:
    assert set(PRESETS) == {"tiny", "cnn", "sane-cnn", "paper-resnet18"}
    for name in PRESETS:
        BackboneConfig.model_validate(name)


def test_the_papers_sizes() -> None:
    sane, paper = (BackboneConfig.model_validate(name) for name in ("sane-cnn", "paper-resnet18"))
    assert (sane.d_model, sane.layers, sane.latent_dim) == (1024, 8, 128)
    assert (paper.d_model, paper.layers, paper.latent_dim, paper.window) == (2048, 8, 128, 256)
    assert paper.schedule == "one-cycle"


@pytest.mark.parametrize("name", list(PRESETS))
def test_a_config_holds_the_values_alone(name: str) -> None:
    config = BackboneConfig.model_validate(name)
    for key, value in PRESETS[name].items():
        assert getattr(config, key) == value, key
    assert {key for key, value in config if value != getattr(BackboneConfig(), key)} <= PRESETS[name].keys()
    written = BackboneConfig.model_validate(config.model_dump(mode="json"))
    assert written == config == BackboneConfig(**PRESETS[name])
    assert written.recipe() == config.recipe()
    assert "preset" not in config.recipe()


def test_settings_beside_a_preset_go_before_it() -> None:
    config = BackboneConfig.model_validate({"preset": "cnn", "steps": 7, "latent_dim": 12})
    assert (config.steps, config.latent_dim) == (7, 12)
    assert config == BackboneConfig.model_validate("cnn").model_copy(update={"steps": 7, "latent_dim": 12})
    assert BackboneConfig.model_validate("cnn").steps == PRESETS["cnn"]["steps"] == 5000  # it is not written to


def test_settings_are_checked_with_a_presets_own() -> None:
    with pytest.raises(ValidationError, match=r"d_model \(256\) must be a multiple of twice the heads \(7\)"):
        BackboneConfig.model_validate({"preset": "cnn", "heads": 7})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        BackboneConfig.model_validate({"preset": "cnn", "layer": 7})


@pytest.mark.parametrize("given", ["resnet", {"preset": "resnet", "steps": 3}])
def test_an_unknown_preset_is_told_with_those_that_there_are(given: object) -> None:
    with pytest.raises(ValidationError) as caught:
        BackboneConfig.model_validate(given)
    (error,) = caught.value.errors()
    assert error["msg"] == (
        "Value error, there is no backbone preset 'resnet'; there are tiny, cnn, sane-cnn, paper-resnet18"
    )


class Study(Config):
    """A config that holds one of a backbone."""

    backbone: BackboneConfig


def test_a_name_stands_for_settings_in_a_file_and_an_override(tmp_path: Path) -> None:
    path = tmp_path / "study.yaml"
    path.write_text("backbone: cnn")
    assert load_config(Study, path).backbone == BackboneConfig.model_validate("cnn")
    path.write_text("backbone: {preset: cnn}")
    assert load_config(Study, path, ["backbone.steps=7"]).backbone.steps == 7
    assert load_config(Study, path, ["backbone.preset=tiny"]).backbone == BackboneConfig.model_validate("tiny")


@pytest.mark.parametrize("given", [{"preset": ["cnn"]}, {"preset": None}, {"preset": 3}, {"preset": {"cnn": 1}}])
def test_a_preset_that_is_not_a_name_is_refused(given: object) -> None:
    with pytest.raises(ValidationError, match="there is no backbone preset"):
        BackboneConfig.model_validate(given)
