"""The loss of a step, by hand for small cases, and the numbers that people see of it.

Suffixes: as in `mzsane.backbone.objective`.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.inference import load_backbone
from mzsane.backbone.loader import BatchLoader, TrainingBatch, open_windows
from mzsane.backbone.objective import Losses, Objective, freeze_unused
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import ChosenSlice, TokenSlice, choose_checkpoints
from mzsane.config import BackboneConfig, SliceConfig
from mzsane.layout.token_layout import TokenLayout
from mzsane.randomness import make_generator
from mzsane.store.artifacts import Artifact, ArtifactStore

INPUT = [[1.0, 2.0], [3.0, 4.0], [0.0, 0.0]]  # a window of two tokens and a place of padding
CLEAN = [[1.5, 2.0], [3.0, 5.0], [0.0, 0.0]]
OUTPUT = [[1.5, 2.0], [3.0, 2.0], [9.0, 9.0]]
LATENTS = [[1.0, 0.0], [3.0, 4.0], [50.0, 50.0]]


class Answer(nn.Module):
    """A model that gives what it was told, and remembers what it was given."""

    def __init__(self, latents_BWL: Tensor, output_BWD: Tensor, projected: Tensor) -> None:
        super().__init__()
        self.answer, self.given = (latents_BWL, output_BWD, projected), tuple[Any, ...]()

    def forward(self, *given: Any) -> tuple[Tensor, Tensor, Tensor]:
        self.given = given
        return self.answer


class Outputs:
    """A behavioural loss of a known sum over a known number of models."""

    def __init__(self, total: float, count: int) -> None:
        self.total, self.count, self.given = total, count, tuple[Any, ...]()

    def loss_sum_and_count(self, *given: Any) -> tuple[Tensor, int]:
        self.given = given
        return given[1].sum() * 0 + self.total, self.count


def make_feed() -> TrainingBatch:
    """Return one window in two versions, of which the second has all weights twice as large."""
    views, clean = (torch.tensor([rows, rows]) * torch.tensor([1.0, 2.0])[:, None, None] for rows in (INPUT, CLEAN))
    real = torch.tensor([True, True, False]).expand(2, 3)
    positions = torch.tensor([[0, 0, 0], [1, 1, 0], [0, 0, 0]]).expand(2, 3, 3)
    return TrainingBatch(
        input_BWD=views,
        clean_BWD=clean,
        mask_BWD=real[..., None].expand(2, 3, 2),
        weights_BW=2 * real,
        positions_BW3=positions,
        segments_BW=real.long(),
        source_BW=real.long() - 1,
        plan=None,
        noise_BWL=None,
        weights=8,
        tokens=(4, 8),
    )


@pytest.fixture(scope="module")
def layout() -> TokenLayout:
    return TokenLayout.from_network(nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(1, 1)), 2)


@pytest.fixture
def measure(layout: TokenLayout) -> Callable[..., tuple[Losses, Objective]]:
    """The measurer of the small case under settings."""

    def measure(outputs: Any = None, **settings: Any) -> tuple[Losses, Objective]:
        given: dict[str, Any] = {"gamma": 0.0, "normalisation": "none"} | settings
        config = BackboneConfig.model_validate(given)
        objective = Objective(config, [layout], outputs, 0, Ranks())
        latents, output = torch.tensor([LATENTS, LATENTS]), torch.tensor([OUTPUT, OUTPUT])
        projected = torch.tensor([[3.0, 4.0], [4.0, 3.0]])
        return objective.measure(Answer(latents, output, projected), make_feed(), 7), objective

    return measure


class TestByHand:
    # Output less input in the 4 weights of each version: (0.5, 0, 0, -2) and (-0.5, -2, -3, -6).
    AUGMENTED = (0.25 + 4 + 0.25 + 4 + 9 + 36) / 8
    # Less the clean weights: (0, 0, 0, -3) and (-1.5, -2, -3, -8).
    CLEAN = (9 + 2.25 + 4 + 9 + 64) / 8

    @pytest.mark.parametrize(("target", "expected"), [("augmented", AUGMENTED), ("clean", CLEAN)])
    def test_reconstruction(self, measure: Any, target: str, expected: float) -> None:
        losses, _ = measure(target=target)
        assert float(losses.own) == pytest.approx(expected)
        assert {name: float(value) for name, value in losses.parts.items()} == {
            "reconstruction": pytest.approx(expected)
        }

    def test_reconstruction_by_token(self, measure: Any) -> None:
        # Each token's two weights are 1 apart in the first version and 2 in the second: deviations 0.5 and 1.
        losses, _ = measure(normalisation="token", deviation_floor=0.5, relative_floor=0.0)
        assert float(losses.own) == pytest.approx((4.25 / 1.0**2 + 49.25 / 1.5**2) / 8)

    @pytest.mark.parametrize("gamma", [0.2, 1.0])
    def test_contrast(self, measure: Any, gamma: float) -> None:
        losses, _ = measure(gamma=gamma, contrast="positive")
        contrast = 1 - (3 * 4 + 4 * 3) / 25
        assert float(losses.parts["contrast"]) == pytest.approx(contrast)
        assert float(losses.own) == pytest.approx((1 - gamma) * self.AUGMENTED + gamma * contrast)

    def test_penalties(self, measure: Any) -> None:
        losses, _ = measure(latent_norm=0.5, latent_variance=0.25)
        norm = (1 + 9 + 16) / 4  # over the real tokens
        variance = (1 + 4) / 2  # of 1 and 3, and of 0 and 4
        assert float(losses.parts["latent_norm"]) == pytest.approx(norm)
        assert float(losses.parts["latent_variance"]) == pytest.approx(variance)
        assert float(losses.own) == pytest.approx(self.AUGMENTED + 0.5 * norm + 0.25 * variance)

    def test_behaviour(self, measure: Any) -> None:
        outputs = Outputs(total=6.0, count=4)
        losses, _ = measure(outputs, behaviour=0.1)
        assert float(losses.parts["behaviour"]) == pytest.approx(1.5)
        assert float(losses.own) == pytest.approx(self.AUGMENTED + 0.15)
        originals, reconstructed, segments, source, generator = outputs.given
        assert torch.equal(originals, torch.tensor([CLEAN]))  # version 0 alone, without noise
        assert torch.equal(reconstructed, torch.tensor([[OUTPUT], [OUTPUT]]))
        assert segments.tolist() == [[1, 1, 0]]
        assert source.tolist() == [[0, 0, -1]]
        assert torch.equal(generator.get_state(), make_generator(0, "backbone", "behaviour", 7).get_state())

    def test_behaviour_of_no_models_is_zero(self, measure: Any) -> None:
        losses, _ = measure(Outputs(total=0.0, count=0), behaviour=0.1)
        assert float(losses.parts["behaviour"]) == 0
        assert float(losses.own) == pytest.approx(self.AUGMENTED)

    def test_all_terms_are_added_with_their_weights_and_described(self, measure: Any) -> None:
        weights = {"gamma": 0.2, "latent_norm": 0.5, "latent_variance": 0.25, "behaviour": 0.1}
        losses, objective = measure(Outputs(6.0, 4), contrast="positive", **weights)
        values = objective.describe(losses, make_feed())
        expected = 0.8 * self.AUGMENTED + 0.2 * 0.04 + 0.5 * 6.5 + 0.25 * 2.5 + 0.1 * 1.5
        assert values["loss"] == pytest.approx(expected)
        assert float(losses.own) == pytest.approx(expected)
        terms = {"reconstruction": self.AUGMENTED, "contrast": 0.04, "latent_norm": 6.5, "latent_variance": 2.5}
        for name, value in (terms | {"behaviour": 1.5}).items():
            assert values[f"loss_{name}"] == pytest.approx(value), name

    def test_the_model_sees_the_views_and_how_full_tokens_are(self, layout: TokenLayout) -> None:
        feed = dataclasses.replace(make_feed(), noise_BWL=torch.rand(2, 3, 2))
        model = Answer(torch.tensor([LATENTS] * 2), torch.tensor([OUTPUT] * 2), torch.rand(2, 3))
        Objective(BackboneConfig(), [layout], None, 0, Ranks()).measure(model, feed, 0)
        tokens, positions, weights, plan, noise = model.given
        assert torch.equal(tokens, feed.input_BWD)
        assert torch.equal(positions, feed.positions_BW3)
        assert weights.tolist() == [[2, 2, 0]] * 2
        assert plan is None
        assert noise is feed.noise_BWL

    def test_gradients_flow_through_every_term(self, layout: TokenLayout) -> None:
        given = {"gamma": 0.2, "contrast": "positive", "latent_norm": 0.5, "latent_variance": 0.25}
        answers = [torch.tensor(rows).requires_grad_() for rows in ([LATENTS] * 2, [OUTPUT] * 2, [[3.0, 4.0], [1, 7]])]
        objective = Objective(BackboneConfig.model_validate(given), [layout], None, 0, Ranks())
        losses = objective.measure(Answer(answers[0], answers[1], answers[2]), make_feed(), 0)
        losses.own.backward()
        for answer in answers:
            assert answer.grad is not None
            assert answer.grad.abs().max() > 0
        assert not any(part.requires_grad for part in losses.parts.values())
        assert not losses.output_BWD.requires_grad
        assert answers[0].grad is not None
        assert not answers[0].grad[:, 2].any()  # the padding's latents cost nothing
        assert answers[1].grad is not None
        assert not answers[1].grad[:, 2].any()


@pytest.fixture(scope="module")
def chosen(tiny_tokens: Artifact, trained_store: ArtifactStore) -> list[ChosenSlice]:
    slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=models)) for models in (3, 4)]
    return choose_checkpoints(slices, 0, trained_store)


@pytest.fixture(scope="module")
def feed(chosen: list[ChosenSlice]) -> TrainingBatch:
    config = BackboneConfig(window=130, d_model=16, batch_size=8, steps=2, noise=0.2)
    feeder = BatchLoader(config, open_windows(config, chosen, 0, "checkpoints"), 0, Ranks())
    feed = feeder.take(0, 0)
    feeder.close()
    return feed


@pytest.fixture(scope="module")
def described(chosen: list[ChosenSlice], feed: TrainingBatch) -> tuple[Tensor, dict[str, float]]:
    """Output of a model, which is wrong by more the later the token, and what is told of it."""
    objective = Objective(BackboneConfig(), [part.table.layout for part in chosen], None, 0, Ranks())
    wrong = torch.randn(feed.clean_BWD.shape, generator=torch.Generator().manual_seed(0))
    output = feed.clean_BWD + 0.003 * feed.positions_BW3[..., :1] * wrong
    losses = Losses(torch.tensor(1.0), {"reconstruction": torch.tensor(0.5)}, output)
    return output, objective.describe(losses, feed)


class TestDescribed:
    def test_keys(self, described: tuple[Tensor, dict[str, float]]) -> None:
        assert list(described[1]) == ["loss", "loss_reconstruction", "r2", "r2/0", "r2/1", "r2_conv", "r2_linear"]

    def test_r2_by_slice_and_kind_is_that_of_its_weights(
        self, described: tuple[Tensor, dict[str, float]], feed: TrainingBatch, chosen: list[ChosenSlice]
    ) -> None:
        output, values = described
        layers = chosen[0].table.layout.layers
        kinds = [layers[layer].kind for layer in feed.positions_BW3[..., 1].flatten().tolist()]
        of_kind = {kind: torch.tensor([k == kind for k in kinds]).view_as(feed.source_BW) for kind in set(kinds)}
        groups = {"r2": feed.source_BW >= 0, "r2/0": feed.source_BW == 0, "r2/1": feed.source_BW == 1}
        groups |= {f"r2_{kind}": where for kind, where in of_kind.items()}
        seen = set()
        for name, where_BW in groups.items():
            kept = (where_BW[..., None] & feed.mask_BWD).numpy()
            x, y = (tokens.double().numpy()[kept] for tokens in (feed.clean_BWD, output))
            assert values[name] == pytest.approx(1 - ((x - y) ** 2).sum() / ((x - x.mean()) ** 2).sum(), abs=1e-9), name
            assert np.isfinite(values[name])
            seen.add(values[name])
        assert len(seen) == len(groups)

    def test_a_slice_that_is_not_in_the_batch_is_left_out(
        self, chosen: list[ChosenSlice], described: tuple[Tensor, dict[str, float]], feed: TrainingBatch
    ) -> None:
        objective = Objective(BackboneConfig(), [part.table.layout for part in (*chosen, *chosen)], None, 0, Ranks())
        losses = Losses(torch.tensor(1.0), {"reconstruction": torch.tensor(0.5)}, described[0])
        assert "r2/2" not in objective.describe(losses, feed)

    def test_the_loss_is_that_of_the_step(self, chosen: list[ChosenSlice], feed: TrainingBatch) -> None:
        config = BackboneConfig(window=130, d_model=16, gamma=0.3, latent_norm=0.1)
        model = build_autoencoder(config, 51, torch.Generator().manual_seed(0))
        objective = Objective(config, [part.table.layout for part in chosen], None, 0, Ranks())
        losses = objective.measure(model, feed, 0)
        assert objective.describe(losses, feed)["loss"] == pytest.approx(float(losses.own.detach()), rel=1e-6)


class TestProjection:
    def test_is_frozen_without_contrast(self) -> None:
        model = build_autoencoder(BackboneConfig(window=5), 7, torch.Generator().manual_seed(0))
        freeze_unused(model, BackboneConfig(gamma=0.0))
        assert {name.split(".")[0] for name, p in model.named_parameters() if not p.requires_grad} == {"projection"}
        freeze_unused(model, BackboneConfig(gamma=0.1))
        assert all(p.requires_grad for p in model.parameters())

    @pytest.mark.parametrize("gamma", [0.0, 0.1])
    def test_is_trained_with_a_contrast_alone(
        self, gamma: float, tiny_tokens: Artifact, tiny_backbone_config: BackboneConfig, make_store: Any
    ) -> None:
        config = tiny_backbone_config.model_copy(update={"gamma": gamma, "steps": 3, "weight_decay": 0.5})
        slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]
        model, _ = load_backbone(pretrain(config, slices, 5, make_store()))
        start: Autoencoder = build_autoencoder(config, 51, make_generator(5, "backbone", "init"))
        trained = model.state_dict()
        for name, value in start.state_dict().items():
            if value.ndim == 2 and not name.startswith("positions"):
                assert torch.equal(trained[name], value) == (name.startswith("projection") and not gamma), name
