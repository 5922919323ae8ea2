"""Settings: what is refused, in which words, and what a name does not change."""

import math
import warnings
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from mzsane.config import (
    AblationConfig,
    BackboneConfig,
    CompositionConfig,
    EvaluationConfig,
    ExecutionConfig,
    GlyphsConfig,
    NetworkConfig,
    SamplingConfig,
    SliceConfig,
    SparseConfig,
    TargetConfig,
    TokensConfig,
    ZooConfig,
    explain_validation,
    load_config,
    validate_config,
)
from mzsane.errors import ConfigError, MzsaneError
from mzsane.store.artifacts import Work

GLYPHS = {"source": "glyphs", "characters": "ABCDEFGHIJ"}


def make_ablation(**changes):
    """A valid ablation of two zoos as plain data, with some top-level keys replaced."""
    return {
        "name": "tiny",
        "zoos": [
            {"name": "digits", "images": {"source": "digits"}, "models": 20},
            {"name": "letters", "images": dict(GLYPHS), "models": 40, "epochs": 5, "keep_epochs": 3},
        ],
        "compositions": [{"name": "both", "slices": [{"zoo": "digits", "models": 7}, {"zoo": "letters", "models": 7}]}],
        "targets": [{"name": "on-digits", "zoo": "digits"}],
        "sampling": {"anchors": 5},
        **changes,
    }


def refuse(data) -> str:
    """Return the text with which an ablation is refused; it must be one line that says where the data came from."""
    with pytest.raises(ConfigError) as caught:
        validate_config(AblationConfig, data, where="the form")
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("the form: ")
    return text


def write_yaml(folder: Path, data) -> Path:
    path = folder / "ablation.yaml"
    path.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return path


def test_valid_ablation_is_accepted_and_frozen():
    config = validate_config(AblationConfig, make_ablation(), where="the form")
    assert config.find_zoo("letters").keep_epochs == 3
    with pytest.raises(ValidationError):
        config.name = "other"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"zoo": []}, "zoo: unknown key"),
        ({"tokens": {"token_dims": 51}}, "tokens.token_dims: unknown key"),
        ({"backbone": {"learning_rate": -0.1}}, "backbone.learning_rate: Input should be greater than 0, not -0.1"),
        ({"backbone": {"learning_rate": math.nan}}, "backbone.learning_rate: "),
        ({"backbone": {"d_model": 30, "heads": 4}}, "backbone: d_model (30) must be a multiple of twice the heads (4)"),
        ({"seeds": [0, 0]}, "seeds must be distinct and not negative, not [0, 0]"),
        ({"seeds": [-1]}, "seeds must be distinct and not negative, not [-1]"),
        ({"sampling": {"samples": 5, "keep": 6}}, "sampling: keep (6) cannot be more than samples (5)"),
        ({"sampling": {"rounds": 2, "keep": 1}}, "rounds (2) need at least 2 samples to go on from, but keep is 1"),
        (
            {"sampling": {"bandwidth": -1}},
            "sampling.bandwidth.number: Input should be greater than or equal to 0, not -1",
        ),
        (
            {"sampling": {"bandwidth": [0.1, 99]}},
            "sampling.bandwidth.1: Input should be less than or equal to 10, not 99",
        ),
        ({"sampling": {"bandwidth": [0.1, 0.1]}}, "bandwidth must be one number or a list of different ones"),
        ({"sampling": {"bandwidth": [0.1]}}, "bandwidth must be one number or a list of different ones, not [0.1]"),
        ({"sampling": {"bandwidth": 1, "least_novelty": 0.2}}, "least_novelty has no meaning for one bandwidth"),
        ({"sampling": {"guidance_rate": 0.1}}, "guidance_rate has no meaning without guidance_steps"),
        ({"sampling": {"guidance_images": 8}}, "guidance_images has no meaning without guidance_steps"),
        (
            {"evaluation": {"distillation_steps": [], "distilled_models": 2}},
            "distilled_models has no meaning without distillation_steps",
        ),
        ({"sampling": {"anchors": 1, "sampler": "neighbourhood"}}, "neighbourhood needs at least 2 anchors, not 1"),
        ({"sampling": {"anchors": 1, "sampler": "interpolation"}}, "interpolation needs at least 2 anchors, not 1"),
        ({"sampling": {"anchors": 0}}, "anchors 0 needs sampler gaussian and anchor_choice random"),
        ({"sampling": {"anchor_models": ["digits/1"]}}, "anchor_models are not used: set anchor_choice to given"),
        (
            {"sampling": {"anchors": 2, "anchor_choice": "given", "anchor_models": ["digits/1"]}},
            "as many different anchor_models as anchors (2), not ['digits/1']",
        ),
        (
            {"sampling": {"anchors": 1, "anchor_choice": "given", "anchor_models": ["other/1"]}},
            "sampling.anchor_models has 'other/1', but composition 'both' has the zoos digits, letters",
        ),
        ({"evaluation": {"finetune_epochs": [1, 3]}}, "finetune_epochs must start at 0 and rise, not [1, 3]"),
        ({"evaluation": {"finetune_epochs": [0, 3, 1]}}, "finetune_epochs must start at 0 and rise, not [0, 3, 1]"),
        ({"evaluation": {"learning_rates": [0.1, 0.1]}}, "learning_rates must be different, above 0 and at most 10"),
        ({"evaluation": {"learning_rates": [0.1, 0]}}, "learning_rates must be different, above 0 and at most 10"),
        ({"evaluation": {"ensembles": [1, 5]}}, "ensembles must rise from at least 2 models, not [1, 5]"),
        ({"evaluation": {"ensembles": [5, 2]}}, "ensembles must rise from at least 2 models, not [5, 2]"),
        ({"tokens": {"train_fraction": 0.9, "validation_fraction": 0.2}}, "must leave a share of at least 0 for test"),
        ({"name": "Has Space"}, "not 'Has Space'"),
    ],
)
def test_wrong_setting_is_named(change, expected):
    assert expected in refuse(make_ablation(**change))


