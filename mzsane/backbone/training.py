"""The loop of pre-training: windows, two views, loss, step; and validation, checkpoints and metrics on the way."""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import polars as pl
import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from mzsane.appearance import plot_png
from mzsane.backbone.autoencoder import Autoencoder, build_autoencoder
from mzsane.backbone.behaviour import open_behaviour
from mzsane.backbone.checkpoints import Checkpoints
from mzsane.backbone.distributed.data_parallel import (
    gather_state,
    gather_tensors,
    hold_gradients,
    is_sharded,
    restore_state,
    share_tensors,
    spread,
)
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.loader import BatchLoader, TrainingBatch, open_windows
from mzsane.backbone.machine import choose_precision, keep_freed_memory
from mzsane.backbone.objective import Losses, Objective, freeze_unused
from mzsane.backbone.optimisation import make_optimizer, set_rates, update_average
from mzsane.backbone.profile import SpeedMeter
from mzsane.backbone.validation.measure import Validator
from mzsane.backbone.validation.picture import plot_curves, plot_scales
from mzsane.composition import ChosenSlice
from mzsane.config import BackboneConfig, ExecutionConfig
from mzsane.errors import DivergedError
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.randomness import derive_seed, make_generator, seed_globally
from mzsane.store.serialisation import save_tensor_file, to_parquet
from mzsane.windows.memory import Mixture

_LOG_STEPS = 20
_EXPLOSION = 10  # times the first step's loss
_CURVE_SCHEMA = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}


