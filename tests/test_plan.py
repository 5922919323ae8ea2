"""What is planned before any work is done."""

from itertools import combinations, product

import pytest
import yaml

from flows.presets import change_config, list_presets, load_preset
from mzsane.config import AblationConfig
from mzsane.errors import ConfigError
from mzsane.plan import ArmPlan, find_arm, list_arms, plan_ablation


def change(config, **parts):
    return AblationConfig.model_validate(config.model_dump() | parts)


def fingerprints(config, kind):
    return {stage.work.ref.fingerprint for stage in plan_ablation(config) if stage.work.kind == kind}


@pytest.mark.parametrize("name", list_presets())
def test_stages_come_after_what_they_read_and_once(name):
    seen = set()
    for stage in plan_ablation(load_preset(name)):
        assert set(stage.work.inputs.values()) <= seen, stage.label
        assert stage.work.ref not in seen
        seen.add(stage.work.ref)
    assert stage.work.kind == "comparison"


def test_a_setting_changes_what_depends_on_it_and_nothing_else():
    config = load_preset("tiny")
    other = change(config, sampling={**config.sampling.model_dump(), "bandwidth": 0.3})
    for kind in ("zoo", "tokens", "backbone", "probes", "baselines"):
        assert fingerprints(config, kind) == fingerprints(other, kind)
    for kind in ("samples", "scores", "comparison"):
        assert not fingerprints(config, kind) & fingerprints(other, kind)


def test_names_and_order_change_no_fingerprint_of_the_science():
    config = load_preset("tiny")
    data = config.model_dump()
    data["name"] = "other"
    data["zoos"] = [{**zoo, "name": f"my-{zoo['name']}"} for zoo in reversed(data["zoos"])]
    for composition in data["compositions"]:
        composition["slices"] = [{**part, "zoo": f"my-{part['zoo']}"} for part in composition["slices"]]
    for target in data["targets"]:
        target["zoo"] = target["zoo"] and f"my-{target['zoo']}"
    renamed = AblationConfig.model_validate(data)
    for kind in ("zoo", "tokens", "backbone", "probes", "samples", "scores", "baselines"):
        assert fingerprints(config, kind) == fingerprints(renamed, kind)
    assert fingerprints(config, "comparison") != fingerprints(renamed, "comparison")


def test_seeds_share_zoos_and_tokens_but_no_backbones():
    one, two = load_preset("tiny"), load_preset("tiny", ["seeds=[0, 1]"])
    assert fingerprints(one, "zoo") == fingerprints(two, "zoo")
    assert fingerprints(one, "tokens") == fingerprints(two, "tokens")
    assert len(fingerprints(two, "backbone")) == 2 * len(fingerprints(one, "backbone"))
    assert [arm.name for arm in list_arms(two)] == ["digits-s0", "digits-s1", "both-s0", "both-s1"]


def test_anchors_come_from_the_targets_dataset_when_the_composition_has_it():
    config = load_preset("tiny")
    plan = ArmPlan(config, find_arm(config, "both", 0))
    digits, fonts = config.targets
    assert plan.samples(digits).work.config["anchor_slices"] == [0]
    assert plan.samples(fonts).work.config["anchor_slices"] == [0, 1]
    # Samples are compared with all that the backbone was trained on, wherever their anchors are from.
    assert set(plan.samples(digits).work.inputs) == {"backbone", "tokens/0", "tokens/1", "target"}
    assert set(plan.samples(fonts).work.inputs) == {"backbone", "tokens/0", "tokens/1"}
    assert config.in_distribution(plan.arm.composition, digits)
    assert not config.in_distribution(plan.arm.composition, fonts)


def test_an_arm_that_is_not_there_is_named_with_those_that_are():
    with pytest.raises(ConfigError, match="'nonsense' and seed 0; the ablation has digits-s0, both-s0"):
        find_arm(load_preset("tiny"), "nonsense", 0)