def make_question(**changes):
    """The valid ablation with a second composition and one question."""
    slices = [{"zoo": "letters", "models": 14}]
    question = {"text": "Do more datasets help?"} | changes
    return make_ablation(
        compositions=[*make_ablation()["compositions"], {"name": "letters", "slices": slices}], questions=[question]
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, "needs either a factor or a contrast"),
        ({"factor": "datasets", "contrast": ["both", "letters"]}, "needs either a factor or a contrast"),
        ({"contrast": ["both", "both"]}, "compares composition 'both' with itself"),
        ({"contrast": ["both", "all"]}, "composition 'all', which is not among the compositions: both, letters"),
        ({"factor": "datasets", "targets": ["fonts"]}, "target 'fonts', which is not among the targets: on-digits"),
        ({"factor": "datasets", "epochs": 3}, "3 epochs of fine-tuning, but models are scored after 0, 1, 2, 5"),
        ({"factor": "models"}, "what the number of models does, which is 14 in all compositions"),
        ({"factor": "layers"}, "questions.0.factor: Input should be 'models', 'datasets' or 'architectures'"),
        ({"factor": "datasets", "smallest": -1}, "smallest: Input should be greater than or equal to 0"),
    ],
)
def test_a_question_that_cannot_be_answered_is_refused(change, expected):
    assert expected in refuse(make_question(**change))


def test_a_question_is_accepted():
    data = make_question(factor="datasets", epochs=5, in_distribution=True, targets=["on-digits"])
    (question,) = validate_config(AblationConfig, data, where="the form").questions
    assert (question.smallest, question.method) == (1.0, "samples")
    (contrast,) = validate_config(AblationConfig, make_question(contrast=["both", "letters"]), where="").questions
    assert contrast.contrast == ("both", "letters")


def test_unknown_key_deep_inside_a_list_is_named_by_its_place():
    data = make_ablation()
    data["zoos"][1]["learning_rte"] = 1
    assert refuse(data) == "the form: zoos.1.learning_rte: unknown key; did you mean learning_rate?"


def test_all_mistakes_are_told_at_once():
    data = make_ablation(seeds="many")
    data["zoos"][0]["models"] = 1
    del data["name"]
    text = refuse(data)
    for part in ("name: Field required", "zoos.0.models: Input should be greater than or equal to 2, not 1", "'many'"):
        assert part in text


@pytest.mark.parametrize("where", ["zoos", "compositions", "targets"])
def test_repeated_names_are_refused(where):
    data = make_ablation()
    data[where] = [data[where][0], data[where][0]]
    assert f"{where} have repeated names: " in refuse(data)


