"""The command `mzsane samples`: what it writes, and what it refuses."""

import json

import pytest
import yaml
from safetensors.torch import load_file

from flows.commands.app import main as run_mzsane
from mzsane.config import AblationConfig
from mzsane.metrics import NO_SINK
from mzsane.plan import plan_ablation
from mzsane.store.artifacts import ArtifactStore
from tests.pipeline.harness import MINI, SERIAL


def main(arguments):
    """Run the command `mzsane samples`."""
    return run_mzsane(["samples", *arguments])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A store with the samples of a very small ablation, and the ablation's file."""
    folder = tmp_path_factory.mktemp("samples")
    store = ArtifactStore(str(folder / "store"))
    for stage in plan_ablation(AblationConfig.model_validate(MINI)):
        if stage.work.kind in ("zoo", "tokens", "backbone", "samples"):
            stage.make(store, SERIAL, NO_SINK)
    path = folder / "mini.yaml"
    path.write_text(yaml.safe_dump(MINI))
    return store.root, str(path)


@pytest.fixture
def command(drawn, monkeypatch):
    root, path = drawn
    monkeypatch.setenv("MZSANE_ROOT", root)
    names = [MINI["compositions"][0]["name"], MINI["targets"][0]["name"]]
    return lambda *options, names=names: main([path, *names, *options])


def test_selected_samples_are_written(command, tmp_path, capsys):
    assert command("--to", str(tmp_path / "out")) == 0
    assert f"2 samples written to {tmp_path / 'out'}" in capsys.readouterr().out
    index = json.loads((tmp_path / "out" / "index.json").read_text())
    for row in index["models"]:
        assert load_file(tmp_path / "out" / row["file"])
    assert command("--to", str(tmp_path / "all"), "--all") == 0
    assert len(list((tmp_path / "all").glob("*.safetensors"))) == MINI["sampling"]["samples"]


def test_what_cannot_be_is_refused_in_one_line(command, tmp_path, capsys):
    (tmp_path / "mine").write_text("")
    for names, parts in (
        (["nothing", "letters"], ["no arm with composition 'nothing'"]),
        ([MINI["compositions"][0]["name"], "nothing"], ["no target 'nothing'"]),
        ([MINI["compositions"][0]["name"], MINI["targets"][0]["name"]], ["has files in it"]),
    ):
        assert command("--to", str(tmp_path), names=names) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        for part in parts:
            assert part in err
