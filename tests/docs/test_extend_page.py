"""Plug-ins from outside the package: the page's own code, through all stages, and what is wrong with others."""

import subprocess
import sys

import pytest
import yaml

from mzsane import plugins
from mzsane.config import NetworkConfig, SamplingConfig
from mzsane.errors import ConfigError
from mzsane.sampling.samplers import digest_sampler, find_sampler
from tests.docs.test_pages import list_blocks
from tests.pipeline.harness import MINI, REPOSITORY, clean_environment

PAGE = REPOSITORY / "docs" / "extend.md"
SAMPLER = list_blocks(PAGE, "python")[0]
FACTORY = list_blocks(REPOSITORY / "docs" / "howto.md", "python")[0]

RUN = """
import json
from pathlib import Path
import polars as pl
from mzsane.config import AblationConfig, ExecutionConfig, load_config
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation
from mzsane.store.artifacts import ArtifactStore

if __name__ == "__main__":
    config, store = load_config(AblationConfig, Path("mine.yaml")), ArtifactStore("store")
    for stage in plan_ablation(config):
        made = stage.make(store, ExecutionConfig(processes=1), NO_SINK)
        if stage.work.kind == "samples":
            records = pl.read_parquet(made.path("samples.parquet"))
            print(json.dumps([records["sampler"][0], records["made_of"].list.len().to_list()]))
    rows = pl.read_parquet(made.path("comparison.parquet"))
    print(json.dumps(rows.filter(method="samples")["accuracy_mean"].to_list()))
"""


@pytest.fixture
def outside(tmp_path):
    """A folder with a package that is none of ours."""
    package = tmp_path / "my_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "samplers.py").write_text(SAMPLER)
    (package / "models.py").write_text(FACTORY)
    (tmp_path / "run.py").write_text(RUN)
    return tmp_path


def run(outside, *arguments):
    environment = clean_environment() | {"PYTHONPATH": f"{REPOSITORY}:{outside}", "MZSANE_CORES": "1"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, cwd=outside, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_sampler_and_an_architecture_of_the_user_go_through_all_stages(outside):
    assert len(SAMPLER.splitlines()) <= 30
    assert len(FACTORY.splitlines()) <= 30
    zoo = MINI["zoos"][0] | {"network": {"architecture": "my_package.models:small"}}
    sampling = MINI["sampling"] | {"sampler": "my_package.samplers:tight", "anchors": 3}
    (outside / "mine.yaml").write_text(yaml.safe_dump(MINI | {"zoos": [zoo], "sampling": sampling}))
    samples, accuracies = map(yaml.safe_load, run(outside, "run.py")[-2:])
    assert samples == ["my_package.samplers:tight", [2] * sampling["samples"]]
    assert accuracies
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_what_an_installed_package_offers_has_a_plain_name(outside):
    info = outside / "my_package-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[mzsane.samplers]\ntight = my_package.samplers:tight\n")
    script = (
        "from mzsane.config import SamplingConfig\n"
        "print(SamplingConfig(sampler='tight').sampler)\n"
        "try: SamplingConfig(sampler='tigth')\n"
        "except ValueError as error: print(' '.join(str(error).split()))\n"
    )
    name, error = run(outside, "-c", script)
    assert name == "my_package.samplers:tight"
    assert "did you mean tight?" in error


def test_other_code_is_other_work(outside, monkeypatch):
    monkeypatch.syspath_prepend(str(outside))
    for number, text in enumerate((SAMPLER, SAMPLER.replace("0.5 + bandwidth", "0.4 + bandwidth"), SAMPLER)):
        (outside / f"samplers_{number}.py").write_text(text)
    first, changed, same = (digest_sampler(f"samplers_{number}:tight") for number in range(3))
    assert first == same != changed
    assert digest_sampler("joint") == {}


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("raises", "def tight(*parts): raise ValueError('no')", ["failed", "ValueError: no"]),
        (
            "returns",
            "def tight(anchors, *others): return anchors.latents_ATL",
            ["must return a Drawn"],
        ),
        ("number", "tight = 3", ["is a int, which cannot be called"]),
        ("imports", "import nothing_of_this_name", ["cannot be imported", "nothing_of_this_name"]),
        ("empty", "", ["cannot be imported", "tight"]),
    ],
)
def test_samplers_that_cannot_be_used_are_told_in_a_line(name, code, words, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / f"broken_{name}.py").write_text(code)
    with pytest.raises(ConfigError) as refused:
        digest_sampler(f"broken_{name}:tight")
    for word in words:
        assert word in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["joint ", "Joint", "jont", "a:b:c", "os.system", "..:x", "x" * 500])
def test_names_that_are_none_are_refused(name):
    with pytest.raises(ValueError, match="no sampler"):
        SamplingConfig(sampler=name)
    with pytest.raises(ValueError, match="no architecture"):
        NetworkConfig(architecture=name)


@pytest.mark.parametrize(
    ("config", "field", "ours"),
    [
        (SamplingConfig, "sampler", tuple(plugins.SAMPLERS)),
        (NetworkConfig, "architecture", plugins.ARCHITECTURES),
    ],
)
def test_forms_offer_ours_and_take_others(config, field, ours):
    schema = config.model_json_schema()["properties"][field]
    offered, others = schema["anyOf"]
    assert tuple(offered["enum"]) == ours
    assert others["type"] == "string"
    assert schema["default"] in ours


def test_every_sampler_of_ours_can_be_found():
    assert all(callable(find_sampler(name)) for name in plugins.SAMPLERS)