def test_reference_to_a_zoo_that_is_not_there_is_refused():
    data = make_ablation()
    data["compositions"][0]["slices"][1]["zoo"] = "leters"
    assert "composition 'both' names zoo 'leters', which is not among the zoos: digits, letters" in refuse(data)
    text = refuse(make_ablation(targets=[{"name": "t", "zoo": "nowhere"}]))
    assert "target 't' names zoo 'nowhere'" in text


def test_more_models_than_the_train_split_has_are_refused():
    data = make_ablation()
    data["compositions"][0]["slices"][0]["models"] = 14
    validate_config(AblationConfig, data, where="the form")
    data["compositions"][0]["slices"][0]["models"] = 15
    assert "asks for 15 training models of zoo 'digits', which has 14 (20 models, train_fraction 0.7)" in refuse(data)


def test_more_epochs_than_kept_are_refused():
    data = make_ablation()
    data["compositions"][0]["slices"][1]["last_epochs"] = 4
    assert "asks for 4 epochs of zoo 'letters', which keeps 3" in refuse(data)
    data = make_ablation()
    data["compositions"][0]["slices"][1]["epochs"] = [3, 2, 7]
    assert "asks for epochs [2, 7] of zoo 'letters', which keeps [3, 4, 5]" in refuse(data)
    data = make_ablation()
    data["zoos"][1]["keep_epochs"] = 6
    assert "keep_epochs (6) cannot be more than epochs (5)" in refuse(data)


def test_two_slices_of_one_zoo_are_refused():
    data = make_ablation()
    data["compositions"][0]["slices"][1]["zoo"] = "digits"
    assert "takes two slices of one zoo" in refuse(data)


def test_more_anchors_than_fitting_models_are_refused():
    data = make_ablation(sampling={"anchors": 8})
    text = refuse(data)
    assert "asks for 8 anchors, but composition 'both' has 7 models that are most like it, of digits" in text


def test_anchors_come_from_the_targets_dataset_or_else_from_the_same_shape():
    data = make_ablation()
    data["zoos"].append({"name": "few", "images": {"source": "glyphs", "characters": "AB"}, "models": 20})
    data["compositions"].append(
        {"name": "letters", "slices": [{"zoo": "letters", "models": 9}, {"zoo": "few", "models": 3}]}
    )
    config = validate_config(AblationConfig, data, where="the form")
    target = config.targets[0]
    both, letters = config.compositions
    assert [part.zoo for part in config.anchor_slices(both, target)] == ["digits"]
    assert [part.zoo for part in config.anchor_slices(letters, target)] == ["letters"]
    assert config.in_distribution(both, target)
    assert not config.in_distribution(letters, target)


def test_anchors_for_what_no_slice_fits_come_from_what_is_most_like_it():
    data = make_ablation()
    tanh, relu = ({"architecture": "cnn-s", "activation": name} for name in ("tanh", "relu"))
    data["zoos"] += [
        {"name": "few", "images": {"source": "glyphs", "characters": "AB"}, "models": 20},
        {"name": "flat", "images": {"source": "digits"}, "models": 20, "network": {"architecture": "mlp", "width": 8}},
    ]
    slices = {name: {"zoo": name, "models": 5} for name in ("letters", "few", "flat", "digits")}
    targets = {
        "eight": {"images": {"source": "glyphs", "characters": "01234567"}, "network": tanh},
        "two": {"images": {"source": "glyphs", "characters": "01"}, "network": tanh},
        "relu": {"images": {"source": "digits"}, "network": relu},
        "wide": {"images": {"source": "digits"}, "network": {"architecture": "mlp", "width": 16}},
        "resnet": {"images": dict(GLYPHS), "network": {"architecture": "resnet18"}},
        "vit": {"images": {"source": "glyphs", "characters": "XY"}, "network": {"architecture": "vit"}},
    }
    data["targets"] = [{"name": name, **target} for name, target in targets.items()]
    data["compositions"] = [
        {"name": "all", "slices": list(slices.values())},
        {"name": "no-digits", "slices": [slices["letters"], slices["few"]]},
    ]
    config = validate_config(AblationConfig, data, where="the form")
    found = [
        {target.name: [part.zoo for part in config.anchor_slices(composition, target)] for target in config.targets}
        for composition in config.compositions
    ]
    everything = ["letters", "few", "flat", "digits"]
    assert found[0] == {
        "eight": ["letters", "few", "digits"],  # the network, with other classes
        "two": ["few"],  # the network and its classes
        "relu": ["digits"],  # the architecture, and the dataset
        "wide": ["flat"],  # the architecture in another width
        "resnet": ["letters"],  # the dataset alone
        "vit": everything,
    }
    assert found[1]["wide"] == ["letters", "few"]


