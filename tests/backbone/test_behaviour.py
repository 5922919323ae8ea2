"""The behavioural loss against plain networks in a plain loop, and what it must not depend on."""

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mzsane.backbone.behaviour import Behaviour, open_behaviour
from mzsane.config import BackboneConfig, DigitsConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.errors import ConfigError
from mzsane.layout.token_layout import TokenLayout
from mzsane.networks import behaviour as network_behaviour
from mzsane.networks.behaviour import NetworkBehaviour, Output, compare_outputs
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.train_loop import fit_epochs
from mzsane.problems.images.dataset import load_images
from mzsane.store.artifacts import ArtifactStore
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.windows.memory import WindowsInMemory
from mzsane.windows.windows import WindowBatch, WindowSource

Plan = list[tuple[int, TokenLayout, Tensor]]  # the models of a window: source, layout, flat weights
OUTPUTS: tuple[Output, ...] = ("logits", "probabilities")
CONFIG = BackboneConfig(window=66, behaviour=1.0, behaviour_images=16)


class NormNet(nn.Module):
    """A small network with batch norms after a convolution and after a linear layer, and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3)
        self.hidden, self.hidden_norm = nn.Linear(27, 5), nn.BatchNorm1d(5)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(5, 4)

    def forward(self, images: Tensor) -> Tensor:
        hidden = torch.tanh(self.norm(self.conv(images))).flatten(1)
        logits: Tensor = self.head(self.drop(torch.tanh(self.hidden_norm(self.hidden(hidden)))))
        return logits


def make_case(name: str) -> tuple[nn.Module, TokenLayout, Tensor]:
    """Return a network, its layout, and images of its shape."""
    network: nn.Module
    shape: tuple[int, ...]
    statistics: Any = "conditioned"
    generator = torch.Generator().manual_seed(7)
    if name.startswith("norm"):
        network, statistics, shape = NormNet(), name.removeprefix("norm-"), (2, 5, 5)
    elif name == "resnet18":
        network, shape = build_network(NetworkConfig(architecture=name, width=4), 2, 4, 8), (2, 8, 8)
    else:
        config = NetworkConfig(architecture=name, width=6 if name == "mlp" else None, dropout=0.3)
        network, shape = build_network(config, 1, 4, 28), (1, 28, 28)
    layout = TokenLayout.from_network(network, 40, statistics)
    return network, layout, torch.randn(50, *shape, generator=generator)


def draw_models(network: nn.Module, layout: TokenLayout, count: int, seed: int = 0) -> Tensor:
    """Return the flat weights of random models, (count, P); norms and statistics are random too."""
    generator = torch.Generator().manual_seed(seed)
    models = []
    for _ in range(count):
        state = {}
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                fan = max(1, value[0].numel()) if value.ndim > 1 else 4
                state[name] = torch.randn(value.shape, generator=generator) * 1.5 / fan**0.5
                if name.endswith("running_var"):
                    state[name] = state[name].abs() + 0.5
        models.append(layout.flatten({name: state[name] for name in layout.offsets}))
    return torch.stack(models)


def pack(windows: list[Plan], width: int, window: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pack models by hand, for each window a list of (source, layout, flat_P); return tokens, segments, source."""
    tokens = torch.zeros(len(windows), window, width)
    segments = torch.zeros(len(windows), window, dtype=torch.int64)
    source = torch.full((len(windows), window), -1)
    for row, models in enumerate(windows):
        first = 0
        for number, (origin, layout, flat) in enumerate(models, start=1):
            places = slice(first, first + layout.length)
            tokens[row, places], segments[row, places], source[row, places] = layout.tokenize(flat), number, origin
            first += layout.length
    return tokens, segments, source


def run_plainly(network: nn.Module, layout: TokenLayout, flat: Tensor, images: Tensor) -> tuple[Tensor, nn.Module]:
    """Return a model's logits and its parameters, by a real module whose state is loaded: dropout off."""
    fresh = NormNet() if isinstance(network, NormNet) else network
    fresh.load_state_dict(layout.unflatten(flat), strict=False)
    fresh.eval()
    for part in fresh.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d) and layout.running_statistics != "in":
            part.train()
    fresh.zero_grad()
    return fresh(images), fresh


