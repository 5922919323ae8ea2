"""Models of a zoo are from their tokens what they were: each with its own activation, buffers and all."""

from collections.abc import Callable, Mapping
from pathlib import Path

import polars as pl
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mzsane.config import (
    EvaluationConfig,
    ExecutionConfig,
    GlyphsConfig,
    NetworkConfig,
    ReadConfig,
    TokensConfig,
    ZooConfig,
)
from mzsane.errors import ConfigError
from mzsane.evaluation.finetuning import finetune_models
from mzsane.layout.running import fits_network, load_weights
from mzsane.networks.build import build_network, choose_network
from mzsane.networks.disagreement import classify_models
from mzsane.networks.run import ModelSet, run_batched, score_models, stack_models
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import ArtifactStore
from mzsane.symmetry.align.barrier import measure_barrier
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.subject import read_activations
from mzsane.zoo.make import make_zoo
from mzsane.zoo.shards import load_weights as load_zoo

SERIAL = ExecutionConfig(processes=1)
IMAGES = GlyphsConfig(source="glyphs", characters="ABC", images=90)
PLAIN = TokensConfig(token_dim=16, train_fraction=0.5, validation_fraction=0.25, barrier_pairs=2)
Change = Callable[[int, nn.Module], None]


def write_models(folder: Path, factory: str, change: Change = lambda number, network: None, models: int = 4) -> None:
    """Train some networks for a moment and write their state dicts."""
    split = load_images(IMAGES).splits["train"]
    for number in range(models):
        torch.manual_seed(number)
        network = build_network(NetworkConfig(architecture=f"tests.factories:{factory}"), 1, 3, 28)
        for module in network.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        change(number, network)
        optimizer = torch.optim.Adam(network.parameters(), 0.01)
        for _ in range(8):
            optimizer.zero_grad()
            functional.cross_entropy(network.train()(split.images_NCHW), split.labels_N).backward()
            optimizer.step()
        folder.mkdir(exist_ok=True)
        torch.save(network.state_dict(), folder / f"m{number}.pt")


def read(store: ArtifactStore, folder: Path, factory: str, tokens: TokensConfig = PLAIN) -> tuple[TokenTable, list]:
    """Read the models and tokenize them; with what they say of the test images when their files are loaded."""
    network = NetworkConfig(architecture=f"tests.factories:{factory}")
    config = ReadConfig(name="theirs", source=str(folder), network=network, images=IMAGES, measure=True)
    make_zoo(config, store, SERIAL)
    table = read_tokens(build_tokens(tokens, config, store, SERIAL))
    images_NCHW = load_images(IMAGES).splits["test"].images_NCHW
    originals = []
    for model in table.index["model"]:
        built = build_network(network, 1, 3, 28).eval()
        built.load_state_dict(torch.load(folder / f"{model}.pt"))
        with torch.no_grad():
            originals.append(built(images_NCHW))
    return table, originals


def run(table: TokenTable, network: NetworkConfig) -> list[Tensor]:
    """Return what models say of the test images when they are loaded from their tokens."""
    dataset = load_images(IMAGES)
    found = []
    for flat_P, told in zip(table.load(), read_activations(table.index), strict=True):
        config = choose_network(network, told)
        built = build_network(config, dataset.channels, dataset.classes, dataset.size).eval()
        load_weights(table.layout, built, flat_P)
        with torch.no_grad():
            found.append(built(dataset.splits["test"].images_NCHW))
    return found


def normalise(number: int, network: nn.Module) -> None:
    network.mean.fill_(0.3)
    network.deviation.fill_(0.2)


def normalise_each(number: int, network: nn.Module) -> None:
    network.mean.fill_(0.1 * number)
    network.deviation.fill_(0.2 + 0.1 * number)


def count(number: int, network: nn.Module) -> None:
    network.steps.fill_(100 * number)
    network.seen.fill_(1000.0 * number)


def shuffle(number: int, network: nn.Module) -> None:
    network.order.copy_(network.order.flip(0))


