"""Pre-train a backbone on a composition; resumes from its last checkpoint, bit for bit.

The BACKBONE artifact holds `weights.safetensors`, `curves.parquet` (step, metric, value) and `composition.parquet` (the
training checkpoints: slice, model, epoch).
"""

import io
import math
from collections.abc import Sequence

import polars as pl
import torch
from torch import Tensor

from mzsane.artifacts import Artifact, ArtifactStore, Partial, Work
from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder
from mzsane.backbone.loss import contrast_loss, explained_variance, reconstruction_loss
from mzsane.config import BackboneConfig, ExecutionConfig
from mzsane.errors import CorruptArtifactError, DivergedError
from mzsane.files import load_tensors, load_torch, save_tensors, to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import make_generator
from mzsane.tokens.augment import add_noise, cut_mix, erase, mix_up, scale_noise
from mzsane.tokens.bank import Mixture, TokenBank
from mzsane.tokens.composition import ChosenSlice, TokenSlice, choose_checkpoints
from mzsane.tokens.layout import TokenLayout
from mzsane.tokens.stream import TokenStream, stream_table
from mzsane.tokens.windows import WindowBatch, WindowSource, check_positions, map_windows

VERSION = 2
_LOG_STEPS = 20
_VALIDATIONS = 8  # times in a training
_KEPT_CHECKPOINTS = 2
_ADAM_BETAS = (0.9, 0.95)
_MOST_REUSED = 16  # windows of a long model that is streamed, before it is read again
_VALIDATION_BYTES = 256 * 2**20  # of each zoo's validation models, as many as fit


def plan_backbone(
    config: BackboneConfig, slices: Sequence[TokenSlice], seed: int, mixture: Mixture = "checkpoints"
) -> Work:
    """Name the work of pre-training a backbone."""
    settings = {
        "backbone": config.recipe(),
        "slices": [part.recipe() for part in slices],
        "mixture": mixture,
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
    mixture: Mixture = "checkpoints",
) -> Artifact:
    """Pre-train a backbone, or open it when that was done before.

    Killed at any step, the next call continues from the last checkpoint and ends with the same bits.

    Raises:
        ConfigError: a slice has fewer models than asked for, or its tokens do not fit the backbone.
        DivergedError: the loss is not a number any more.
    """
    work = plan_backbone(config, slices, seed, mixture)
    if found := store.find(work.ref):
        return found
    chosen = choose_checkpoints(slices, seed, store)
    check_positions([part.table.layout for part in chosen], config.max_positions)
    run = _Run(config, seed, chosen, mixture, store.partial(work), sink)
    run.resume()
    run.train((execution or ExecutionConfig()).checkpoint_steps)
    if isinstance(run.windows, TokenStream):
        run.windows.close()
    used = [
        part.table.index[part.rows_N.tolist()].select(pl.lit(number).alias("slice"), "model", "epoch")
        for number, part in enumerate(chosen)
    ]
    files = {
        "weights.safetensors": save_tensors(run.model.state_dict(), {"token_dim": run.token_dim}),
        "curves.parquet": to_parquet(pl.DataFrame(run.curves, schema=_CURVE_SCHEMA, orient="row")),
        "composition.parquet": to_parquet(pl.concat(used)),
    }
    counts = {
        "parameters": sum(parameter.numel() for parameter in run.model.parameters()),
        "steps": config.steps,
        "training_checkpoints": sum(len(part.rows_N) for part in chosen),
        "resumed_from_step": run.resumed_from,
    }
    return store.publish(work, files, counts)


def open_windows(
    config: BackboneConfig, chosen: Sequence[ChosenSlice], seed: int, mixture: Mixture
) -> TokenBank | TokenStream:
    """Return the source of training windows: in memory when the composition fits, else streamed."""
    held = int(config.memory_gib * 2**30)
    if sum(4 * part.table.layout.weights * len(part.rows_N) for part in chosen) <= held:
        sources = [
            WindowSource(part.table.load(part.rows_N), part.table.layout, part.table.groups, part.weight)
            for part in chosen
        ]
        return TokenBank(sources, config.window, config.batch_size, seed, mixture=mixture)
    streams = [
        stream_table(
            part.table,
            part.rows_N,
            part.weight,
            reuse=min(_MOST_REUSED, math.ceil(part.table.layout.length / config.window)),
        )
        for part in chosen
    ]
    return TokenStream(streams, config.window, config.batch_size, seed, held, mixture=mixture)