def compare_plainly(
    network: nn.Module, layout: TokenLayout, original: Tensor, reconstructed: Tensor, images: Tensor, output: Output
) -> tuple[float, Tensor]:
    """Return the loss of one model number by number, and its gradient by weight (zero for running statistics)."""
    with torch.no_grad():
        target = run_plainly(network, layout, original, images)[0].clone()
    logits, fresh = run_plainly(network, layout, reconstructed, images)
    if output == "logits":
        mean = target.sum() / target.numel()
        variance = ((target - mean) ** 2).sum() / target.numel()
        loss = ((logits - target) ** 2).sum() / target.numel() / variance
    else:
        difference = logits.exp() / logits.exp().sum(1, keepdim=True) - target.exp() / target.exp().sum(1, keepdim=True)
        loss = (difference**2).sum() / len(images)
    loss.backward()
    found = {name: read_gradient(parameter) for name, parameter in fresh.named_parameters()}
    named = {
        n: found[n] if n in found else torch.zeros(e.shape) for n, e in zip(layout.offsets, layout.tensors, strict=True)
    }
    return loss.item(), layout.flatten(named)


def read_gradient(tensor: Tensor) -> Tensor:
    assert tensor.grad is not None
    return tensor.grad


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("name", ["cnn-s", "mlp", "norm-conditioned", "norm-out", "norm-in", "resnet18"])
def test_it_equals_plain_networks_in_a_plain_loop(name: str, output: Output) -> None:
    network, layout, pool = make_case(name)
    zoo = NetworkBehaviour(network, layout, pool, 12, output)
    originals = draw_models(network, layout, 3)
    first, second = (originals * (1 + 0.2 * torch.randn(originals.shape, generator=seeded(s))) for s in (1, 2))
    windows = [[(0, layout, originals[0]), (0, layout, originals[1])], [(0, layout, originals[2])]]
    tokens, segments, source = pack(windows, 40, 2 * layout.length + 3)
    versions = [
        pack([[(0, layout, f[0]), (0, layout, f[1])], [(0, layout, f[2])]], 40, 2 * layout.length + 3)[0]
        for f in (first, second)
    ]
    views = torch.stack(versions).requires_grad_()
    total, count = Behaviour([zoo], [0]).loss_sum_and_count(tokens, views, segments, source, seeded())
    total.backward()
    images = pool[torch.randperm(50, generator=seeded())[:12]]
    expected, statistic = 0.0, torch.zeros(layout.weights, dtype=torch.bool)
    for entry in layout.tensors:
        statistic[layout.offsets[entry.name] :][: entry.size] = "running" in entry.name
    for version, flats in enumerate((first, second)):
        for model, (row, at) in enumerate([(0, 0), (0, layout.length), (1, 0)]):
            loss, gradient = compare_plainly(network, layout, originals[model], flats[model], images, output)
            expected += loss / 2
            ours = layout.detokenize(read_gradient(views)[version, row, at : at + layout.length])
            scale = gradient.abs().max().item()
            assert scale > 0
            torch.testing.assert_close(ours[~statistic], gradient[~statistic] / 2, rtol=1e-3, atol=1e-4 * scale)
    assert count == 3
    assert expected > 0.01
    assert total.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["cnn-s", "mlp", "norm-conditioned", "norm-in", "resnet18", "vit"])
def test_both_engines_give_the_same(name: str) -> None:
    network, layout, pool = make_case(name)
    zoo = NetworkBehaviour(network, layout, pool, 8, "logits")
    results = []
    for run in (zoo.run_vectorised, zoo.run_one_by_one):
        flat = draw_models(network, layout, 3).requires_grad_()
        logits = run(flat, pool[:8])
        logits.square().sum().backward()
        results.append((logits.detach(), read_gradient(flat)))
    for vectorised, loop in zip(*results, strict=True):
        torch.testing.assert_close(vectorised, loop, rtol=1e-3, atol=1e-4 * loop.abs().max().item())