def shuffle_each(number: int, network: nn.Module) -> None:
    network.order.copy_(torch.randperm(784))


def mask_each(number: int, network: nn.Module) -> None:
    network.mask[number] = False


KEPT: Mapping[str, tuple[str, Change, set[str], set[str]]] = {
    "one normalisation": ("normalised", normalise, set(), {"mean", "deviation"}),
    "a normalisation each": ("normalised", normalise_each, {"mean", "deviation"}, set()),
    "moving averages": ("averaged", lambda number, network: None, {"centre"}, {"steps", "seen"}),
    "counters that differ": ("averaged", count, {"centre"}, set()),
    "a norm of one's own": ("own_norm", lambda number, network: None, {"2.running_mean", "2.running_var"}, set()),
    "spectral norm": (
        "spectral",
        lambda number, network: None,
        {f"{layer}.parametrizations.weight.0._{side}" for layer in (1, 3) for side in "uv"},
        set(),
    ),
    "one order of pixels": ("chosen", shuffle, set(), {"order"}),
}


@pytest.mark.parametrize("name", KEPT)
def test_buffers_travel_with_their_models(store, tmp_path, name):
    factory, change, weights, shared = KEPT[name]
    write_models(tmp_path / "theirs", factory, change)
    table, originals = read(store, tmp_path / "theirs", factory)
    plain = build_network(NetworkConfig(architecture=f"tests.factories:{factory}"), 1, 3, 28)
    own = {name for name, _ in plain.named_buffers()}
    assert table.layout.names & own == weights
    assert {stored.name for stored in table.layout.shared} == shared
    assert not table.layout.lost
    assert fits_network(table.layout, plain)
    for name, (low, high) in table.layout.ranges.items():
        values = table.layout.unflatten(table.load())[name]
        assert (low, high) == pytest.approx((float(values.min()), float(values.max())))
        load_weights(table.layout, plain, table.load()[0] - 1e6)
        assert plain.get_buffer(name).min() >= low - 1e-6
    network = NetworkConfig(architecture=f"tests.factories:{factory}")
    for found, original in zip(run(table, network), originals, strict=True):
        torch.testing.assert_close(found, original, rtol=1e-4, atol=1e-4)
    models = ModelSet(network, IMAGES, table.layout, table.load())
    scores = score_models(models, "test", SERIAL)
    assert [score.accuracy for score in scores] == pytest.approx(table.index["test_accuracy"].to_list())
    images = load_images(IMAGES)
    together = run_batched(stack_models(models, images, torch.device("cpu")), images.splits["test"].images_NCHW)
    found = together.log_softmax(dim=2)
    torch.testing.assert_close(found, torch.stack(originals).log_softmax(dim=2), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("factory", "change"), [("chosen", shuffle_each), ("masked", mask_each)])
def test_what_cannot_be_kept_is_named_when_models_are_run(store, tmp_path, factory, change):
    write_models(tmp_path / "theirs", factory, change)
    table, _ = read(store, tmp_path / "theirs", factory)
    name = {"chosen": "order, int64", "masked": "mask, bool"}[factory]
    assert table.layout.lost == (name,)
    assert table.groups == ()
    assert f"models differ in {name}" in table.artifact.manifest.counts["no_symmetry"]
    models = ModelSet(NetworkConfig(architecture=f"tests.factories:{factory}"), IMAGES, table.layout, table.load())
    for use in (lambda: score_models(models, "test", SERIAL), lambda: classify_models(models, SERIAL)):
        with pytest.raises(ConfigError, match=f"cannot be run: they differ in buffers .*{name}"):
            use()


