"""Pre-train a backbone on a composition; resumes from its last checkpoint, bit for bit.

The BACKBONE artifact holds `weights.safetensors`, `curves.parquet` (step, metric, value) and `composition.parquet` (the
training checkpoints: slice, model, epoch).
"""

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactRef, ArtifactStore, Partial, Work
from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder
from mzsane.backbone.loss import contrast_loss, explained_variance, reconstruction_loss
from mzsane.config import BackboneConfig, ExecutionConfig
from mzsane.errors import ConfigError, CorruptArtifactError, DivergedError
from mzsane.files import load_tensors, load_torch, save_tensors, to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.tokens.store import TokenTable, read_tokens
from mzsane.tokens.windows import WindowSource, check_positions, draw_windows, map_windows

VERSION = 1
_LOG_STEPS = 20
_VALIDATIONS = 8  # times in a training
_KEPT_CHECKPOINTS = 2
_ADAM_BETAS = (0.9, 0.95)


@dataclass(frozen=True)
class TokenSlice:
    """Some training models of one TOKENS artifact, and how many of their last epochs (None: all)."""

    tokens: ArtifactRef
    models: int
    last_epochs: int | None = None


def plan_backbone(config: BackboneConfig, slices: Sequence[TokenSlice], seed: int) -> Work:
    """Name the work of pre-training a backbone."""
    settings = {
        "backbone": config.recipe(),
        "slices": [{"models": part.models, "last_epochs": part.last_epochs} for part in slices],
        "seed": seed,
    }
    inputs = {f"tokens/{number}": part.tokens for number, part in enumerate(slices)}
    return Work("backbone", VERSION, settings, inputs, seed=seed)