def test_given_anchors_come_from_where_they_are():
    sampling = {"anchors": 1, "anchor_choice": "given", "anchor_models": ["letters/000003"]}
    config = validate_config(AblationConfig, make_ablation(sampling=sampling), where="the form")
    (both,), (target,) = config.compositions, config.targets
    assert [part.zoo for part in config.anchor_slices(both, target)] == ["letters"]


@pytest.mark.parametrize(
    "target",
    [
        {"name": "t"},
        {"name": "t", "zoo": "digits", "images": {"source": "digits"}, "network": {}},
        {"name": "t", "images": {"source": "digits"}},
    ],
)
def test_target_needs_either_a_zoo_or_images_and_network(target):
    assert "target 't' needs either zoo, or both images and network" in refuse(make_ablation(targets=[target]))


def test_target_resolves_to_its_zoo_or_its_own_images():
    own = {"name": "own", "images": {"source": "glyphs", "characters": "KLMNOPQRST"}, "network": {"activation": "relu"}}
    data = make_ablation(targets=[{"name": "z", "zoo": "letters"}])
    config = validate_config(AblationConfig, data, where="the form")
    assert config.resolve_target(config.targets[0])[1].characters == "ABCDEFGHIJ"
    target = TargetConfig.model_validate(own)
    assert config.resolve_target(target) == (NetworkConfig(activation="relu"), target.images)


@pytest.mark.parametrize("characters", ["AAB", "A-B", "A B"])
def test_characters_are_distinct_letters_or_figures(characters):
    with pytest.raises(ConfigError, match="characters must be distinct letters or figures"):
        validate_config(GlyphsConfig, {"source": "glyphs", "characters": characters}, where="x")


def test_wrong_source_of_images_is_refused_with_those_allowed():
    data = make_ablation()
    data["zoos"][0]["images"] = {"source": "imagenet"}
    text = refuse(data)
    assert "zoos.0.images" in text
    assert "'digits', 'glyphs'" in text


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (ZooConfig, {"name": "a", "images": {"source": "digits"}}),
        (CompositionConfig, {"name": "a", "slices": [{"zoo": "digits", "models": 3}]}),
        (TargetConfig, {"name": "a", "zoo": "digits"}),
    ],
)
def test_names_are_no_part_of_the_recipe(kind, data):
    one, other = (validate_config(kind, {**data, "name": name}, where="x") for name in ("a", "b"))
    assert one != other
    assert one.recipe() == other.recipe()
    assert "name" not in one.recipe()


@pytest.mark.parametrize("key", ["gradient_clip", "temperature", "deviation_floor"])
def test_a_setting_that_is_not_finite_is_refused_or_can_be_named(key):
    """What a config accepts must have a fingerprint."""
    try:
        config = validate_config(BackboneConfig, {key: math.inf}, where="x")
    except ConfigError:
        return
    assert len(Work("backbone", 1, config.recipe()).ref.fingerprint) == 64


@pytest.mark.parametrize(
    ("settings", "unused"),
    [
        ({"normalisation": "window", "relative_floor": 0.5}, ["relative_floor 0.5"]),
        ({"normalisation": "none", "deviation_floor": 1e-3}, ["deviation_floor 0.001"]),
        ({"contrast": "positive", "temperature": 0.3}, ["temperature 0.3"]),
        ({"gamma": 0, "projection_dim": 8, "temperature": 0.3}, ["temperature 0.3", "projection_dim 8"]),
        ({"behaviour_images": 64, "behaviour_output": "logits"}, ["behaviour_images 64"]),
        ({"behaviour": 0.3, "behaviour_images": 64}, []),
        ({"preset": "cnn", "gamma": 0, "temperature": 0.1}, []),
    ],
)
def test_a_setting_that_does_nothing_is_told(settings, unused):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        BackboneConfig.model_validate(settings)
    told = [str(each.message).partition(" does nothing with ")[0] for each in caught]
    assert told == [f"backbone.{name}" for name in unused]