@pytest.mark.parametrize("output", OUTPUTS)
def test_identical_weights_have_no_loss_and_no_gradient(tiny_table: TokenTable, output: Output) -> None:
    behaviour = open_behaviour(CONFIG.model_copy(update={"behaviour_output": output}), [tiny_table])
    batch = draw_batch([tiny_table], 66, groups=False)
    views = batch.views_VBWD.clone().requires_grad_()
    total, count = behaviour.loss_sum_and_count(
        batch.views_VBWD[0], views, batch.segments_BW, batch.source_BW, seeded()
    )
    total.backward()
    assert total.item() == 0
    assert count == 4
    assert torch.equal(read_gradient(views), torch.zeros_like(views))


def draw_batch(tables: list[TokenTable], window: int, groups: bool = True, batch_size: int = 4) -> WindowBatch:
    sources = [WindowSource(table.load(), table.layout, table.groups if groups else ()) for table in tables]
    return WindowsInMemory(sources, window, batch_size, seed=0).draw(0)


@pytest.mark.parametrize("output", OUTPUTS)
def test_a_permuted_network_is_as_good_as_the_original(tiny_table: TokenTable, output: Output) -> None:
    behaviour = open_behaviour(CONFIG.model_copy(update={"behaviour_output": output}), [tiny_table])
    batch = draw_batch([tiny_table], 140)
    original, permuted = batch.views_VBWD
    total, count = behaviour.loss_sum_and_count(original, permuted[None], batch.segments_BW, batch.source_BW, seeded())
    weights = batch.mask_BWD
    assert (original - permuted)[weights].square().mean() > original[weights].var()
    assert total.item() / count < 1e-9
    noisy = permuted[None] * 1.1
    far, _ = behaviour.loss_sum_and_count(original, noisy, batch.segments_BW, batch.source_BW, seeded())
    assert far.item() / count > 1e-4


def make_two_zoos(
    output: Output = "logits",
) -> tuple[Behaviour, list[NetworkBehaviour], list[Plan], tuple[Tensor, Tensor, Tensor]]:
    """Return the behaviour of three sources of two architectures, and windows in which their models are packed."""
    (first, one, images), (second, other, more) = make_case("mlp"), make_case("norm-conditioned")
    zoos = [NetworkBehaviour(first, one, images, 6, output), NetworkBehaviour(second, other, more, 6, output)]
    a, b = draw_models(first, one, 2), draw_models(second, other, 3)
    plan = [[(2, other, b[0]), (0, one, a[0]), (1, other, b[1])], [(1, other, b[2])], [(0, one, a[1])]]
    window = one.length + 2 * other.length + 4
    return Behaviour(zoos, [0, 1, 1]), zoos, plan, pack(plan, 40, window)


@pytest.mark.parametrize("output", OUTPUTS)
def test_zoos_of_two_architectures_share_windows(output: Output) -> None:
    behaviour, zoos, plan, (tokens, segments, source) = make_two_zoos(output)
    views = tokens[None] * 1.1
    total, count = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
    generator, expected = seeded(), 0.0
    draws = [zoo.draw_images(torch.device("cpu"), generator) for zoo in zoos]
    for number, _, flat in (model for window in plan for model in window):
        zoo, images = zoos[min(number, 1)], draws[min(number, 1)]
        logits, changed = (zoo.run_one_by_one(f[None], images) for f in (flat, 1.1 * flat))
        expected += compare_outputs(logits, changed, output).item()
    assert count == 5
    assert total.item() == pytest.approx(expected, rel=1e-5)