def test_a_mask_that_all_share_keeps_its_groups_apart(store, tmp_path):
    def mask(number: int, network: nn.Module) -> None:
        network.mask[:3] = False

    write_models(tmp_path / "theirs", "masked", mask)
    table, originals = read(store, tmp_path / "theirs", "masked")
    assert [stored.name for stored in table.layout.shared] == ["mask"]
    for found, original in zip(
        run(table, NetworkConfig(architecture="tests.factories:masked")), originals, strict=True
    ):
        torch.testing.assert_close(found, original, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("factory", ["spectral", "averaged", "own_norm"])
def test_models_that_are_trained_here_are_the_same_from_their_tokens(store, factory):
    network = NetworkConfig(architecture=f"tests.factories:{factory}")
    config = ZooConfig(name="z", images=IMAGES, network=network, models=4, epochs=3, keep_epochs=1, learning_rate=0.01)
    make_zoo(config, store, SERIAL)
    table = read_tokens(build_tokens(PLAIN, config, store, SERIAL))
    scores = score_models(ModelSet(network, IMAGES, table.layout, table.load()), "test", SERIAL)
    assert [score.accuracy for score in scores] == pytest.approx(table.index["test_accuracy"].to_list())


def test_a_network_that_forgets_its_state_is_refused_before_any_work(store):
    network = NetworkConfig(architecture="tests.factories:forgetful")
    config = ZooConfig(name="z", images=IMAGES, network=network, models=2, epochs=1, keep_epochs=1)
    with pytest.raises(ConfigError, match=r"forgetful changes while it is trained what its .* keep \(average\)"):
        make_zoo(config, store, SERIAL)


def spoil(number: int, network: nn.Module) -> None:
    if number == 1:
        with torch.no_grad():
            network.mix.weight.fill_(float("nan"))


def test_one_odd_checkpoint_of_a_tied_network_is_set_aside(store, tmp_path):
    folder = tmp_path / "theirs"
    write_models(folder, "tied", spoil)
    state = torch.load(folder / "m2.pt")
    state["again.weight"] = state["again.weight"] + 0.1
    torch.save(state, folder / "m2.pt")
    table, originals = read(store, folder, "tied")
    assert table.index["model"].to_list() == ["m0", "m3"]
    for found, original in zip(run(table, NetworkConfig(architecture="tests.factories:tied")), originals, strict=True):
        torch.testing.assert_close(found, original, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def grids(tmp_path_factory) -> tuple[ArtifactStore, dict[str, ZooConfig]]:
    """Zoos whose models have two activations each, both ways round."""
    store = ArtifactStore(str(tmp_path_factory.mktemp("grids") / "store"))
    configs = {}
    for first, second in (("tanh", "relu"), ("relu", "tanh")):
        network = NetworkConfig(architecture="mlp", width=6, activation=first)
        configs[first] = ZooConfig(
            name=first,
            images=IMAGES,
            network=network,
            models=8,
            epochs=3,
            keep_epochs=1,
            factors={"activation": (first, second)},
            learning_rate=0.01,
        )
        make_zoo(configs[first], store, SERIAL)
    return store, configs


@pytest.mark.parametrize("flags", [{"signs": True}, {"scales": True}, {"signs": True, "scales": True}])
@pytest.mark.parametrize("first", ["tanh", "relu"])
def test_canonical_form_keeps_models_of_every_activation(grids, first, flags):
    store, configs = grids
    config = configs[first]
    table = read_tokens(build_tokens(PLAIN.model_copy(update=flags), config, store, SERIAL))
    assert len(table.groups) == 2
    assert not any(group.sign or group.scale for group in table.groups)
    index, weights = load_zoo(make_zoo(config, store, SERIAL))
    images_NCHW = load_images(IMAGES).splits["test"].images_NCHW
    places = {model: place for place, model in enumerate(index["model"])}
    for model, found, told in zip(
        table.index["model"], run(table, config.network), read_activations(table.index), strict=True
    ):
        network = build_network(choose_network(config.network, told), 1, 3, 28).eval()
        network.load_state_dict({name: value[places[model]] for name, value in weights.items()})
        with torch.no_grad():
            torch.testing.assert_close(found, network(images_NCHW), rtol=1e-4, atol=1e-4)
    assert set(read_activations(table.index)) == {"tanh", "relu"}


def test_one_activation_keeps_its_signs_and_scales(store, grids):
    _, configs = grids
    for activation, flag in (("tanh", "sign"), ("relu", "scale")):
        config = configs[activation].model_copy(
            update={"factors": configs[activation].factors.model_copy(update={"activation": (activation,)})}
        )
        make_zoo(config, store, SERIAL)
        table = read_tokens(build_tokens(PLAIN.model_copy(update={f"{flag}s": True}), config, store, SERIAL))
        assert all(getattr(group, flag) for group in table.groups)


@pytest.mark.parametrize("first", ["tanh", "relu"])
def test_barriers_are_of_models_of_one_activation_with_their_own_network(grids, first):
    store, configs = grids
    config = configs[first]
    table = read_tokens(build_tokens(PLAIN, config, store, SERIAL))
    told = dict(zip(table.index["model"], read_activations(table.index), strict=True))

    barriers = pl.read_parquet(table.artifact.path("barriers.parquet"))
    assert len(barriers)
    assert all(told[first] == told[second] for first, second in barriers.select("first", "second").rows())
    raw = read_tokens(build_tokens(PLAIN.model_copy(update={"canonical": False}), config, store, SERIAL))
    weights = dict(zip(raw.index["model"], raw.load(), strict=True))
    split = load_images(IMAGES).splits["val"]
    for first, second, before, _ in barriers.rows():
        network = build_network(choose_network(config.network, told[first]), 1, 3, 28)
        assert before == pytest.approx(measure_barrier(network, raw.layout, weights[first], weights[second], split))


def test_scores_are_of_each_models_own_network(grids):
    store, configs = grids
    for config in configs.values():
        table = read_tokens(build_tokens(PLAIN, config, store, SERIAL))
        told = tuple(read_activations(table.index))
        models = ModelSet(config.network, IMAGES, table.layout, table.load(), told)
        scores = score_models(models, "test", SERIAL)
        assert [score.accuracy for score in scores] == pytest.approx(table.index["test_accuracy"].to_list())
        tuned = finetune_models(
            ModelSet(config.network, IMAGES, table.layout, table.load()[:4], told[:4]),
            EvaluationConfig(finetune_epochs=(0, 1), learning_rates=(1e-9,), batch_size=64),
            0,
            SERIAL,
        )
        assert [score.accuracy for score in tuned] == pytest.approx(table.index["test_accuracy"].to_list()[:4])
        unknown = ModelSet(config.network, IMAGES, table.layout, table.load(), ("swoosh",) * len(told))
        with pytest.raises(ConfigError, match="activation swoosh, which is not known"):
            score_models(unknown, "test", SERIAL)


def test_signs_are_refused_where_an_activation_is_not_known(store, tmp_path, grids):
    folder = tmp_path / "theirs"
    folder.mkdir()
    network = build_network(NetworkConfig(architecture="mlp", width=6), 1, 3, 28)
    rows = ["file,activation"]
    for number in range(4):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(generator=torch.Generator().manual_seed(number))
        torch.save(network.state_dict(), folder / f"m{number}.pt")
        rows.append(f"m{number}.pt,{'Tanh' if number else 'maxout'}")
    (folder / "table.csv").write_text("\n".join(rows))
    config = ReadConfig(
        name="r",
        source=str(folder),
        metadata="table.csv",
        network=NetworkConfig(architecture="mlp", width=6),
        images=IMAGES,
    )
    zoo = make_zoo(config, store, SERIAL)
    assert load_zoo(zoo)[0]["scorable"].to_list() == [False, True, True, True]
    build_tokens(PLAIN, config, store, SERIAL)
    with pytest.raises(ConfigError, match=r"tokens\.signs needs the activation of every model.*maxout"):
        build_tokens(PLAIN.model_copy(update={"signs": True}), config, store, SERIAL)
    nameless = ReadConfig(name="n", source=str(folder))
    make_zoo(nameless, store, SERIAL)
    with pytest.raises(ConfigError, match=r"tokens\.scales needs the activation .*has no network and images"):
        build_tokens(PLAIN.model_copy(update={"scales": True}), nameless, store, SERIAL)