def test_count_split_gives_every_model_one_split():
    config = TokensConfig(train_fraction=0.7, validation_fraction=0.15)
    assert config.count_split(20) == {"train": 14, "val": 3, "test": 3}
    for models in range(1, 50):
        assert sum(config.count_split(models).values()) == models
    # 0.1 + 0.2 is not 0.3 in binary; the share of 0.3 of 20 is 6 all the same.
    assert TokensConfig(train_fraction=0.1 + 0.2, validation_fraction=0.7).count_split(20)["train"] == 6


class TestLoadConfig:
    def test_reads_yaml(self, tmp_path):
        config = load_config(AblationConfig, write_yaml(tmp_path, make_ablation()))
        assert config == validate_config(AblationConfig, make_ablation(), where="x")

    @pytest.mark.parametrize(
        ("overrides", "read", "value"),
        [
            (["zoos.1.models=30"], lambda c: c.zoos[1].models, 30),
            (["zoos.letters.models=30"], lambda c: c.zoos[1].models, 30),
            (["zoos.letters.images.characters=KLMNOPQRST"], lambda c: c.zoos[1].images.characters, "KLMNOPQRST"),
            (["compositions.both.slices.0.models=6"], lambda c: c.compositions[0].slices[0].models, 6),
            (["backbone.steps=7"], lambda c: c.backbone.steps, 7),
            (["seeds=[0, 1, 2]"], lambda c: c.seeds, (0, 1, 2)),
            (["seeds=[4]", "seeds.0=5"], lambda c: c.seeds, (5,)),
            (["zoos.0.learning_rate=1e-2"], lambda c: c.zoos[0].learning_rate, 0.01),
            (["compositions.both.slices.1.last_epochs=2", "backbone.steps=3"], lambda c: c.backbone.steps, 3),
        ],
    )
    def test_override(self, tmp_path, overrides, read, value):
        assert read(load_config(AblationConfig, write_yaml(tmp_path, make_ablation()), overrides)) == value

    @pytest.mark.parametrize(
        ("override", "expected"),
        [
            ("backbone.steps", "override 'backbone.steps' is not of the form path.to.key=value"),
            ("=3", "is not of the form path.to.key=value"),
            ("zoos.2.models=3", "override 'zoos.2.models=3': there is no '2'"),
            ("zoos.mnist.models=3", "there is no 'mnist'"),
            ("zoos.-1.models=3", "there is no '-1'"),
            ("seeds.0=1", "there is no '0'"),
            ("zoos.9={}", "there is no '9' to set"),
            ("name.first=x", "there is no 'first' to set"),
            ("backbone.steps=[1", "the value is not YAML"),
            ("backbone.stepps=3", "backbone.stepps: unknown key"),
            ("backbon.steps=3", "backbon: unknown key"),
            ("backbone.steps=soon", "backbone.steps: Input should be a valid integer"),
            ("zoos.².models=3", "there is no '²'"),
        ],
    )
    def test_bad_override_is_refused_in_one_line(self, tmp_path, override, expected):
        data = make_ablation(seeds=[])
        if "seeds" not in override:
            del data["seeds"]
        with pytest.raises(ConfigError) as caught:
            load_config(AblationConfig, write_yaml(tmp_path, data), [override])
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_error_names_file_and_overrides(self, tmp_path):
        path = write_yaml(tmp_path, make_ablation())
        with pytest.raises(ConfigError) as caught:
            load_config(AblationConfig, path, ["backbone.steps=0", "seeds=[1]"])
        assert str(caught.value).startswith(f"{path} with backbone.steps=0, seeds=[1]: backbone.steps: ")

    @pytest.mark.parametrize(
        ("content", "expected"),
        [
            ("a: [1, 2", "cannot be read as YAML"),
            ("- 1\n- 2", "holds [1, 2] where settings"),
            ("", "is empty"),
            ("!!python/object:os.system {}", "cannot be read as YAML"),
        ],
    )
    def test_file_that_is_no_config_is_refused_in_one_line(self, tmp_path, content, expected):
        with pytest.raises(ConfigError) as caught:
            load_config(AblationConfig, write_yaml(tmp_path, content))
        assert expected in str(caught.value)
        assert "\n" not in str(caught.value)

    def test_binary_and_missing_files_and_folders_are_refused(self, tmp_path):
        binary = tmp_path / "x.yaml"
        binary.write_bytes(b"\x89PNG\r\n\x1a\n\x00\x81")
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            load_config(AblationConfig, binary)
        with pytest.raises(ConfigError, match="cannot be read as YAML"):
            load_config(AblationConfig, tmp_path)
        with pytest.raises(ConfigError, match="no such config file"):
            load_config(AblationConfig, tmp_path / "nothing.yaml")


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (SliceConfig, {"zoo": "z", "models": 0}, "models: Input should be greater than or equal to 1, not 0"),
        (SliceConfig, {"models": 1}, "zoo: Field required"),
        (SliceConfig, {"zoo": "z", "models": 1, "model": 1}, "model: unknown key"),
        (
            SliceConfig,
            {"zoo": "z", "models": "x\ny"},
            "models: Input should be a valid integer, unable to parse string",
        ),
        (EvaluationConfig, {"finetune_epochs": [3]}, "finetune_epochs must start at 0 and rise, not [3]"),
        (
            SamplingConfig,
            {"sampler": "magic"},
            "sampler: no sampler 'magic': There are joint, shared, token, individual, neighbourhood, interpolation, "
            "gaussian, flow, and package.module:name",
        ),
        (BackboneConfig, {"max_positions": [1, 2]}, "max_positions.2: Field required"),
        (
            TargetConfig,
            {"name": "t", "images": {"source": "glyphs", "noise": 2}, "network": {}},
            "images.noise: Input should be less than or equal to 1, not 2",
        ),
    ],
)
def test_explain_validation(kind, data, expected):
    with pytest.raises(ValidationError) as caught:
        kind.model_validate(data)
    text = explain_validation(caught.value, data)
    assert text.startswith(expected)
    assert "\n" not in text