def test_padding_and_other_models_change_nothing() -> None:
    behaviour, _, plan, (tokens, segments, source) = make_two_zoos()
    real = torch.zeros_like(tokens, dtype=torch.bool)
    for row, models in enumerate(plan):
        first = 0
        for _, layout, _ in models:
            real[row, first : first + layout.length] = layout.mask_TD
            first += layout.length
    clean = (tokens[None] * 1.1).requires_grad_()
    dirty = torch.where(real, 1.1 * tokens, torch.nan)[None].requires_grad_()
    losses = []
    for original, views in ((tokens, clean), (torch.where(real, tokens, torch.nan), dirty)):
        total, _ = behaviour.loss_sum_and_count(original, views, segments, source, seeded())
        total.backward()
        losses.append(total.item())
    assert losses[0] == losses[1]
    assert torch.equal(read_gradient(clean), read_gradient(dirty))
    assert not read_gradient(clean)[0][~real].any()
    # Another reconstruction of the second window: the first window's gradients stay what they were.
    other = (tokens[None] * 1.1).detach()
    other[:, 1] *= 2
    other.requires_grad_()
    behaviour.loss_sum_and_count(tokens, other, segments, source, seeded())[0].backward()
    torch.testing.assert_close(read_gradient(other)[0, 0], read_gradient(clean)[0, 0])
    assert not torch.allclose(read_gradient(other)[0, 1], read_gradient(clean)[0, 1])


def test_sums_of_parts_add_up_to_the_whole() -> None:
    behaviour, _, _, (tokens, segments, source) = make_two_zoos()
    views = (tokens[None] * torch.tensor([1.1, 0.8])[:, None, None, None]).expand(2, *tokens.shape)
    total, count = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
    parts = [
        behaviour.loss_sum_and_count(tokens[rows], views[:, rows], segments[rows], source[rows], seeded())
        for rows in (slice(0, 1), slice(1, 2), slice(2, 3))  # the last two have models of one zoo alone
    ]
    assert [part[1] for part in parts] == [3, 1, 1]
    assert count == 5
    torch.testing.assert_close(total, sum(part[0] for part in parts))
    versions = [behaviour.loss_sum_and_count(tokens, view[None], segments, source, seeded())[0] for view in views]
    torch.testing.assert_close(total, (versions[0] + versions[1]) / 2)


def test_chunks_of_models_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    behaviour, _, _, (tokens, segments, source) = make_two_zoos()
    results = []
    for budget in (2**30, 1):
        monkeypatch.setattr(network_behaviour, "_CHUNK_NUMBERS", budget)
        views = (tokens[None] * 1.1).requires_grad_()
        total, _ = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
        total.backward()
        results.append((total.item(), read_gradient(views)))
    assert results[0][0] == pytest.approx(results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


def test_the_gradient_scales_with_what_the_loss_is_multiplied_by_and_is_left_out_without_need() -> None:
    behaviour, _, _, (tokens, segments, source) = make_two_zoos()
    gradients = []
    for factor in (1.0, 0.3):
        views = (tokens[None] * 1.1).requires_grad_()
        total, count = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
        (factor * total).backward()
        gradients.append(read_gradient(views))
    torch.testing.assert_close(gradients[1], 0.3 * gradients[0])
    with torch.no_grad():
        silent, _ = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
    assert not silent.requires_grad
    torch.testing.assert_close(silent, total.detach())
    with torch.autocast("cpu", torch.bfloat16):
        inside, _ = behaviour.loss_sum_and_count(tokens, views, segments, source, seeded())
    assert inside.item() == total.item()
    assert count == 5


@pytest.mark.parametrize(
    ("output", "statistics"),
    [("logits", "none"), ("probabilities", "none"), ("logits", "conditioned"), ("probabilities", "in")],
)
def test_gradient_in_float64(output: Output, statistics: str) -> None:
    layers = [nn.Conv2d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, 3)]
    if statistics != "none":
        layers.insert(1, nn.BatchNorm2d(2))
    network = nn.Sequential(*layers).double()
    layout = TokenLayout.from_network(network, 6, "in" if statistics == "in" else "conditioned")
    pool = torch.randn(8, 1, 2, 2, generator=seeded(), dtype=torch.float64)
    behaviour = Behaviour([NetworkBehaviour(network, layout, pool, 4, output)], [0])
    tokens = layout.tokenize(draw_models(network, layout, 2).double())
    segments = torch.ones(2, layout.length, dtype=torch.int64)
    noise = torch.randn(2, *tokens.shape, generator=seeded(1), dtype=torch.float64)
    views = (tokens * (1 + 0.2 * noise)).requires_grad_()

    def measure(views: Tensor) -> Tensor:
        return behaviour.loss_sum_and_count(tokens, views, segments, torch.zeros_like(segments), seeded())[0]

    assert torch.autograd.gradcheck(measure, views)
    measure(views).backward()
    assert torch.equal(read_gradient(views).ne(0).any(dim=0).any(dim=0), layout.mask_TD) or statistics == "conditioned"


