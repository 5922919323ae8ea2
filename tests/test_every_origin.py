"""Zoos of every origin through every stage; what cannot be is refused in one line, never with a trace.

The cells are the origins times the stages below: 9 origins, tokens in three ways, a backbone in two, and all stages
after it. Nothing is replaced: every zoo is made as a user makes it.
"""

import io
import zipfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from torch import Tensor

from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import AblationConfig, AnyZooConfig, BackboneConfig, ExecutionConfig, ReadConfig, TokensConfig
from mzsane.config.loading import validate_config
from mzsane.errors import ConfigError
from mzsane.layout.running import load_weights
from mzsane.metrics import NO_SINK
from mzsane.networks.build import build_network, choose_network
from mzsane.plan import plan_ablation
from mzsane.problems.images.dataset import load_images
from mzsane.sampling.export import export_samples
from mzsane.store.artifacts import Artifact, ArtifactStore
from mzsane.store.serialisation import save_tensors
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import find_subject, read_activations
from mzsane.zoo.export import export_zoo
from mzsane.zoo.make import make_zoo
from mzsane.zoo.shards import iterate_weights, read_index
from mzsane.zoo.subject import read_subject
from tests.fetch.http_server import serve

SERIAL = ExecutionConfig(processes=1)
IMAGES = {"source": "glyphs", "characters": "ABC", "images": 60}
NETWORK = {"architecture": "mlp", "width": 4, "activation": "relu"}
KNOWN = {"network": NETWORK, "images": IMAGES}
TRAINED = {**KNOWN, "models": 8, "epochs": 2, "keep_epochs": 1, "batch_size": 16}
TOKENS = {"token_dim": 128, "train_fraction": 0.5, "validation_fraction": 0.25, "barrier_pairs": 1}
BACKBONE = {
    "window": 64,
    "d_model": 16,
    "heads": 1,
    "layers": 1,
    "latent_dim": 8,
    "steps": 1,
    "batch_size": 4,
    "validations": 1,
}
pytestmark = pytest.mark.filterwarnings("ignore:R.2 score is not well-defined")  # of so few models
ORIGINS = (
    *("trained", "trained over a grid", "read with a network", "read without one", "read from the published layout"),
    *("downloaded", "sparse by magnitude", "sparse by variational dropout", "of shared initial weights"),
)
TWO_ACTIVATIONS = ("trained over a grid", "read from the published layout")
WITH_STATE = ("spectral", "averaged", "own_norm", "instance_norm")
STAGES = ("backbone", "probes", "baselines", "samples", "scores", "comparison")