def test_config_errors_are_value_errors_of_mzsane():
    assert issubclass(ConfigError, ValueError)
    assert issubclass(ConfigError, MzsaneError)


_ZOO = {"name": "z", "images": {"source": "digits"}, "models": 4}
_FACTORY = {"architecture": "their.code:small"}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"network": _FACTORY, "factors": {"activation": ["tanh", "relu"]}}, "factors.activation"),
        ({"network": _FACTORY, "factors": {"activation": ["tanh"]}}, "factors.activation"),
        ({"network": _FACTORY, "factors": {"dropout": [0.0, 0.1]}}, "factors.dropout"),
        ({"network": _FACTORY, "factors": {"width": [8, 16]}}, "factors.width"),
        ({"network": _FACTORY | {"activation": "relu"}}, "activation has no meaning"),
        ({"initialisation": "own"}, "own is for factories"),
        ({"factors": {"initialisation": ["own", "normal"]}}, "own is for factories"),
        ({"factors": {"design": "random"}}, "needs factors"),
        ({"factors": {"learning_rate": [0.1, 0.1]}}, "a level twice"),
        ({"initial_weights": 5}, "initial_weights"),
    ],
)
def test_settings_of_a_zoo_that_do_nothing_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        ZooConfig.model_validate(_ZOO | settings)


def test_a_factory_starts_as_it_likes_unless_told_otherwise():
    config = ZooConfig.model_validate(_ZOO | {"network": _FACTORY})
    assert config.initialisation == "own"
    assert ZooConfig.model_validate(config.model_dump(mode="json")) == config
    assert ZooConfig.model_validate(_ZOO).initialisation == "kaiming_uniform"
    assert ZooConfig.model_validate(_ZOO | {"network": _FACTORY, "initialisation": "normal"}).initialisation == "normal"


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "variational", "sparsity": [0.5]},
        {"method": "variational", "scope": "layer"},
        {"method": "magnitude", "threshold": 2.0},
        {"zoo": _ZOO | {"network": {"architecture": "mlp"}, "factors": {"width": [8, 16]}}},
    ],
)
def test_settings_of_twins_that_do_nothing_are_refused(settings):
    with pytest.raises(ValueError, match=r"no meaning|one width"):
        SparseConfig.model_validate({"name": "t", "zoo": _ZOO} | settings)


def test_sharding_alone_is_refused():
    with pytest.raises(ValueError, match="more than one of ranks"):
        ExecutionConfig(sharding="shard")
