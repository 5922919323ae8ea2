"""Build the TOKENS artifact from a zoo: scan, align, write, shard by shard; killed, the next call continues.

Suffixes: N checkpoints, P weights of a model, G units of a group.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor

from mzsane.appearance import plot_png
from mzsane.config import AnyZooConfig, ExecutionConfig, TokensConfig, ZooConfig
from mzsane.errors import ConfigError, CorruptArtifactError
from mzsane.layout.agreement import choose_token_dim
from mzsane.layout.token_layout import DTYPES, TokenLayout
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.networks.build import build_network
from mzsane.networks.shapes import find_shape
from mzsane.parallel import map_processes
from mzsane.steady import steady
from mzsane.store.artifacts import Artifact, ArtifactStore, FileEntry, Work
from mzsane.store.partial import Partial
from mzsane.store.serialisation import load_tensors, to_parquet
from mzsane.symmetry.align.canonical import Matching, apply_matching
from mzsane.symmetry.derive.trace import Symmetry
from mzsane.tokens.alignment import Alignment, measure_barriers
from mzsane.tokens.jobs import AlignmentJob, PartJob, ShardWeights, align_models, scan_shard, write_part
from mzsane.tokens.picture import SHOWN_MODELS, plot_alignment
from mzsane.tokens.population import BufferJob, Population, list_values
from mzsane.tokens.splitting import find_empty, split_models
from mzsane.tokens.store import name_part
from mzsane.zoo.make import plan_zoo
from mzsane.zoo.shards import read_index, read_shard

VERSION = 4
ROW_GROUP_BYTES = 64 * 2**20
_SHOWN_BYTES = 256 * 2**20  # of the models whose alignment is shown
Job = TypeVar("Job")


def fix_token_dim(config: TokensConfig, zoos: Sequence[AnyZooConfig]) -> TokensConfig:
    """Return the config with a token width: its own, or the one that suits the architectures of all zoos.

    Raises:
        ConfigError: a width is to be chosen, and a zoo's architecture is not given.
    """
    if config.token_dim is not None:
        return config
    layouts = []
    for zoo in zoos:
        if zoo.network is None or zoo.images is None:
            raise ConfigError(f"tokens.token_dim must be given: the network and images of zoo {zoo.name!r} are not")
        network = build_network(zoo.network, *find_shape(zoo.images))
        layouts.append(TokenLayout.from_network(network, 1, config.running_statistics))
    return config.model_copy(update={"token_dim": choose_token_dim(layouts)})


def plan_tokens(config: TokensConfig, zoo: AnyZooConfig) -> Work:
    """Name the work of tokenizing a zoo.

    Raises:
        ConfigError: it has several architectures, or a token width is to be chosen and its architecture is not given.
    """
    if isinstance(zoo, ZooConfig) and zoo.factors.width:
        raise ConfigError(
            f"zoo {zoo.name!r} varies its width, and tokens are of one architecture: leave factors.width out, set "
            "network.width, and make a zoo for each width"
        )
    config = fix_token_dim(config, [zoo])
    return Work("tokens", VERSION, config.recipe(), {"zoo": plan_zoo(zoo).ref}, seed=config.split_seed)


@steady
def build_tokens(
    config: TokensConfig,
    zoo: AnyZooConfig,
    store: ArtifactStore,
    execution: ExecutionConfig | None = None,
    sink: MetricSink = NO_SINK,
) -> Artifact:
    """Split a zoo by model, bring it to canonical form, and write its flat weights with their layout.

    The reference model is the first training model. What brings a model to canonical form is found on its last usable
    epoch and applied to all its epochs, so that a model's trajectory stays one.

    Raises:
        ConfigError: the zoo is empty or of several architectures, too many of its checkpoints cannot be used, none of
            its models is to train on, or signs or scales are asked for where activations are not known.
        WorkerError: a worker process was killed.
    """
    config = fix_token_dim(config, [zoo])
    work = plan_tokens(config, zoo)
    return store.find(work.ref) or _Build(work, config, zoo, store, execution or ExecutionConfig(), sink).run()


class _Build:
    """One zoo on its way to tokens."""

    def __init__(
        self,
        work: Work,
        config: TokensConfig,
        zoo: AnyZooConfig,
        store: ArtifactStore,
        execution: ExecutionConfig,
        sink: MetricSink,
    ) -> None:
        self.work, self.config, self.zoo, self.store = work, config, zoo, store
        self.execution, self.sink = execution, sink
        self.partial = store.partial(work)
        self.source = store.open(work.inputs["zoo"])
        index = read_index(self.source)
        if index.is_empty():
            raise ConfigError(f"{self.source.address} has no checkpoints; its rejected.parquet says why")
        self.index = split_models(index, config)
        self.population = None
        if zoo.network is not None and zoo.images is not None:
            self.population = Population(zoo.network, zoo.images, index)
            self.population.check_flags(config.signs, config.scales)
        elif config.signs or config.scales:
            raise ConfigError(
                f"tokens.{'signs' if config.signs else 'scales'} needs the activation of every model, and zoo "
                f"{zoo.name!r} has no network and images: give them, or leave it out"
            )
        names = index["shard"].unique(maintain_order=True).to_list()
        self.layout = self._lay_out(names)
        self.symmetry = self._find_symmetry()
        buffers = frozenset(name for name, _ in self.population.network.named_buffers()) if self.population else ()
        others = frozenset(buffers) - self.layout.names
        self.shards = {name: ShardWeights(self.source, name, self.layout, config.dtype, others) for name in names}

    def run(self) -> Artifact:
        """Do all steps and publish."""
        rejected = self._set_aside()
        alignment = self._align()
        rows_in_part = max(1, ROW_GROUP_BYTES // (self.layout.weights * DTYPES[self.config.dtype].itemsize))
        self.index = self.index.with_columns((pl.int_range(pl.len()) // rows_in_part).alias("part"))
        entries = self._write_parts(alignment)
        description = {
            "layout": self.layout.model_dump(mode="json"),
            "digest": self.layout.digest,
            "dtype": self.config.dtype,
            "groups": [group.model_dump(mode="json") for group in self.symmetry.groups],
            "notes": self.symmetry.notes,
        }
        files: dict[str, bytes | FileEntry] = {
            "layout.json": json.dumps(description).encode(),
            "index.parquet": to_parquet(self._published_index()),
            "rejected.parquet": to_parquet(rejected),
            **(self._show_alignment(alignment) if alignment is not None else {}),
            **{name_part(number): entry for number, entry in enumerate(entries)},
        }
        counts = self._count(rejected, files)
        self.sink.metrics({name: float(value) for name, value in counts.items() if not isinstance(value, str)}, 0)
        return self.store.publish(self.work, files, counts)

    def _lay_out(self, shards: Sequence[str]) -> TokenLayout:
        assert self.config.token_dim is not None
        statistics = self.config.running_statistics
        if self.population is not None:
            jobs = {}
            if names := self.population.buffers:
                jobs = {shard: BufferJob(self.source, shard, names) for shard in shards}
            found = self._work_off("buffers", jobs, list_values, "shards looked at") if jobs else {}
            values = {shard: json.loads(data) for shard, data in found.items()}
            return self.population.lay_out(self.config.token_dim, statistics, self.source, values)
        first = {name: value[0] for name, value in read_shard(self.source, shards[0]).items()}
        return TokenLayout.from_state_dict(first, self.config.token_dim, statistics)

    def _find_symmetry(self) -> Symmetry:
        """Return the permutation groups of the zoo's architecture, or none and why."""
        if self.population is None:
            return Symmetry((), ("the zoo's network and images are not given: no symmetry is known",))
        return self.population.derive_symmetry(self.layout)

    def _set_aside(self) -> pl.DataFrame:
        """Take checkpoints that cannot be used out of the index; return them with the reason."""
        results = self._work_off("scan", self.shards, scan_shard, "shards scanned")
        reasons = pl.concat(
            [
                pl.DataFrame({"shard": name, "row": range(len(found)), "reason": found}, schema_overrides=_REASON_TYPES)
                for name, data in results.items()
                for found in [json.loads(data)]
            ]
        )
        index = self.index.join(reasons, on=["shard", "row"], how="left", maintain_order="left")
        rejected = index.filter(pl.col("reason").is_not_null()).select("model", "epoch", "split", "reason")
        if len(rejected) > self.config.max_rejected * len(index):
            reason, advice = rejected["reason"][0], "lower the zoo's learning_rate, or raise max_rejected"
            raise ConfigError(
                f"{len(rejected)} of {len(index)} checkpoints cannot be used ({reason}), more than "
                f"tokens.max_rejected ({self.config.max_rejected}) allows: "
                + (advice if "finite" in reason else "raise max_rejected, or leave these checkpoints out")
            )
        self.index = index.filter(pl.col("reason").is_null()).drop("reason")
        return rejected

    def _align(self) -> Alignment | None:
        """Find what brings each model to canonical form; None when there is no symmetry, or none is wanted."""
        if not (self.config.canonical and self.symmetry.groups):
            return None
        last = self.index.sort("model", "epoch").group_by("model", maintain_order=True).last()
        training = last.filter(pl.col("split") == "train")
        if training.is_empty():
            raise ConfigError(
                "no model is in the train split, so there is no reference for the canonical form: raise "
                "tokens.train_fraction or the zoo's models"
            )
        reference = self.shards[training["shard"][0]], int(training["row"][0])
        jobs = {}
        for name, shard in self.shards.items():
            rows = tuple(last.filter(pl.col("shard") == name).sort("row")["row"].to_list())
            if rows:
                groups = self.symmetry.groups
                jobs[name] = AlignmentJob(shard, rows, groups, reference, self.config.signs, self.config.scales)
        results = self._work_off("match", jobs, align_models, "shards aligned")
        matching = Matching.join([Matching.from_tensors(load_tensors(data)[0]) for data in results.values()])
        places = [pl.DataFrame({"shard": name, "row": jobs[name].rows}, schema=_PLACE_TYPES) for name in results]
        models = pl.concat(places).join(last, on=["shard", "row"], maintain_order="left")["model"].to_list()
        return Alignment(training, {model: place for place, model in enumerate(models)}, matching)

    def _show_alignment(self, alignment: Alignment) -> dict[str, bytes]:
        """Return the files that say how much the canonical form brought: tables and a picture."""
        assert self.population is not None
        shown = alignment.training[: min(max(2, _SHOWN_BYTES // (4 * self.layout.weights)), SHOWN_MODELS)]
        models, raw_BP = shown["model"].to_list(), self._load_rows(shown)
        aligned_BP = apply_matching(self.layout, self.symmetry.groups, raw_BP, alignment.pick(models))
        ends = (models, raw_BP, aligned_BP)
        barriers = measure_barriers(self.population, self.layout, *ends, self.config.barrier_pairs, self.sink)
        return {
            "alignment.parquet": to_parquet(alignment.tell_objectives()),
            "alignment.png": plot_png(lambda: plot_alignment(self.layout, raw_BP, aligned_BP)),
            "barriers.parquet": to_parquet(barriers),
        }

    def _write_parts(self, alignment: Alignment | None) -> list[FileEntry]:
        jobs = {}
        for (number,), rows in self.index.with_row_index("at").group_by("part", maintain_order=True):
            pieces = tuple(
                (self.shards[name], tuple(group["row"].to_list()))
                for (name,), group in rows.group_by("shard", maintain_order=True)
            )
            index = self._published_index()[rows["at"].to_list()].drop("part")
            chosen = None if alignment is None else alignment.pick(rows["model"].to_list())
            jobs[f"{number:05d}"] = PartJob(
                self.work, self.store, int(number), index, pieces, self.symmetry.groups, chosen
            )
        results = self._work_off("part", jobs, write_part, "parts written", check=self._is_uploaded)
        return [FileEntry.model_validate_json(results[name]) for name in jobs]

    def _published_index(self) -> pl.DataFrame:
        origin = pl.lit(self.work.inputs["zoo"].fingerprint[:12]).alias("zoo")
        return self.index.select(origin, pl.exclude("shard", "row"), pl.lit(self.layout.digest[:12]).alias("layout"))

    def _load_rows(self, rows: pl.DataFrame) -> Tensor:
        """Return the flat weights of some rows of the index, float32."""
        flat_BP = torch.empty(len(rows), self.layout.weights)
        for (shard,), some in rows.with_row_index("at").group_by("shard"):
            flat_BP[some["at"].to_list()] = self.shards[shard].load("float32")[some["row"].to_list()]
        return flat_BP

    def _is_uploaded(self, note: bytes) -> bool:
        entry = FileEntry.model_validate_json(note)
        return self.store.files.size(f"{self.work.ref}/{entry.path}") == entry.bytes

    def _work_off(
        self,
        step: str,
        jobs: Mapping[str, Job],
        function: Callable[[Job], bytes],
        unit: str,
        check: Callable[[bytes], bool] = lambda _: True,
    ) -> dict[str, bytes]:
        """Do the jobs of a step that are not done yet, a process a core; return all results by name, in order."""
        done = {name: data for name in jobs if (data := _read_note(self.partial, f"{step}-{name}", check)) is not None}
        missing = [name for name in jobs if name not in done]
        self.sink.progress(len(done), len(jobs), unit)
        for place, data in map_processes(function, [jobs[name] for name in missing], self.execution.processes):
            done[missing[place]] = data
            self.partial.write(f"{step}-{missing[place]}", data)
            self.sink.progress(len(done), len(jobs), unit)
        return {name: done[name] for name in jobs}

    def _count(self, rejected: pl.DataFrame, files: Mapping[str, bytes | FileEntry]) -> dict[str, Any]:
        counts: dict[str, Any] = {
            "checkpoints": len(self.index),
            "rejected": len(rejected),
            "models": self.index["model"].n_unique(),
            "weights_per_model": self.layout.weights,
            "tokens_per_model": self.layout.length,
            "filled": self.layout.filled,
            "groups": len(self.symmetry.groups),
        }
        if empty := find_empty(self.index, self.config):
            counts["no_models_in"] = ", ".join(empty)
        if self.symmetry.notes:
            counts["fixed" if self.symmetry.groups else "no_symmetry"] = "; ".join(self.symmetry.notes)
        for name, quantity in (("alignment.parquet", "objective"), ("barriers.parquet", "barrier")):
            data = files.get(name)
            frame = pl.read_parquet(data) if isinstance(data, bytes) else pl.DataFrame()
            if not frame.is_empty():
                counts |= {f"{quantity}_{when}": frame[f"{quantity}_{when}"].mean() for when in ("before", "after")}
        return counts


_PLACE_TYPES = {"shard": pl.String, "row": pl.Int64}
_REASON_TYPES = {**_PLACE_TYPES, "reason": pl.String}


def _read_note(partial: Partial, name: str, check: Callable[[bytes], bool]) -> bytes | None:
    try:
        data = partial.read(name)
    except (CorruptArtifactError, FileNotFoundError):
        return None
    return data if check(data) else None
