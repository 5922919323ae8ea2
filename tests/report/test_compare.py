"""Which arms the map of latents shows."""

from mzsane.config import AblationConfig
from mzsane.report.gather import ArmParts, choose_mapped
from mzsane.store.artifacts import ArtifactRef


def test_of_each_diversity_the_largest_composition_is_mapped(tiny_zoo_config):
    images = {"source": "glyphs", "characters": "0123", "images": 120}
    zoos = [tiny_zoo_config, {"name": "other", "images": images, "models": 6, "epochs": 1, "keep_epochs": 1}]
    sizes = {"small": {"tiny": 2}, "both-small": {"tiny": 1, "other": 1}, "large": {"other": 4}}
    sizes |= {"both-large": {"tiny": 2, "other": 2}, "also-large": {"tiny": 4}}
    config = AblationConfig(
        name="sizes",
        zoos=zoos,
        compositions=[
            {"name": name, "slices": [{"zoo": zoo, "models": models} for zoo, models in parts.items()]}
            for name, parts in sizes.items()
        ],
        targets=[{"name": "tiny", "zoo": "tiny"}],
        sampling={"anchors": 1},
        seeds=(3, 4),
    )
    backbone = ArtifactRef(kind="backbone", fingerprint="0" * 64)
    arms = [
        ArmParts(f"{composition.name}-s{seed}", composition, seed, backbone, backbone, {}, {}, {})
        for composition in config.compositions
        for seed in config.seeds
    ]
    assert [arm.name for arm in choose_mapped(config, arms)] == ["large-s3", "both-large-s3"]
