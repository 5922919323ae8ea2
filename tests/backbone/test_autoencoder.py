"""The autoencoder: attention along tokens and only real ones, positions, precision, and weights from one generator."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional

from mzsane.backbone.attention import plan_attention
from mzsane.backbone.autoencoder import (
    Block,
    LayerLinear,
    SinusoidalPositions,
    build_autoencoder,
    cap_latents,
)
from mzsane.config import BackboneConfig
from mzsane.randomness import make_generator

CONFIG = BackboneConfig(
    window=9, d_model=16, heads=2, layers=2, latent_dim=6, max_positions=(32, 8, 8), projection_dim=5
)
TOKEN_DIM = 7


def make_model(**settings):
    """Return a float64 model whose weights are larger than at the start, so that every path shows in the outputs."""
    config = CONFIG.model_copy(update=settings)
    built = build_autoencoder(config, TOKEN_DIM, torch.Generator().manual_seed(0)).double().eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    return built


@pytest.fixture(scope="module", params=[False, True], ids=["transformer", "shortcut"])
def model(request):
    return make_model(shortcut=request.param)


def make_window(batch=3, window=9, seed=0):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randn(batch, window, TOKEN_DIM, generator=generator, dtype=torch.float64)
    number = torch.arange(window)
    positions = torch.stack([number, number // 4, number % 4], dim=1).expand(batch, -1, -1)
    return tokens, positions


@torch.no_grad()
def run(model, tokens, positions, segments=None):
    """Return latents, reconstructed tokens and, for whole windows, the projection."""
    segments = torch.ones(tokens.shape[:2], dtype=torch.int64) if segments is None else segments
    plan = plan_attention(segments)
    latents = cap_latents(model.encode(tokens, positions, plan), (segments > 0) * TOKEN_DIM)
    results = {"latents": latents, "tokens": model.decode(latents, positions, plan)}
    if tokens.shape[1] == CONFIG.window:
        results["projection"] = model.project(latents)
    return results


def assert_same(one, other):
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], atol=1e-12, rtol=0, msg=name)


def test_shapes(model):
    results = run(model, *make_window())
    assert {name: tuple(value.shape) for name, value in results.items()} == {
        "latents": (3, 9, 6),
        "tokens": (3, 9, TOKEN_DIM),
        "projection": (3, 5),
    }


class TestPadding:
    def make_padded(self):
        tokens, positions = make_window()
        segments = (torch.arange(9)[None] < torch.tensor([9, 6, 1])[:, None]).long()
        return tokens, positions, segments

    def test_values_in_padding_change_nothing_real(self, model):
        tokens, positions, segments = self.make_padded()
        real = segments[:, :, None] > 0
        clean = run(model, tokens * real, positions * real, segments)
        dirty = run(model, torch.where(real, tokens, 50.0), torch.where(real, positions, 3), segments)
        for name in ("latents", "tokens"):
            torch.testing.assert_close(clean[name][segments > 0], dirty[name][segments > 0], atol=1e-12, rtol=0)
        torch.testing.assert_close(clean["projection"], dirty["projection"], atol=1e-12, rtol=0)

    def test_count_of_padding_changes_nothing_real(self, model):
        tokens, positions, segments = self.make_padded()
        padded = run(model, tokens, positions, segments)
        for b, real in ((1, 6), (2, 1)):
            alone = run(model, tokens[b : b + 1, :real], positions[b : b + 1, :real])
            for name in ("latents", "tokens"):
                torch.testing.assert_close(padded[name][b, :real], alone[name][0], atol=1e-12, rtol=0)

    def test_without_a_mask_padding_would_count(self, model):
        """The check above can fail."""
        tokens, positions, segments = self.make_padded()
        with_mask, without = run(model, tokens, positions, segments), run(model, tokens, positions)
        assert (with_mask["latents"][1, :6] - without["latents"][1, :6]).abs().max() > 1e-3
        assert (with_mask["projection"][1] - without["projection"][1]).abs().max() > 1e-3

    def test_windows_of_one_whole_model_need_no_plan(self, model):
        tokens, positions = make_window()
        with torch.no_grad():
            latents = model.encode(tokens, positions)
            assert_same(
                {"latents": latents, "tokens": model.decode(latents, positions)},
                run(model, tokens, positions),
            )

    def test_forward_is_the_three_parts(self, model):
        tokens, positions, segments = self.make_padded()
        with torch.no_grad():
            outputs = model(tokens, positions, (segments > 0) * TOKEN_DIM, plan_attention(segments))
        assert_same(
            dict(zip(("latents", "tokens", "projection"), outputs, strict=True)), run(model, *self.make_padded())
        )

    def test_noise_is_added_to_what_is_decoded_and_projected(self, model):
        tokens, positions, segments = self.make_padded()
        plan, weights = plan_attention(segments), (segments > 0) * TOKEN_DIM
        with torch.no_grad():
            latents = cap_latents(model.encode(tokens, positions, plan), weights)
            noise = torch.randn(latents.shape, generator=make_generator(0))
            got = model(tokens, positions, weights, plan, noise)
            noisy = cap_latents(latents + noise, weights)
            expected = latents, model.decode(noisy, positions, plan), model.project(noisy)
        for ours, theirs in zip(got, expected, strict=True):
            assert torch.equal(ours, theirs)


class TestLatentsOfShortTokens:
    """A token has no more latents than weights: nothing passes through those beyond, noise neither."""

    WEIGHTS = torch.tensor([[TOKEN_DIM, 6, 5, 3, 1, 0, 6, 2, 4]] * 3)

    def test_are_as_many_as_its_weights(self, model):
        tokens, positions = make_window()
        noise = torch.randn(3, 9, 6, generator=make_generator(0), dtype=torch.float64)
        with torch.no_grad():
            latents, decoded, _ = model(tokens, positions, self.WEIGHTS, None, noise)
            used = (latents != 0).sum(dim=-1)
            assert torch.equal(used, self.WEIGHTS.clamp(max=6))
            noise[latents == 0] += 7.0
            again = model(tokens, positions, self.WEIGHTS, None, noise)
        assert torch.equal(decoded, again[1])
        assert torch.equal(latents, again[0])

    def test_have_no_gradient_beyond(self, model):
        latents = torch.ones(3, 9, 6, requires_grad=True)
        cap_latents(latents, self.WEIGHTS).sum().backward()
        assert torch.equal(latents.grad.sum(dim=-1).long(), self.WEIGHTS.clamp(max=6))


class TestPacking:
    def test_a_packed_model_is_seen_as_if_it_were_alone(self, model):
        tokens, positions = make_window(batch=1)
        packed_positions = torch.cat([positions[:, :4], positions[:, :5]], dim=1)
        packed = run(model, tokens, packed_positions, torch.tensor([[1] * 4 + [2] * 5]))
        for part in (slice(0, 4), slice(4, 9)):
            alone = run(model, tokens[:, part], packed_positions[:, part])
            for name in ("latents", "tokens"):
                torch.testing.assert_close(packed[name][:, part], alone[name], atol=1e-12, rtol=0)


class TestAttention:
    def test_never_crosses_the_batch(self, model):
        tokens, positions = make_window()
        changed = tokens.clone()
        changed[1] += 5
        one, other = run(model, tokens, positions), run(model, changed, positions)
        for name, value in one.items():
            torch.testing.assert_close(value[[0, 2]], other[name][[0, 2]], atol=1e-12, rtol=0)
            assert (value[1] - other[name][1]).abs().max() > 1e-3

    def test_permuting_the_batch_permutes_the_outputs(self, model):
        tokens, positions = make_window()
        order = torch.tensor([2, 0, 1])
        permuted = run(model, tokens[order], positions[order])
        assert_same({name: value[order] for name, value in run(model, tokens, positions).items()}, permuted)

    def test_goes_along_the_tokens_both_ways(self, model):
        tokens, positions = make_window(batch=1)
        before = run(model, tokens, positions)
        for changed, seen in ((0, 8), (8, 0)):
            other = tokens.clone()
            other[0, changed] += 5
            difference = (run(model, other, positions)["latents"] - before["latents"]).abs()
            assert difference[0, seen].max() > 1e-4

    def test_block_equals_attention_written_out(self):
        generator = torch.Generator().manual_seed(0)
        block = Block(d_model=8, heads=2).double()
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
        x = torch.randn(1, 4, 8, generator=generator, dtype=torch.float64)
        real = (0, 1, 2)
        plan = plan_attention(torch.tensor([[1, 1, 1, 0]]))
        with torch.no_grad():
            queries, keys, values = block.qkv(block.norm_attention(x))[0].split(8, dim=-1)
            mixed = torch.zeros(4, 8, dtype=torch.float64)
            for head in (slice(0, 4), slice(4, 8)):
                for i in real:  # the padding attends to nothing
                    score = [math.exp(float(queries[i, head] @ keys[j, head]) / 2) for j in real]
                    for j, value in zip(real, score, strict=True):
                        mixed[i, head] += value / sum(score) * values[j, head]
            expected = x + block.out(mixed)
            expected = expected + block.down(functional.gelu(block.up(block.norm_mlp(expected))))
            torch.testing.assert_close(block(x, plan), expected)


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_all_three_positions_count(kind):
    model = make_model(positions=kind)
    tokens, positions = make_window()
    before = run(model, tokens, positions)
    for axis in range(3):
        moved = positions.clone()
        moved[:, :, axis] = (moved[:, :, axis] + 1) % 8
        after = run(model, tokens, moved)
        for name in ("latents", "tokens"):
            assert (after[name] - before[name]).abs().max() > 1e-3, (axis, name)


def test_decoding_uses_positions_of_its_own(model):
    """The same latent decodes to other tokens at other places."""
    _, positions = make_window(batch=1)
    with torch.no_grad():
        tokens = model.decode(torch.zeros(1, 9, 6, dtype=torch.float64), positions)
    assert len(tokens[0].round(decimals=6).unique(dim=0)) == 9


@pytest.mark.parametrize("kind", ["learned", "sinusoidal"])
def test_positions_expanded_to_all_windows_are_as_good_as_copies(kind):
    model = make_model(positions=kind, shortcut=True)
    tokens, expanded = make_window()
    weights, found = torch.full(tokens.shape[:2], TOKEN_DIM), []
    assert expanded.stride(0) == 0
    for positions in (expanded, expanded.contiguous()):
        results = model(tokens, positions, weights, None)
        gradients = torch.autograd.grad(results[1].square().sum() + results[2].sum(), tuple(model.parameters()))
        found.append(dict(enumerate(results + gradients)))
    assert_same(*found)


def make_maps(layers, wide_in, wide_out):
    maps = LayerLinear(layers, wide_in, wide_out).double()
    with torch.no_grad():
        maps.weight.normal_(generator=make_generator(0))
    return maps


class TestShortcut:
    """A linear code for each layer beside the transformer."""

    def test_each_token_is_mapped_by_its_layer(self):
        maps = make_maps(4, 5, 3)
        tokens = torch.randn(2, 6, 5, generator=make_generator(1), dtype=torch.float64)
        layers = torch.tensor([[0, 3, 3, 1, 0, 1], [1, 1, 0, 0, 3, 3]])  # layer 2 has no tokens
        expected = torch.einsum("bwi,bwio->bwo", tokens, maps.weight[layers])
        torch.testing.assert_close(maps(tokens, layers), expected, atol=1e-12, rtol=0)

    def test_gradients_are_those_of_the_plain_product(self):
        maps = make_maps(3, 4, 2)
        tokens = torch.randn(2, 3, 4, generator=make_generator(1), dtype=torch.float64, requires_grad=True)
        layers = torch.tensor([[0, 2, 2], [1, 1, 0]])
        assert torch.autograd.gradcheck(
            lambda x, weight: torch.func.functional_call(maps, {"weight": weight}, (x, layers)), (tokens, maps.weight)
        )

    def test_a_compiled_model_is_not_compiled_again_for_other_layers(self):
        maps, generator = make_maps(4, 5, 3), make_generator(1)
        compiled = torch.compile(lambda x, layers: 2 * maps(x + 1, layers), backend="eager")
        tokens = torch.randn(2, 6, 5, generator=generator, dtype=torch.float64)
        compiled(tokens, torch.zeros(2, 6, dtype=torch.int64))
        with torch._dynamo.config.patch(error_on_recompile=True):
            for _ in range(5):
                layers = torch.randint(4, (2, 6), generator=generator)
                assert torch.equal(compiled(tokens, layers), 2 * maps(tokens + 1, layers))

    def test_is_what_is_left_without_the_transformer(self):
        """With its outputs at zero, tokens become latents and come back by two matrices a layer."""
        model = make_model(shortcut=True)
        with torch.no_grad():
            for layer in (model.latent_out, model.token_out):
                layer.weight.zero_()
                layer.bias.zero_()
        tokens, positions = make_window()
        found, layers = run(model, tokens, positions), positions[..., 1]
        latents = torch.einsum("bwi,bwio->bwo", tokens, model.shortcut_in.weight[layers])
        torch.testing.assert_close(found["latents"], latents, atol=1e-12, rtol=0)
        decoded = torch.einsum("bwi,bwio->bwo", latents, model.shortcut_out.weight[layers])
        torch.testing.assert_close(found["tokens"], decoded, atol=1e-12, rtol=0)

    def test_without_it_there_are_no_weights_for_it(self):
        names = {name for name, _ in make_model(shortcut=True).named_parameters()}
        assert names - {name for name, _ in make_model().named_parameters()} == {
            "shortcut_in.weight",
            "shortcut_out.weight",
        }


class TestSinusoidalPositions:
    def test_have_no_parameters_and_the_size_of_the_learned_ones(self):
        positions = SinusoidalPositions(64)
        assert list(positions.parameters()) == []
        sizes = positions(torch.cartesian_prod(*[torch.arange(0, 40, 3)] * 3)).square().mean(dim=0).sqrt()
        # Two waves are added in the first half, as two tables are.
        assert sizes[:32].mean().item() == pytest.approx(0.02 * math.sqrt(2), rel=0.2)
        assert sizes[32:].mean().item() == pytest.approx(0.02, rel=0.2)

    def test_have_no_largest_position(self):
        positions = SinusoidalPositions(32)
        far = positions(torch.tensor([[0, 0, 0], [1_000_000, 5, 7], [1_000_001, 5, 7], [1_000_000, 5, 100_000]]))
        assert far.isfinite().all()
        assert far.abs().max() <= 2 * 0.02 * math.sqrt(2) + 1e-6
        assert torch.pdist(far).min() > 0.005
        tokens, places = make_window(batch=1)
        assert run(make_model(positions="sinusoidal"), tokens, places + 1_000_000)["latents"].isfinite().all()

    def test_no_two_places_look_alike(self):
        """Nor does layer 3 at token 5 look like layer 5 at token 3."""
        places = torch.cartesian_prod(torch.arange(24), torch.arange(12), torch.arange(4))
        distances = torch.cdist(*[SinusoidalPositions(64)(places).double()] * 2)
        assert (distances + torch.eye(len(places))).min() > 0.005

    @pytest.mark.parametrize(("width", "heads"), [(8, 1), (10, 1), (12, 2), (18, 3), (24, 4)])
    def test_fit_every_width_that_a_config_takes(self, width, heads):
        config = BackboneConfig(
            window=9, d_model=width, heads=heads, layers=1, latent_dim=6, projection_dim=5, positions="sinusoidal"
        )
        model = build_autoencoder(config, TOKEN_DIM, torch.Generator().manual_seed(0))
        tokens, positions = make_window(batch=1)
        assert model.encode(tokens.float(), positions).shape == (1, 9, 6)


class TestRecompute:
    def run_training(self, recompute):
        model, segments = make_model(recompute=recompute), torch.tensor([[1] * 4 + [2] * 3 + [0] * 2] * 3)
        calls = []
        for block in (*model.encoder, *model.decoder):
            block.register_forward_pre_hook(lambda *_: calls.append(1))
        tokens, positions = make_window()
        outputs = model(tokens, positions, (segments > 0) * TOKEN_DIM, plan_attention(segments))
        sum(output.square().sum() for output in outputs).backward()
        return outputs, {name: parameter.grad for name, parameter in model.named_parameters()}, len(calls)

    def test_gives_the_same_values_and_gradients(self):
        kept, recomputed = self.run_training(False), self.run_training(True)
        assert (kept[2], recomputed[2]) == (4, 8)
        for one, other in zip(kept[0], recomputed[0], strict=True):
            assert torch.equal(one, other)
        assert kept[1].keys() == recomputed[1].keys()
        for name, gradient in kept[1].items():
            assert torch.equal(gradient, recomputed[1][name]), name

    def test_costs_nothing_without_gradients(self):
        model, calls = make_model(recompute=True), []
        model.encoder[0].register_forward_pre_hook(lambda *_: calls.append(1))
        run(model, *make_window())
        assert len(calls) == 1


class TestPrecision:
    """bfloat16 in the blocks and nowhere else, in training and at inference each as it is set."""

    def run_and_note(self, training, precision, inference_precision=torch.float32):
        model = make_model().float().train(training)
        model.precision, model.inference_precision = precision, inference_precision
        seen = {}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear):
                module.register_forward_hook(lambda _, __, output, name=name: seen.update({name: output.dtype}))
        tokens, positions = make_window()
        outputs = model(tokens.float(), positions, torch.ones(3, 9, dtype=torch.bool), None)
        return model, outputs, seen

    def test_is_low_within_blocks_alone(self):
        model, outputs, seen = self.run_and_note(True, torch.bfloat16)
        low = {name for name, dtype in seen.items() if dtype == torch.bfloat16}
        assert low == {
            f"{part}.{block}.{name}"
            for part in ("encoder", "decoder")
            for block in range(2)
            for name in ("qkv", "out", "up", "down")
        }
        assert all(seen[name] == torch.float32 for name in seen.keys() - low)
        assert all(output.dtype == torch.float32 for output in outputs)
        sum(output.square().sum() for output in outputs).backward()
        assert all(parameter.grad.dtype == torch.float32 for parameter in model.parameters())

    def test_is_close_to_float32(self):
        _, low, _ = self.run_and_note(True, torch.bfloat16)
        _, high, _ = self.run_and_note(True, torch.float32)
        for one, other in zip(low[:2], high[:2], strict=True):
            assert not torch.equal(one, other)
            assert (one - other).norm() < 0.03 * other.norm()

    def test_is_low_at_inference_where_that_is_set(self):
        _, outputs, seen = self.run_and_note(False, torch.float32, torch.bfloat16)
        assert {name.split(".")[0] for name, dtype in seen.items() if dtype == torch.bfloat16} == {"encoder", "decoder"}
        _, exact, _ = self.run_and_note(False, torch.float32)
        for output, other in zip(outputs, exact, strict=True):
            assert output.dtype == torch.float32
            assert 0 < (output - other).norm() / other.norm() < 0.02

    @pytest.mark.parametrize(("training", "precision"), [(False, torch.bfloat16), (True, torch.float32)])
    def test_is_float32_otherwise(self, training, precision):
        _, outputs, seen = self.run_and_note(training, precision)
        assert set(seen.values()) == {torch.float32}
        _, expected, _ = self.run_and_note(False, torch.float32)
        assert all(torch.equal(one, other) for one, other in zip(outputs, expected, strict=True))


class TestInitialWeights:
    def test_come_from_the_generator_alone(self):
        torch.manual_seed(4)
        before = torch.get_rng_state()
        one, same, other = (
            build_autoencoder(CONFIG, TOKEN_DIM, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
        )
        assert torch.equal(before, torch.get_rng_state())
        states = [each.state_dict() for each in (one, same, other)]
        for name, value in states[0].items():
            assert torch.equal(value, states[1][name])
            if value.ndim == 2:
                assert not torch.equal(value, states[2][name])

    def test_have_the_promised_sizes(self):
        config = BackboneConfig(window=9, d_model=64, heads=2, layers=2, latent_dim=16, shortcut=True)
        model = build_autoencoder(config, 51, torch.Generator().manual_seed(0))
        for name, value in model.named_parameters():
            if value.ndim >= 2:
                written = name.endswith(("out.weight", "down.weight")) and "coder." in name
                assert value.std().item() == pytest.approx(0.02 / (2 if written else 1), rel=0.2), name
                assert abs(value.mean().item()) < 0.02 * 5 / math.sqrt(value.numel()), name
            else:
                norm = name.endswith("weight")
                assert torch.equal(value, torch.full_like(value, 1.0 if norm else 0.0)), name

    def test_every_parameter_gets_a_gradient(self):
        model = build_autoencoder(CONFIG, TOKEN_DIM, torch.Generator().manual_seed(0))
        tokens, positions = make_window()
        latents = model.encode(tokens.float(), positions)
        projected = model.project(latents)
        (model.decode(latents, positions).square().sum() + projected.sum()).backward()
        without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert without == []
