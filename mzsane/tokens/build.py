"""Build the TOKENS artifact from a zoo: scan, align, write, shard by shard; killed, the next call continues.

Suffixes: N checkpoints, P weights of a model, G units of a group.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import polars as pl
import torch
from torch import Tensor, nn

from mzsane.artifacts import Artifact, ArtifactStore, FileEntry, Work
from mzsane.config import AnyZooConfig, ExecutionConfig, TokensConfig
from mzsane.errors import ConfigError, CorruptArtifactError
from mzsane.files import load_tensors, to_parquet
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.parallel import map_processes
from mzsane.partial import Partial
from mzsane.randomness import make_generator
from mzsane.tokens.entries import is_statistic
from mzsane.tokens.jobs import AlignmentJob, PartJob, ShardWeights, align_models, scan_shard, write_part
from mzsane.tokens.layout import DTYPES, TokenLayout, choose_token_dim
from mzsane.tokens.picture import SHOWN_MODELS, draw_alignment
from mzsane.tokens.store import name_part
from mzsane.tokens.symmetry.barrier import measure_barrier
from mzsane.tokens.symmetry.canonical import Matching, apply_matching
from mzsane.tokens.symmetry.trace import Symmetry, derive_groups
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images
from mzsane.zoo.origins import plan_zoo
from mzsane.zoo.shards import read_index, read_shard

VERSION = 3
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
        network = _build_network(zoo)
        if network is None:
            raise ConfigError(f"tokens.token_dim must be given: the network and images of zoo {zoo.name!r} are not")
        layouts.append(TokenLayout.from_network(network, 1, config.running_statistics))
    return config.model_copy(update={"token_dim": choose_token_dim(layouts)})


def plan_tokens(config: TokensConfig, zoo: AnyZooConfig) -> Work:
    """Name the work of tokenizing a zoo."""
    config = fix_token_dim(config, [zoo])
    return Work("tokens", VERSION, config.recipe(), {"zoo": plan_zoo(zoo).ref}, seed=config.split_seed)


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
        ConfigError: the zoo is empty or of several architectures, too many of its checkpoints cannot be used, or none
            of its models is to train on.
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
        self.index = _split_models(index, config)
        self.network = _build_network(zoo)
        self.buffers = frozenset(name for name, _ in self.network.named_buffers()) if self.network else frozenset()
        if config.running_statistics == "in":
            self.buffers = frozenset(name for name in self.buffers if not is_statistic(name))
        self.layout = self._lay_out()
        self.symmetry = self._find_symmetry()
        self.shards = {
            name: ShardWeights(self.source, name, self.layout, config.dtype, self.buffers)
            for name in index["shard"].unique(maintain_order=True)
        }

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

    def _lay_out(self) -> TokenLayout:
        assert self.config.token_dim is not None
        statistics = self.config.running_statistics
        if self.network is not None:
            return TokenLayout.from_network(self.network, self.config.token_dim, statistics)
        first = {name: value[0] for name, value in read_shard(self.source, self.index["shard"][0]).items()}
        return TokenLayout.from_state_dict(first, self.config.token_dim, statistics)

    def _find_symmetry(self) -> Symmetry:
        """Return the permutation groups of the zoo's architecture, or none and why."""
        if self.network is None or self.zoo.images is None:
            return Symmetry((), ("the zoo's network and images are not given: no symmetry is known",))
        images = load_images(self.zoo.images)
        return derive_groups(self.network, images.splits["train"].images_NCHW[:1])

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
            raise ConfigError(
                f"{len(rejected)} of {len(index)} checkpoints cannot be used ({rejected['reason'][0]}), more than "
                f"tokens.max_rejected ({self.config.max_rejected}) allows: lower the zoo's learning_rate, or raise "
                "max_rejected"
            )
        self.index = index.filter(pl.col("reason").is_null()).drop("reason")
        return rejected

    def _align(self) -> "_Alignment | None":
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
        return _Alignment(training, {model: place for place, model in enumerate(models)}, matching)

    def _show_alignment(self, alignment: "_Alignment") -> dict[str, bytes]:
        """Return the files that say how much the canonical form brought: tables and a picture."""
        objectives = pl.DataFrame(
            {
                "model": list(alignment.places),
                "objective_before": alignment.matching.objective_before_B.double().numpy(),
                "objective_after": alignment.matching.objective_after_B.double().numpy(),
            }
        )
        fitting = max(2, _SHOWN_BYTES // (4 * self.layout.weights))
        shown = alignment.training[: min(fitting, SHOWN_MODELS)]
        raw_BP = self._load_rows(shown)
        chosen = alignment.pick(shown["model"].to_list())
        aligned_BP = apply_matching(self.layout, self.symmetry.groups, raw_BP, chosen)
        barriers = self._measure_barriers(shown["model"].to_list(), raw_BP, aligned_BP)
        return {
            "alignment.parquet": to_parquet(objectives),
            "alignment.png": draw_alignment(self.layout, raw_BP, aligned_BP),
            "barriers.parquet": to_parquet(barriers),
        }

    def _measure_barriers(self, models: list[str], raw_BP: Tensor, aligned_BP: Tensor) -> pl.DataFrame:
        """Return the loss barriers between the reference and some training models, as they are and aligned."""
        assert self.network is not None
        assert self.zoo.images is not None
        split = load_images(self.zoo.images).splits["val"]
        pairs = min(self.config.barrier_pairs, len(models) - 1)
        records = []
        for number in range(1, pairs + 1):
            ends = (raw_BP[number], aligned_BP[number])
            barriers = [measure_barrier(self.network, self.layout, raw_BP[0], end_P, split) for end_P in ends]
            records.append((models[0], models[number], *barriers))
            self.sink.progress(number, pairs, "loss barriers")
        return pl.DataFrame(records, schema=_BARRIER_SCHEMA, orient="row")

    def _write_parts(self, alignment: "_Alignment | None") -> list[FileEntry]:
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
        if self.symmetry.notes:
            counts["fixed" if self.symmetry.groups else "no_symmetry"] = "; ".join(self.symmetry.notes)
        for name, quantity in (("alignment.parquet", "objective"), ("barriers.parquet", "barrier")):
            data = files.get(name)
            frame = pl.read_parquet(data) if isinstance(data, bytes) else pl.DataFrame()
            if not frame.is_empty():
                counts |= {f"{quantity}_{when}": frame[f"{quantity}_{when}"].mean() for when in ("before", "after")}
        return counts


@dataclass(frozen=True)
class _Alignment:
    """What brings the models of a zoo to canonical form.

    Attributes:
        training: the rows of the training models' last epochs; the first one is the reference.
        places: for each model its place in `matching`.
        matching: what was found.
    """

    training: pl.DataFrame
    places: dict[str, int]
    matching: Matching

    def pick(self, models: Sequence[str]) -> Matching:
        """Return the matching of some models, in their order."""
        return self.matching.pick(torch.tensor([self.places[model] for model in models]))


_PLACE_TYPES = {"shard": pl.String, "row": pl.Int64}
_REASON_TYPES = {**_PLACE_TYPES, "reason": pl.String}
_BARRIER_SCHEMA = {"first": pl.String, "second": pl.String, "barrier_before": pl.Float64, "barrier_after": pl.Float64}


def _build_network(zoo: AnyZooConfig) -> nn.Module | None:
    if zoo.network is None or zoo.images is None:
        return None
    images = load_images(zoo.images)
    return build_network(zoo.network, images.channels, images.classes, images.size).eval()


def _split_models(index: pl.DataFrame, config: TokensConfig) -> pl.DataFrame:
    """Fill the column `split` where the zoo does not say: models, sorted and shuffled by the seed, are cut in three."""
    models = index["model"].unique().sort()
    order = torch.randperm(len(models), generator=make_generator(config.split_seed, "tokens", "split")).tolist()
    names = [name for name, count in config.count_split(len(models)).items() for _ in range(count)]
    split = dict(zip((models[i] for i in order), names, strict=True))
    drawn = pl.col("model").replace_strict(split)
    return index.with_columns(pl.coalesce(pl.col("split"), drawn).alias("split"))


def _read_note(partial: Partial, name: str, check: Callable[[bytes], bool]) -> bytes | None:
    try:
        data = partial.read(name)
    except (CorruptArtifactError, FileNotFoundError):
        return None
    return data if check(data) else None