def test_a_negative_variance_stays_finite() -> None:
    network, layout, pool = make_case("norm-in")
    zoo = NetworkBehaviour(network, layout, pool, 6, "logits")
    original = draw_models(network, layout, 1)
    named = {name: value.clone() for name, value in layout.unflatten(original).items()}
    named["norm.running_var"][:] = -1.0
    total, gradient = zoo.measure(original, layout.flatten(named)[None], pool[:6], True)
    assert total.isfinite()
    assert gradient.isfinite().all()


def test_statistics_of_a_norm_without_scale_are_used() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 2), nn.BatchNorm2d(2, affine=False), nn.Flatten(), nn.Linear(2, 3))
    layout = TokenLayout.from_network(network, 6, "in")
    flat, pool = draw_models(network, layout, 2), torch.randn(8, 1, 2, 2, generator=seeded())
    _, gradient = NetworkBehaviour(network, layout, pool, 4, "logits").measure(flat, 1.1 * flat[None], pool[:4], True)
    logits = NetworkBehaviour(network, layout, pool, 4, "logits").run_models(flat, pool[:4])
    network.load_state_dict(layout.unflatten(flat[1]), strict=False)
    torch.testing.assert_close(logits[1], network.eval()(pool[:4]))
    assert gradient.abs().sum() > 0


@settings(max_examples=30, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), scale=st.floats(0.1, 100), shift=st.floats(-10, 10))
def test_the_scale_of_the_loss(seed: int, scale: float, shift: float) -> None:
    original, other = torch.randn(2, 3, 7, 5, generator=seeded(seed), dtype=torch.float64)
    loss = compare_outputs(original, other, "logits")
    moved = compare_outputs(scale * original + shift, scale * other + shift, "logits")
    torch.testing.assert_close(moved, loss)
    mean = original.mean(dim=(1, 2), keepdim=True).expand_as(original)
    torch.testing.assert_close(compare_outputs(original, mean, "logits"), torch.ones(3, dtype=torch.float64))
    # Softmax does not see a shift, and its loss is bounded.
    assert compare_outputs(original, original + shift, "probabilities").max() < 1e-20
    assert compare_outputs(scale * original, scale * other, "probabilities").max() <= 2


def test_constant_outputs_do_not_divide_by_zero() -> None:
    loss = compare_outputs(torch.zeros(1, 4, 3), torch.full((1, 4, 3), 0.01), "logits")
    assert loss.item() == pytest.approx(1.0)


def test_images_are_training_images_drawn_anew_without_repeats(
    tiny_table: TokenTable, tiny_zoo_config: ZooConfig
) -> None:
    training = load_images(tiny_zoo_config.images).splits["train"].images_NCHW.flatten(1)
    zoo = open_behaviour(CONFIG, [tiny_table])._zoos[0]
    generator = seeded()
    draws = [zoo.draw_images(torch.device("cpu"), generator).flatten(1) for _ in range(2)]
    for images in draws:
        rows = (images[:, None] == training[None]).all(dim=2)
        assert rows.sum(dim=1).tolist() == [1] * 16
        assert rows.any(dim=0).sum() == 16
    assert not torch.equal(*draws)
    assert torch.equal(zoo.draw_images(torch.device("cpu"), seeded()).flatten(1), draws[0])


def test_slices_of_one_zoo_are_one(tiny_table: TokenTable) -> None:
    one, two = open_behaviour(CONFIG, [tiny_table]), open_behaviour(CONFIG, [tiny_table, tiny_table])
    batch = draw_batch([tiny_table], 140)
    views = 1.1 * batch.views_VBWD
    sliced = torch.where(batch.segments_BW == 2, 1, batch.source_BW)
    assert sliced.max() == 1
    losses = [
        behaviour.loss_sum_and_count(batch.views_VBWD[0], views, batch.segments_BW, source, seeded())[0]
        for behaviour, source in ((one, batch.source_BW), (two, sliced))
    ]
    assert losses[0] == losses[1]