def pretrain(
    config: BackboneConfig,
    slices: Sequence[TokenSlice],
    seed: int,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Pre-train a backbone, or open it when that was done before.

    Killed at any step, the next call continues from the last checkpoint and ends with the same bits.

    Raises:
        ConfigError: a slice has fewer models than asked for, or its tokens do not fit the backbone.
        DivergedError: the loss is not a number any more.
    """
    work = plan_backbone(config, slices, seed)
    if found := store.find(work.ref):
        return found
    tables = [read_tokens(store.open(part.tokens)) for part in slices]
    check_positions([table.layout for table in tables], config.max_positions)
    widths = {table.layout.token_dim for table in tables}
    if len(widths) > 1:
        raise ConfigError(f"the slices have tokens of different widths: {sorted(widths)}; tokenize them alike")
    models = [_draw_models(table, part, seed, i) for i, (table, part) in enumerate(zip(tables, slices, strict=True))]
    rows = [
        table.pick_rows("train", part.last_epochs, chosen)
        for table, part, chosen in zip(tables, slices, models, strict=True)
    ]
    sources = [
        WindowSource(table.flat_NP[kept], table.layout, table.groups) for table, kept in zip(tables, rows, strict=True)
    ]
    run = _Run(config, seed, sources, tables, store.partial(work), sink)
    run.resume()
    run.train((execution or ExecutionConfig()).checkpoint_steps)
    used = [
        table.index[kept.tolist()].select(pl.lit(i).alias("slice"), "model", "epoch")
        for i, (table, kept) in enumerate(zip(tables, rows, strict=True))
    ]
    files = {
        "weights.safetensors": save_tensors(run.model.state_dict(), {"token_dim": tables[0].layout.token_dim}),
        "curves.parquet": to_parquet(pl.DataFrame(run.curves, schema=_CURVE_SCHEMA, orient="row")),
        "composition.parquet": to_parquet(pl.concat(used)),
    }
    counts = {
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": config.steps,
        "training_checkpoints": sum(len(kept) for kept in rows),
        "resumed_from_step": run.resumed_from,
    }
    return store.publish(work, files, counts)


def load_backbone(backbone: Artifact) -> tuple[Autoencoder, BackboneConfig]:
    """Open a BACKBONE artifact as a model in evaluation mode, with its config."""
    config = BackboneConfig.model_validate(backbone.manifest.config["backbone"])
    weights, notes = load_tensors(backbone.path("weights.safetensors").read_bytes())
    model = build_autoencoder(config, notes["token_dim"], torch.Generator())
    model.load_state_dict(weights)
    return model.eval(), config


@torch.no_grad()
def encode_models(model: Autoencoder, table: TokenTable, flat_BP: Tensor, window: int) -> Tensor:
    """Return the latents of whole models, (B, T, L), computed in windows with a halo."""
    tokens_BTD = table.layout.tokenize(flat_BP)
    return map_windows(model.encode, tokens_BTD, table.layout.positions_T3, window, window // 4)


@torch.no_grad()
def decode_models(model: Autoencoder, table: TokenTable, latents_BTL: Tensor, window: int) -> Tensor:
    """Return the flat weights that latents stand for, (B, P)."""
    tokens_BTD = map_windows(model.decode, latents_BTL, table.layout.positions_T3, window, window // 4)
    return table.layout.detokenize(tokens_BTD)


_CURVE_SCHEMA = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}


def _draw_models(table: TokenTable, part: TokenSlice, seed: int, number: int) -> list[str]:
    training = table.index.filter(pl.col("split") == "train")
    models = training["model"].unique().sort()
    epochs = training["epoch"].n_unique()
    if part.models > len(models) or (part.last_epochs or 0) > epochs:
        raise ConfigError(
            f"slice {number} of the composition asks for {part.models} training models and {part.last_epochs or 'all'} "
            f"epochs; {part.tokens} has {len(models)} and {epochs}"
        )
    order = torch.randperm(len(models), generator=make_generator(seed, "composition", number))
    return [models[i] for i in sorted(order[: part.models].tolist())]


def learning_rate_at(step: int, config: BackboneConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


class _Run:
    """The state of one pre-training: everything that a checkpoint must carry."""

    def __init__(
        self,
        config: BackboneConfig,
        seed: int,
        sources: list[WindowSource],
        tables: list[TokenTable],
        partial: Partial,
        sink: MetricSink,
    ) -> None:
        self.config, self.seed, self.sources, self.tables = config, seed, sources, tables
        self.partial, self.sink = partial, sink
        self.model = build_autoencoder(config, tables[0].layout.token_dim, make_generator(seed, "backbone", "init"))
        matrices = [p for p in self.model.parameters() if p.ndim >= 2]
        vectors = [p for p in self.model.parameters() if p.ndim < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, betas=_ADAM_BETAS, fused=True)
        self.step = 0
        self.resumed_from = 0
        self.curves: list[tuple[int, str, float]] = []

    def resume(self) -> None:
        """Continue from the newest checkpoint that can be read, if there is one."""
        for name in sorted(self.partial.names(), reverse=True):
            try:
                state = load_torch(self.partial.read(name))
            except CorruptArtifactError:
                continue
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step = self.resumed_from = state["step"]
            self.curves = [tuple(row) for row in state["curves"]]
            return

    def train(self, checkpoint_steps: int) -> None:
        """Run the remaining steps; each has its own seed, so that a resumed run needs no generator's state."""
        config = self.config
        validate_steps = max(1, config.steps // _VALIDATIONS)
        self.sink.progress(self.step, config.steps, f"steps, resumed from {self.step}" if self.step else "steps")
        while self.step < config.steps:
            values = self._take_step()
            self.step += 1
            if not math.isfinite(values["loss"]):
                raise DivergedError(
                    f"the pre-training loss is {values['loss']} at step {self.step}: lower backbone.learning_rate or "
                    "raise backbone.deviation_floor; the last good checkpoint is kept"
                )
            if self.step % _LOG_STEPS == 0 or self.step == config.steps:
                if self.step % validate_steps < _LOG_STEPS or self.step == config.steps:
                    values |= self._validate()
                self.curves.extend((self.step, name, value) for name, value in values.items())
                self.sink.metrics(values, self.step)
                self.sink.progress(self.step, config.steps, f"steps, loss {values['loss']:.3f}, R2 {values['r2']:.3f}")
            if self.step % checkpoint_steps == 0 and self.step < config.steps:
                self._save()

    def _take_step(self) -> dict[str, float]:
        config = self.config
        generator = make_generator(self.seed, "backbone", "step", self.step)
        batch = draw_windows(self.sources, config.window, config.batch_size, generator)
        clean = torch.cat([batch.canonical_BWD, batch.permuted_BWD])
        mask, positions = torch.cat([batch.mask_BWD] * 2), torch.cat([batch.positions_BW3] * 2)
        views = clean * (1 + config.noise * torch.randn(clean.shape, generator=generator))
        real = mask.any(dim=-1)
        attend = None if bool(real.all()) else real
        rate = learning_rate_at(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        latents = self.model.encode(views, positions, attend)
        output = self.model.decode(latents, positions, attend)
        target = views if config.target == "augmented" else clean
        reconstruction = reconstruction_loss(output, target, mask, config.normalisation, config.deviation_floor)
        first, second = self.model.project(latents, attend).chunk(2)
        contrast = contrast_loss(first, second, config.temperature)
        loss = (1 - config.gamma) * reconstruction + config.gamma * contrast
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        return {
            "loss": loss.item(),
            "loss_reconstruction": reconstruction.item(),
            "loss_contrast": contrast.item(),
            "r2": explained_variance(output.detach(), clean, mask),
            "gradient_norm": float(norm),
            "learning_rate": rate,
        }

    @torch.no_grad()
    def _validate(self) -> dict[str, float]:
        """Return for each slice the R2 of its zoo's validation models, canonical and without noise."""
        values = {}
        for number, table in enumerate(self.tables):
            rows = table.pick_rows("val", last_epochs=1)
            if len(rows):
                flat = table.flat_NP[rows]
                decoded = decode_models(
                    self.model, table, encode_models(self.model, table, flat, self.config.window), self.config.window
                )
                values[f"val_r2/{number}"] = explained_variance(decoded, flat, torch.ones_like(flat, dtype=torch.bool))
        return values

    def _save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "curves": self.curves,
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self.partial.write(f"step-{self.step:08d}.pt", buffer.getvalue())
        for old in sorted(self.partial.names())[:-_KEPT_CHECKPOINTS]:
            self.partial.remove(old)