class Origins:
    """Makes the zoo of each origin, once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = ArtifactStore(str(folder / "store"))
        self._made: dict[str, dict[str, Any]] = {}

    def describe(self, origin: str) -> dict[str, Any]:
        """Return the settings of a zoo that has been made."""
        if origin not in self._made:
            self._made[origin] = self._make(origin)
        return self._made[origin]

    def configure(self, origin: str) -> AnyZooConfig:
        """Return the config of a zoo that has been made."""
        return validate_config(AnyZooConfig, {"name": "zoo", **self.describe(origin)}, origin)

    def open_zoo(self, origin: str) -> Artifact:
        return make_zoo(self.configure(origin), self.store, SERIAL)

    def tokenize(self, origin: str, **changes: Any) -> TokenTable:
        tokens = build_tokens(TokensConfig(**TOKENS | changes), self.configure(origin), self.store, SERIAL)
        return read_tokens(tokens)

    def plan(self, origin: str) -> AblationConfig:
        zoo = {"name": "zoo", **self.describe(origin)}
        kind = "read_zoos" if "source" in zoo or "download" in zoo else "sparse_zoos" if "zoo" in zoo else "zoos"
        target = {"name": "target", "zoo": "zoo"} if "zoo" in zoo or "network" in zoo else {"name": "target", **KNOWN}
        data = {
            "name": "matrix",
            kind: [zoo],
            "tokens": TOKENS,
            "compositions": [{"name": "all", "slices": [{"zoo": "zoo", "models": 3}]}],
            "backbone": BACKBONE,
            "targets": [target],
            "sampling": {"anchors": 2, "bandwidth": 0.1, "samples": 3, "keep": 2},
            "evaluation": {
                **{"finetune_epochs": [0, 1], "finetune_models": 1, "learning_rates": [0.001], "batch_size": 32},
                **{"random_models": 2, "distillation_steps": []},
            },
        }
        return validate_config(AblationConfig, data, origin)

    def run(self, origin: str, last: str) -> Artifact:
        """Do all stages of an ablation up to one."""
        for stage in plan_ablation(self.plan(origin)):
            artifact = stage.run(self.store, SERIAL, NO_SINK)
            if stage.work.kind == last:
                return artifact
        raise AssertionError(last)

    def _make(self, origin: str) -> dict[str, Any]:
        making: dict[str, Callable[[], dict[str, Any]]] = {
            "trained": lambda: TRAINED,
            "trained over a grid": lambda: {**TRAINED, "factors": {"activation": ["relu", "tanh"]}},
            "read with a network": lambda: {"source": self._write_files(), **KNOWN},
            "read without one": lambda: {"source": self._write_files()},
            "read from the published layout": lambda: {"source": self._publish("trained over a grid"), **KNOWN},
            "downloaded": self._download,
            "sparse by magnitude": lambda: {"zoo": {"name": "dense", **TRAINED}, "sparsity": [0.3], "epochs": 1},
            "sparse by variational dropout": lambda: {
                **{"zoo": {"name": "dense", **TRAINED}, "method": "variational", "epochs": 1}
            },
            "of shared initial weights": lambda: {**TRAINED, "initial_weights": 1},
            **{name: partial(self._build, name) for name in WITH_STATE},
        }
        described = making[origin]()
        if origin != "downloaded":
            make_zoo(validate_config(AnyZooConfig, {"name": "zoo", **described}, origin), self.store, SERIAL)
        return described

    def _build(self, name: str) -> dict[str, Any]:
        return {**TRAINED, "network": {"architecture": f"tests.factories:{name}"}}

    def _write_files(self) -> str:
        folder = self.folder / "files"
        if folder.exists():  # a source whose files are written again is another one
            return str(folder)
        folder.mkdir()
        for index, weights in iterate_weights(self.open_zoo("trained")):
            for place, model in enumerate(index["model"]):
                state = {name: value[place].clone() for name, value in weights.items()}
                (folder / f"{model}.safetensors").write_bytes(save_tensors(state))
        return str(folder)

    def _publish(self, origin: str) -> str:
        folder = self.folder / "published" / origin.replace(" ", "-")
        export_zoo(self.open_zoo(origin), str(folder))
        return str(folder)

    def _download(self) -> dict[str, Any]:
        folder, buffer = Path(self._publish("trained")), io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file in sorted(folder.rglob("*")):
                if file.is_file():
                    archive.write(file, f"zoo/{file.relative_to(folder)}")
        with serve() as server:
            server.files["/zoo.zip"] = buffer.getvalue()
            described = {"download": {"name": "archive", "source": f"{server.url}/zoo.zip"}, **KNOWN}
            make_zoo(validate_config(AnyZooConfig, {"name": "zoo", **described}, "downloaded"), self.store, SERIAL)
        return described


@pytest.fixture(scope="module")
def origins(tmp_path_factory) -> Origins:
    """The zoos, in a store of their own."""
    return Origins(tmp_path_factory.mktemp("origins"))


def list_originals(zoo: Artifact, table: TokenTable, images_NCHW: Tensor) -> list[Tensor]:
    """Return what the models of the tokens said before they were tokens."""
    network, _ = read_subject(zoo)
    rows, weights = next(iter(iterate_weights(zoo)))
    places = {key: place for place, key in enumerate(rows.select("model", "epoch").rows())}
    found = []
    for key, told in zip(table.index.select("model", "epoch").rows(), read_activations(table.index), strict=True):
        built = build_network(choose_network(network, told), 1, 3, 28).eval()
        built.load_state_dict({name: value[places[key]] for name, value in weights.items()})
        with torch.no_grad():
            found.append(built(images_NCHW))
    return found


@pytest.mark.parametrize("flag", ["plain", "signs", "scales"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_tokens(origins, origin, flag):
    """Tokens hold the same functions, whatever was made canonical."""
    changes = {} if flag == "plain" else {flag: True}
    zoo = origins.open_zoo(origin)
    assert len(read_index(zoo))
    if origin == "read without one":
        if changes:
            with pytest.raises(ConfigError, match=f"tokens.{flag} needs the activation .*has no network and images"):
                origins.tokenize(origin, **changes)
            return
        table = origins.tokenize(origin)
        assert table.groups == ()
        assert find_subject(table.artifact) is None
        return
    table = origins.tokenize(origin, **changes)
    assert len(table.groups) == 2
    assert set(read_activations(table.index)) == ({"relu", "tanh"} if origin in TWO_ACTIVATIONS else {"relu"})
    known = find_subject(table.artifact)
    assert known is not None
    assert known.network.architecture == "mlp"
    images_NCHW = load_images(known.images).splits["test"].images_NCHW
    originals = list_originals(zoo, table, images_NCHW)
    for flat_P, told, original in zip(table.load(), read_activations(table.index), originals, strict=True):
        network = build_network(choose_network(known.network, told), 1, 3, 28).eval()
        load_weights(table.layout, network, flat_P)
        with torch.no_grad():
            torch.testing.assert_close(network(images_NCHW), original, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("origin", ORIGINS)
def test_backbone_with_behaviour(origins, origin):
    """One step with the behavioural loss: models of one function, which is known."""
    table = origins.tokenize(origin)
    slices = [TokenSlice(table.artifact.ref, origins.plan(origin).compositions[0].slices[0])]
    config = BackboneConfig(**BACKBONE, behaviour=0.5)

    def train() -> Artifact:
        return pretrain(config, slices, 0, origins.store, SERIAL)

    if origin == "read without one":
        with pytest.raises(ConfigError, match=r"the network and images of slice 0 .* are not known"):
            train()
    elif origin in TWO_ACTIVATIONS:
        with pytest.raises(ConfigError, match=r"needs models of one function .*with the activations relu, tanh"):
            train()
    else:
        assert train().manifest.files


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("origin", ORIGINS)
def test_stage(origins, origin, stage):
    """Every stage of an ablation, from one step of a backbone to the report."""
    artifact = origins.run(origin, stage)
    assert artifact.ref.kind == stage
    if stage == "scores":
        scores = pl.read_parquet(artifact.path("scores.parquet"))
        assert scores["accuracy"].is_between(0, 1).all()
        assert {"samples", "zoo", "best_model", "anchors"} <= set(scores["method"])
        held_out = origins.tokenize(origin)
        if origin not in ("read without one", "read with a network"):  # whose files tell no accuracy
            rows = held_out.index[held_out.pick_rows("test", last_epochs=1).tolist()]
            single = scores.filter(method="zoo", ensemble=1, finetune_epochs=0)
            assert sorted(single["accuracy"]) == pytest.approx(sorted(rows["test_accuracy"]), abs=1e-6)
    if stage == "comparison":
        assert any(name.endswith(".html") or name.endswith(".md") for name in artifact.manifest.files)


@pytest.mark.parametrize("origin", ORIGINS)
def test_samples_are_exported_and_read_back(origins, origin, tmp_path):
    samples = origins.run(origin, "samples")
    assert export_samples(samples, str(tmp_path / "out")) == 2
    read = ReadConfig(name="back", source=str(tmp_path / "out"), **KNOWN, measure=True)
    index = read_index(make_zoo(read, origins.store, SERIAL))
    assert len(index) == 2
    assert index["test_accuracy"].is_between(0, 1).all()


@pytest.mark.parametrize("origin", ORIGINS)
def test_the_zoo_is_exported_and_read_back(origins, origin, tmp_path):
    zoo = origins.open_zoo(origin)
    count = export_zoo(zoo, str(tmp_path / "out"))
    index = read_index(make_zoo(ReadConfig(name="back", source=str(tmp_path / "out"), **KNOWN), origins.store, SERIAL))
    assert len(index) == count == len(read_index(zoo))
    assert sorted(index["sha256"]) == sorted(read_index(zoo)["sha256"])


@pytest.mark.parametrize("name", WITH_STATE)
def test_networks_with_state_of_their_own(origins, name, tmp_path):
    """Their buffers go with them through every stage: held-out models score what they did when they were trained."""
    table = origins.tokenize(name)
    slices = [TokenSlice(table.artifact.ref, origins.plan(name).compositions[0].slices[0])]
    assert pretrain(
        BackboneConfig(**BACKBONE | {"window": 96}, behaviour=0.5), slices, 0, origins.store, SERIAL
    ).manifest.files
    scores = pl.read_parquet(origins.run(name, "scores").path("scores.parquet"))
    rows = table.index[table.pick_rows("test", last_epochs=1).tolist()]
    if name != "instance_norm":  # whose statistics are computed anew, on other images than batches of training
        single = scores.filter(method="zoo", ensemble=1, finetune_epochs=0)
        assert sorted(single["accuracy"]) == pytest.approx(sorted(rows["test_accuracy"]), abs=1e-6)
    assert scores.filter(method="samples").height
    samples = origins.run(name, "samples")
    export_samples(samples, str(tmp_path / "out"))
    zoo = origins.configure(name)
    read = ReadConfig(name="back", source=str(tmp_path / "out"), network=zoo.network, images=zoo.images, measure=True)
    index = read_index(make_zoo(read, origins.store, SERIAL))
    best = pl.read_parquet(samples.path("samples.parquet")).sort("rank")["validation_accuracy"].to_list()[:2]
    assert sorted(index["val_accuracy"]) == pytest.approx(sorted(best))


def test_an_older_zoo_tells_nothing_and_breaks_nothing(origins, tmp_path):
    """A zoo of before there was a subject, whose config has keys that nobody knows any more."""
    zoo = origins.open_zoo("trained")
    manifest = zoo.manifest.model_copy(
        update={
            "config": {"network": {"kind": "old"}, "gone": 1},
            "files": {name: entry for name, entry in zoo.manifest.files.items() if name != "subject.json"},
        }
    )
    assert read_subject(Artifact(origins.store, manifest)) == (None, None)
