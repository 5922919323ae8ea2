"""A zoo small enough to train in a test, its tokens, and the stores to put them in."""

import logging
import shutil
from collections.abc import Callable
from pathlib import PurePosixPath

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import nn
from xdist.scheduler import LoadScopeScheduling

from mzsane.config import BackboneConfig, ExecutionConfig, GlyphsConfig, TokensConfig, ZooConfig
from mzsane.store.artifacts import Artifact, ArtifactStore
from mzsane.tokens.build import build_tokens
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.zoo.train import train_zoo
from tests.checkpoints import make_state as make_state
from tests.checkpoints import real_checkpoints as real_checkpoints
from tests.checkpoints import to_bytes as to_bytes
from tests.checkpoints import write_ray_zoo as write_ray_zoo

# Every run draws the same examples: a failure in CI is one that a developer sees too.
settings.register_profile("mzsane", deadline=None, derandomize=True, database=None, max_examples=30)
settings.load_profile("mzsane")
torch.set_num_threads(1)

SERIAL = ExecutionConfig(processes=1)
STACKS = ("browser", "infra", "pipeline")  # folders whose tests share what takes long to start


class SharedStacks(LoadScopeScheduling):
    """Shares the tests among processes: each file, or folder with a stack, is one's."""

    def _split_scope(self, nodeid: str) -> str:
        file = PurePosixPath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name in STACKS else file)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log) -> LoadScopeScheduling:
    """Name what pytest-xdist shares the tests with."""
    return SharedStacks(config, log)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the folders with a stack first: a process that began one last would be the last to end."""
    items.sort(key=lambda item: item.path.parent.name not in STACKS)


@pytest.fixture(scope="session")
def tiny_zoo_config() -> ZooConfig:
    """Six CNN-s on 120 rendered letters, two epochs, both kept."""
    images = GlyphsConfig(source="glyphs", characters="ABCD", images=120)
    return ZooConfig(name="tiny", images=images, models=6, epochs=2, keep_epochs=2)


@pytest.fixture(scope="session")
def tiny_tokens_config() -> TokensConfig:
    """Four models to train on, one to validate on, one to test on."""
    return TokensConfig(train_fraction=0.67, validation_fraction=0.17, barrier_pairs=1)


@pytest.fixture(scope="session")
def tiny_backbone_config() -> BackboneConfig:
    """A backbone that takes a window of a tiny zoo's model whole."""
    return BackboneConfig(
        window=66,
        d_model=16,
        heads=1,
        layers=1,
        latent_dim=8,
        steps=12,
        batch_size=4,
        precision="float32",
        validations=1,
    )


@pytest.fixture
def store(tmp_path) -> ArtifactStore:
    """An empty local store."""
    return ArtifactStore(str(tmp_path / "store"))


@pytest.fixture(scope="session")
def trained_store(tmp_path_factory, tiny_zoo_config, tiny_tokens_config) -> ArtifactStore:
    """A local store with the tiny zoo and its tokens. Only to be read: who publishes takes a copy (`make_store`)."""
    store = ArtifactStore(str(tmp_path_factory.mktemp("trained") / "store"))
    train_zoo(tiny_zoo_config, store, SERIAL)
    build_tokens(tiny_tokens_config, tiny_zoo_config, store)
    return store


@pytest.fixture(scope="session")
def tiny_zoo(trained_store, tiny_zoo_config) -> Artifact:
    """The tiny zoo, trained."""
    return train_zoo(tiny_zoo_config, trained_store, SERIAL)


@pytest.fixture(scope="session")
def tiny_tokens(trained_store, tiny_tokens_config, tiny_zoo_config) -> Artifact:
    """The tiny zoo's tokens."""
    return build_tokens(tiny_tokens_config, tiny_zoo_config, trained_store)


@pytest.fixture(scope="session")
def tiny_table(tiny_tokens) -> TokenTable:
    """The tiny zoo's tokens, opened."""
    return read_tokens(tiny_tokens)


@pytest.fixture(scope="session")
def raw_table(make_store, tiny_tokens_config, tiny_zoo_config) -> TokenTable:
    """The tokens of the same zoo as it was trained, not aligned."""
    config = tiny_tokens_config.model_copy(update={"canonical": False})
    return read_tokens(build_tokens(config, tiny_zoo_config, make_store(), SERIAL))


@pytest.fixture(scope="session")
def make_store(trained_store, tmp_path_factory) -> Callable[[], ArtifactStore]:
    """The maker of stores of one's own that start as a copy of `trained_store`."""

    def make() -> ArtifactStore:
        root = tmp_path_factory.mktemp("copy") / "store"
        shutil.copytree(trained_store.root, root)
        return ArtifactStore(str(root))

    return make


@pytest.fixture(scope="session")
def draw_chain():
    """The drawer of random chains of layers for hypothesis: `draw_chain(data)` returns (network, images), float64.

    Convolutions with or without pooling, a flatten and linear layers; or linear layers only; biases at random.
    """

    def draw_chain(data):
        widths, yes = st.integers(1, 5), st.booleans()
        layers, convolutions = [], data.draw(st.integers(0, 2))
        channels, side = data.draw(widths), data.draw(st.integers(5, 7)) if convolutions else 1
        shape = (channels, side, side)
        for _ in range(convolutions):
            out, kernel = data.draw(widths), data.draw(st.integers(1, 2))
            layers += [nn.Conv2d(channels, out, kernel, bias=data.draw(yes)), nn.Tanh()]
            channels, side = out, side - kernel + 1
            if side > 3 and data.draw(yes):
                layers.append(nn.MaxPool2d(2))
                side //= 2
        layers.append(nn.Flatten())
        features = channels * side**2
        for out in data.draw(st.lists(widths, min_size=1, max_size=3)):
            layers += [nn.Linear(features, out, bias=data.draw(yes)), nn.Tanh()]
            features = out
        network = nn.Sequential(*layers).double()
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**16)))
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.normal_(generator=generator)
        return network, torch.randn(5, *shape, dtype=torch.float64, generator=generator)

    return draw_chain


@pytest.fixture(scope="session")
def s3_endpoint():
    """The address of an S3 server for the tests: real HTTP, in memory, any credentials."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line a request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