def test_mnist_family_varies_size_and_diversity_apart():
    """Every choice of datasets at every size, in shares that are equal but for what does not divide."""
    config = load_preset("mnist-family")
    chosen = {}
    for composition in config.compositions:
        counts = config.count_parts(composition)
        shares = [part.models for part in composition.slices]
        assert max(shares) - min(shares) <= 1
        assert counts["datasets"] == len(shares)
        assert composition.mixture == "equal"
        assert composition.name.endswith(f"-{counts['models']}")
        chosen.setdefault(counts["models"], []).append(frozenset(part.zoo for part in composition.slices))
    everything = {frozenset(some) for n in (1, 2, 3) for some in combinations(("mnist", "fashion", "usps"), n)}
    assert {size: set(choices) for size, choices in chosen.items()} == dict.fromkeys((25, 50, 100), everything)
    held_out = next(target for target in config.targets if target.zoo is None)
    assert not any(config.in_distribution(composition, held_out) for composition in config.compositions)


def test_a_resized_dataset_is_the_same_one():
    config = load_preset("architectures")
    counts = [config.count_parts(composition) for composition in config.compositions]
    assert {count["datasets"] for count in counts} == {1}
    assert {(count["models"], count["architectures"]) for count in counts} == set(product((24, 48, 96), (1, 2, 3)))


def test_a_file_is_a_preset_whatever_its_name(tmp_path):
    path = tmp_path / "tiny"
    path.write_text(yaml.safe_dump(load_preset("tiny").model_dump(mode="json")))
    assert load_preset(str(path)) == load_preset("tiny")
    path.write_text("")
    with pytest.raises(ConfigError, match=str(path)):
        load_preset(str(path))
    with pytest.raises(ConfigError, match="no preset 'tinny': give the path of a YAML file or one of"):
        load_preset("tinny")


@pytest.mark.parametrize(
    ("backbone", "words"),
    [
        ({"max_positions": [40, 32, 64]}, ["composition 'digits'", "zoo 'digits'", "max_positions"]),
        ({"max_positions": [256, 3, 64]}, ["zoo 'digits'", "layers"]),
        ({"behaviour": 0.3, "window": 20}, ["zoo 'digits'", "backbone.window"]),
    ],
)
def test_places_and_windows_are_checked_by_the_plan(backbone, words):
    config = load_preset("tiny")
    settings = config.backbone.model_dump() | backbone
    with pytest.raises(ConfigError) as refused:
        plan_ablation(change(config, backbone=settings))
    for word in words:
        assert word in str(refused.value)


def test_places_of_a_target_are_checked_by_the_plan():
    config = load_preset("tiny")
    network = {"architecture": "vit", "width": 16}
    other = {"name": "wide", "images": {"source": "digits"}, "network": network}
    with pytest.raises(ConfigError, match="target 'wide'"):
        plan_ablation(change(config, targets=[*config.model_dump()["targets"], other]))


def test_settings_change_a_config_as_they_do_on_the_command_line():
    config = load_preset("tiny")
    changed = change_config(config, ["seeds=[3]", "zoos.digits.learning_rate=0.01"])
    assert changed == load_preset("tiny", ["seeds=[3]", "zoos.digits.learning_rate=0.01"])
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        change_config(config, ["zoos.digits.learning_rat=1"])


def test_a_plan_reads_no_images(monkeypatch):
    config = load_preset("tiny").model_dump()
    config["zoos"][0]["images"] = {"source": "cifar10"}
    config["zoos"][0]["network"] = {"architecture": "mlp"}
    config["tokens"]["token_dim"] = None
    config["targets"] = config["targets"][1:]
    monkeypatch.setenv("MZSANE_DATA", "/nonexistent")
    config["backbone"]["max_positions"] = (4000, 32, 4000)
    assert plan_ablation(AblationConfig.model_validate(config))[-1].work.kind == "comparison"


def test_zoos_of_several_widths_are_refused_for_tokens():
    config = load_preset("tiny").model_dump()
    for widths in ([8, 16], [8]):
        config["zoos"][0].update({"network": {"architecture": "mlp"}, "factors": {"width": widths}})
        with pytest.raises(ValueError, match="varies its width"):
            AblationConfig.model_validate(config)