def load_backbone(backbone: Artifact) -> tuple[Autoencoder, BackboneConfig]:
    """Open a BACKBONE artifact as a model in evaluation mode, with its config."""
    config = BackboneConfig.model_validate(backbone.manifest.config["backbone"])
    weights, notes = load_tensors(backbone.path("weights.safetensors").read_bytes())
    model = build_autoencoder(config, notes["token_dim"], torch.Generator())
    model.load_state_dict(weights)
    return model.eval(), config


@torch.no_grad()
def encode_models(model: Autoencoder, layout: TokenLayout, flat_BP: Tensor, window: int) -> Tensor:
    """Return the latents of whole models, (B, T, L), computed in windows with a halo."""
    tokens_BTD = layout.tokenize(flat_BP)
    return map_windows(model.encode, tokens_BTD, layout.positions_T3, window, window // 4)


@torch.no_grad()
def decode_models(model: Autoencoder, layout: TokenLayout, latents_BTL: Tensor, window: int) -> Tensor:
    """Return the flat weights that latents stand for, (B, P)."""
    tokens_BTD = map_windows(model.decode, latents_BTL, layout.positions_T3, window, window // 4)
    return layout.detokenize(tokens_BTD)


_CURVE_SCHEMA = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}


def _load_validation(part: ChosenSlice) -> tuple[TokenLayout, Tensor]:
    """Return the layout of a slice's zoo and its validation models at their last epoch, as many as fit."""
    layout = part.table.layout
    fitting = max(1, _VALIDATION_BYTES // (4 * layout.weights))
    return layout, part.table.load(part.table.pick_rows("val", last_epochs=1)[:fitting])


def learning_rate_at(step: int, config: BackboneConfig) -> float:
    """Return the learning rate of a step: linear warm-up, then a cosine to zero."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def _augment(batch: WindowBatch, config: BackboneConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the clean versions of the windows, mixed if so set, and the views of them with noise and gaps."""
    clean_VBWD = batch.views_VBWD
    if config.mix_up:
        clean_VBWD = mix_up(clean_VBWD, batch.mask_BWD, batch.positions_BW3, config.mix_up, generator)
    if config.cut_mix:
        clean_VBWD = cut_mix(clean_VBWD, batch.mask_BWD, batch.positions_BW3, config.cut_mix, generator)
    views_VBWD = scale_noise(clean_VBWD, config.noise, generator)
    if config.additive_noise:
        views_VBWD = add_noise(views_VBWD, batch.mask_BWD, config.additive_noise, generator)
    if config.erasing:
        views_VBWD = erase(views_VBWD, config.erasing, generator)
    return clean_VBWD, views_VBWD


class _Run:
    """The state of one pre-training: everything that a checkpoint must carry."""

    def __init__(
        self,
        config: BackboneConfig,
        seed: int,
        chosen: list[ChosenSlice],
        mixture: Mixture,
        partial: Partial,
        sink: MetricSink,
    ) -> None:
        self.config, self.seed, self.partial, self.sink = config, seed, partial, sink
        self.token_dim = chosen[0].table.layout.token_dim
        self.windows = open_windows(config, chosen, seed, mixture)
        self.validation = [_load_validation(part) for part in chosen]
        self.model = build_autoencoder(config, self.token_dim, make_generator(seed, "backbone", "init"))
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
        batch = self.windows.draw(self.step)
        clean_VBWD, views_VBWD = _augment(batch, config, generator)
        clean, views = clean_VBWD.flatten(0, 1), views_VBWD.flatten(0, 1)
        mask, positions = batch.mask_BWD.repeat(2, 1, 1), batch.positions_BW3.repeat(2, 1, 1)
        segments = batch.segments_BW.repeat(2, 1)
        rate = learning_rate_at(self.step, config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        latents = self.model.encode(views, positions, segments)
        output = self.model.decode(latents, positions, segments)
        target = views if config.target == "augmented" else clean
        reconstruction = reconstruction_loss(output, target, mask, config.normalisation, config.deviation_floor)
        first, second = self.model.project(latents, segments).chunk(2)
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
        window = self.config.window
        for number, (layout, flat) in enumerate(self.validation):
            if len(flat):
                decoded = decode_models(self.model, layout, encode_models(self.model, layout, flat, window), window)
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
