"""The command `mzsane zoo`: presets, what it refuses and how, export, download, and the list."""

from pathlib import Path

import pytest
import yaml

from flows.commands.app import main as run_mzsane
from flows.presets import list_presets, load_zoo_preset
from mzsane.config import DownloadConfig
from mzsane.fetch.catalog import find_entry
from mzsane.fetch.download import plan_download
from mzsane.store.artifacts import ArtifactStore
from mzsane.zoo.make import make_zoo
from tests.fetch.http_server import serve
from tests.pipeline.harness import SERIAL


def main(arguments):
    """Run the command `mzsane zoo`."""
    return run_mzsane(["zoo", *arguments])


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch) -> str:
    """The store that the command works on."""
    monkeypatch.setenv("MZSANE_ROOT", str(tmp_path / "store"))
    return str(tmp_path / "store")


@pytest.mark.parametrize("name", list_presets("zoos"))
def test_shipped_presets_load(name):
    assert load_zoo_preset(name).name == name


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["make", "nonsense"], ["'nonsense'", "mnist", "cifar10-grid"]),
        (["make", "mnist", "--set", "learning_rate=-1"], ["learning_rate", "greater than 0", "-1"]),
        (["make", "mnist", "--set", "factors.colour=[red]"], ["factors.colour", "unknown key"]),
        (["export", "mnist", "somewhere"], ["mnist is not in", "make it first"]),
        (["download", "nonsense"], ["'nonsense'", "cifar10-cnn-sample"]),
        (["download", "http://127.0.0.1:1/zoo.zip", "--epochs", "-1"], ["epochs", "-1"]),
    ],
)
def test_wrong_settings_are_refused_in_one_line(arguments, parts, capsys):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    for part in parts:
        assert part in err


def test_list_names_the_published_zoos(capsys):
    assert main(["list"]) == 0
    assert find_entry("cifar10-cnn-sample").file in capsys.readouterr().out


def test_made_zoo_is_shown_and_exported(tiny_zoo_config, tmp_path, root, capsys):
    config = tmp_path / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_zoo_config.model_dump(mode="json")))
    zoo = make_zoo(tiny_zoo_config, ArtifactStore(root), SERIAL)
    assert main(["make", str(config)]) == 0
    out = capsys.readouterr().out
    assert "zoo tiny" in out
    assert zoo.address in out
    assert Path(out.splitlines()[-1]).read_bytes().startswith(b"\x89PNG")
    assert main(["export", str(config), str(tmp_path / "exported")]) == 0
    assert "12 checkpoints written" in capsys.readouterr().out
    assert len(list((tmp_path / "exported").glob("*/checkpoint_*/checkpoints"))) == 12


def test_download_goes_into_the_store(root, capsys):
    with serve() as server:
        server.files["/zoo.tar"] = bytes(100_000)
        source = f"{server.url}/zoo.tar"
        assert main(["download", source]) == 0
    out = capsys.readouterr().out
    assert "bytes in" in out
    assert ArtifactStore(root).exists(plan_download(DownloadConfig(name="x", source=source)).ref)