class Training:
    """One pre-training in one process, and everything that a checkpoint must carry.

    Args:
        config: sizes, loss, training.
        seed: of the start, of the order of the data and of all noise.
        chosen: the composition.
        mixture: how windows are shared between the slices.
        checkpoints: where the state is kept.
        execution: steps between checkpoints, compilation.
        sink: told of metrics and progress by the first process.
        ranks: the processes that share a batch.
    """

    def __init__(
        self,
        config: BackboneConfig,
        seed: int,
        chosen: Sequence[ChosenSlice],
        mixture: Mixture,
        checkpoints: Checkpoints,
        execution: ExecutionConfig,
        sink: MetricSink,
        ranks: Ranks,
    ) -> None:
        self.config, self.execution, self.checkpoints, self.ranks = config, execution, checkpoints, ranks
        self.seed = seed
        self.sink = sink if ranks.first else NO_SINK
        self.chosen = chosen
        layouts = [part.table.layout for part in chosen]
        self.token_dim = layouts[0].token_dim
        self.model = build_autoencoder(config, self.token_dim, make_generator(seed, "backbone", "init"))
        self.model.to(ranks.device)
        self.model.precision = choose_precision(config, ranks.device)
        freeze_unused(self.model, config)
        behaviour = open_behaviour(config, [part.table for part in chosen]) if config.behaviour else None
        self.objective = Objective(config, layouts, behaviour, seed, ranks)
        self.validator = Validator(chosen, config, seed, device=ranks.device) if ranks.first else None
        self.feeder = BatchLoader(config, open_windows(config, chosen, seed, mixture, ranks.device), seed, ranks)
        if execution.compile or (execution.compile is None and ranks.device.type == "cuda"):
            self.model.compile()
        self.spread = spread(self.model, ranks, execution.sharding == "shard")
        self.optimizer = make_optimizer(self.model, config)
        self.parameters = list(self.model.parameters())
        self.average = {name: value.clone() for name, value in self.model.state_dict().items() if config.averaging}
        self.apart = bool(config.averaging) or is_sharded(self.model)  # what is published is not what is trained
        self.step = self.resumed_from = 0
        self.first: float | None = None  # loss of the first step
        self.best: float | None = None  # R2 in validation
        self.curves: list[tuple[int, str, float]] = []
        self.clock = SpeedMeter(config, self.token_dim, self.model.precision, self.feeder, ranks)

    def __enter__(self) -> "Training":
        if self.ranks.device.type == "cpu":
            keep_freed_memory()
        return self

    def __exit__(self, *_: object) -> None:
        self.feeder.close()
        if self.ranks.device.type == "cpu":
            keep_freed_memory(False)

    def resume(self) -> None:
        """Continue from the newest checkpoint that can be read, if there is one."""
        state = self.checkpoints.load()
        if state is None:
            return
        restore_state(self.model, self.optimizer, state)
        self.average = share_tensors(state["average"], self.average)
        self.step = self.resumed_from = state["step"]
        self.first, self.best = state["first"], state["best"]
        self.curves = [tuple(row) for row in state["curves"]]

    def train(self) -> None:
        """Run the remaining steps; each has its own seeds, so that a resumed run needs no generator's state."""
        config, sink = self.config, self.sink
        validate_steps = max(1, config.steps // config.validations)
        sink.progress(self.step, config.steps, f"steps, resumed from {self.step}" if self.step else "steps")
        self.clock.start()
        while self.step < config.steps:
            after = self.step + 1
            log = after % _LOG_STEPS == 0 or after == config.steps
            save = after % self.execution.checkpoint_steps == 0 and after < config.steps
            with seed_globally(derive_seed(self.seed, "backbone", "step", self.step), self.ranks.device):
                values = self._take_step(log or save or after == 1)
            self.step = after
            if self.first is None:
                self.first = values["loss"]
            if log or save:
                self._check(values)
            if log:
                timing = self.clock.read()
                if self.step % validate_steps < _LOG_STEPS or self.step == config.steps:
                    values |= self._validate()
                    self.clock.start()
                self.curves.extend((self.step, name, value) for name, value in values.items())
                sink.metrics(values | timing, self.step)
                numbers = f"loss {values['loss']:.3f}, R2 {values['r2']:.3f}, {timing['tokens_per_s']:,.0f} tokens/s"
                sink.progress(self.step, config.steps, f"steps, {numbers}")
            if save:
                self._save()
                self.clock.start()
        self.published = self._gather()

    def make_files(self) -> dict[str, bytes | Callable[[Path], None]]:
        """Return the files of the artifact, but for the composition; in the first process."""
        curves = pl.DataFrame(self.curves, schema=_CURVE_SCHEMA, orient="row")
        if self.config.publish == "best" and self.best is not None:
            model = self._hold(self.checkpoints.load_best())
        else:
            model = self._hold(self.published) if self.apart else self.model
        assert self.validator is not None
        draw_validation = partial(self.validator.draw, model)
        weights = {name: value.cpu() for name, value in model.state_dict().items()}
        return {
            "weights.safetensors": partial(save_tensor_file, tensors=weights, notes={"token_dim": self.token_dim}),
            "curves.parquet": to_parquet(curves),
            "curves.png": plot_png(lambda: plot_curves(curves)),
            "scales.png": plot_png(lambda: plot_scales(self.chosen, self.config)),
            "reconstruction.png": plot_png(draw_validation),
        }

    def count(self) -> dict[str, int | float | str | list[str]]:
        """Return the artifact's small numbers for people, and what of the validation was left out and why."""
        notes = list(self.validator.notes) if self.validator is not None else []
        if self.config.publish == "best" and self.best is None:
            notes.append("publish is best, but no model was validated: the last weights are published")
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": self.config.steps,
            "training_checkpoints": sum(len(part.rows_N) for part in self.chosen),
            "resumed_from_step": self.resumed_from,
            "processes": self.ranks.count,
            "device": self.ranks.device.type,
            "threads": torch.get_num_threads(),
            "precision": str(self.model.precision).removeprefix("torch."),
            **self.clock.summary,
            **({"notes": notes} if notes else {}),
        }

    def _take_step(self, log: bool) -> dict[str, float]:
        config, parts = self.config, self.config.accumulation
        rate = set_rates(self.optimizer, self.step, config)
        self.optimizer.zero_grad(set_to_none=True)
        for part in range(parts):
            feed = self.feeder.take(self.step, part)
            with hold_gradients(self.spread, part < parts - 1):  # they are exchanged once a step
                losses = self.objective.measure(self.spread, feed, self.step * parts + part)
                # The processes' gradients are averaged, and the loss is the sum of what they have.
                (losses.own * (self.ranks.count / parts)).backward()
            self.clock.count(feed)
        norm = clip_grad_norm_(self.parameters, config.gradient_clip)
        self.optimizer.step()
        if self.average:
            state = self.model.state_dict()
            update_average(self.average.values(), [state[name] for name in self.average], self.step, config.averaging)
        return self._describe(losses, feed, norm, rate) if log else {}

    def _describe(self, losses: Losses, feed: TrainingBatch, norm: Tensor, rate: float) -> dict[str, float]:
        (whole,) = gather_tensors({"norm": norm}).values()
        return self.objective.describe(losses, feed) | {"gradient_norm": float(whole), "learning_rate": rate}

    def _check(self, values: dict[str, float]) -> None:
        """Stop a training that has failed; what was saved before is kept.

        Raises:
            DivergedError: the loss or its gradient is not finite, or the loss is many times what it was at first.
        """
        remedy = "lower backbone.learning_rate or raise backbone.deviation_floor; the last good checkpoint is kept"
        for name, value in (("loss", values["loss"]), ("gradient norm", values["gradient_norm"])):
            if not math.isfinite(value):
                raise DivergedError(f"the pre-training {name} is {value} at step {self.step}: {remedy}")
        if self.first is not None and values["loss"] > _EXPLOSION * self.first:
            raise DivergedError(
                f"the pre-training loss has exploded: {values['loss']:.3g} at step {self.step}, {self.first:.3g} at "
                f"first; {remedy}"
            )

    def _gather(self) -> dict[str, Tensor]:
        """Return the weights that would be published now: the average if there is one."""
        return gather_tensors(self.average or self.model.state_dict())

    def _hold(self, weights: dict[str, Tensor]) -> Autoencoder:
        """Return a model with these weights, beside the one in training."""
        model = build_autoencoder(self.config, self.token_dim, torch.Generator()).to(self.ranks.device)
        model.load_state_dict(weights)
        return model

    def _validate(self) -> dict[str, float]:
        """Measure the weights that would be published; keep them when they are the best so far."""
        weights = self._gather()
        if self.validator is None:
            return {}
        values = self.validator.measure(self._hold(weights) if self.apart else self.model)
        r2 = [value for name, value in values.items() if name.startswith("val_r2/")]
        mean = sum(r2) / len(r2) if r2 else math.nan
        if math.isfinite(mean) and (self.best is None or mean > self.best):
            self.best = mean
            self.checkpoints.save_best(weights)
        return values

    def _save(self) -> None:
        """Write a checkpoint, unless the weights are broken: then the good ones stay."""
        state = gather_state(self.model, self.optimizer)
        state |= {"average": gather_tensors(self.average), "step": self.step, "curves": self.curves}
        state |= {"first": self.first, "best": self.best}
        if self.ranks.first and all(bool(value.isfinite().all()) for value in state["model"].values()):
            self.checkpoints.save(self.step, state)