def test_a_network_learns_its_behaviour_back() -> None:
    images = load_images(DigitsConfig(source="digits"))
    network = build_network(NetworkConfig(), 1, 10, 28)
    initialise_network(network, "kaiming_uniform", seeded())
    training = fit_epochs(network, images.splits["train"], RecipeConfig(learning_rate=3e-3, batch_size=32), seeded())
    for _ in range(3):
        next(training)
    layout = TokenLayout.from_network(network, 51)
    original = layout.flatten({name: p.detach().clone() for name, p in network.named_parameters()})
    zoo = NetworkBehaviour(network, layout, images.splits["train"].images_NCHW, 32, "logits")
    tokens = layout.tokenize(original)[None]
    noise = torch.randn(tokens.shape, generator=seeded(1))
    views = (tokens + 0.5 * original.std() * noise)[None].requires_grad_()
    segments, source = torch.ones(1, layout.length, dtype=torch.int64), torch.zeros(1, layout.length, dtype=torch.int64)
    behaviour, generator = Behaviour([zoo], [0]), seeded(2)
    held_out = images.splits["val"].images_NCHW

    @torch.no_grad()
    def measure_agreement() -> float:
        flat = torch.stack([original, layout.detokenize(views[0, 0])])
        first, second = zoo.run_models(flat, held_out).argmax(dim=-1)
        return float(first.eq(second).double().mean())

    before = measure_agreement()
    optimizer = torch.optim.Adam([views], lr=5e-3)
    losses = []
    for _ in range(100):
        total, _ = behaviour.loss_sum_and_count(tokens, views, segments, source, generator)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        losses.append(total.item())
    after = measure_agreement()
    assert before < 0.7
    assert after > 0.85
    assert sum(losses[-10:]) < 0.2 * sum(losses[:10])


def test_windows_must_hold_whole_models(tiny_table: TokenTable) -> None:
    length = tiny_table.layout.length
    open_behaviour(CONFIG.model_copy(update={"window": length}), [tiny_table])
    with pytest.raises(ConfigError, match=rf"window to at least {length}, or set backbone.behaviour to 0"):
        open_behaviour(CONFIG.model_copy(update={"window": length - 1}), [tiny_table])


def test_windows_must_not_be_mixed(tiny_table: TokenTable) -> None:
    for name in ("mix_up", "cut_mix"):
        with pytest.raises(ConfigError, match=r"set backbone.mix_up and backbone.cut_mix to 0"):
            open_behaviour(CONFIG.model_copy(update={name: 0.2}), [tiny_table])


def test_an_unknown_origin_is_an_error(make_store: Callable[[], ArtifactStore], tiny_table: TokenTable) -> None:
    store = make_store()
    shutil.rmtree(Path(store.root) / tiny_table.artifact.manifest.inputs["zoo"])
    with pytest.raises(ConfigError, match=r"slice 0 of the composition \(zoo/.*are not known"):
        open_behaviour(CONFIG, [read_tokens(store.open(tiny_table.artifact.ref))])


def test_tokens_of_another_architecture_are_an_error(tiny_table: TokenTable) -> None:
    true = tiny_table.layout
    layout = TokenLayout(token_dim=true.token_dim, tensors=true.tensors[:-1])
    message = rf"hold {true.weights - 4} weights in 9 tensors, cnn-s on these images has {true.weights} in 10"
    with pytest.raises(ConfigError, match=message):
        open_behaviour(CONFIG, [dataclasses.replace(tiny_table, layout=layout)])


def test_models_of_several_functions_are_an_error(tiny_table: TokenTable) -> None:
    relu = pl.col("recipe").str.replace("tanh", "relu")
    index = tiny_table.index.with_columns(
        pl.when(pl.col("model") == "000001").then(relu).otherwise("recipe").alias("recipe")
    )
    with pytest.raises(ConfigError, match=r"slice 0 .* has models with the activations relu, tanh"):
        open_behaviour(CONFIG, [dataclasses.replace(tiny_table, index=index)])
