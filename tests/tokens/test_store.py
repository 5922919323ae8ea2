"""The TOKENS artifact of the tiny zoo: split by model, aligned without a change of function, small, read as written."""

import json
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from torch.func import functional_call

from mzsane.config import TokensConfig
from mzsane.errors import ConfigError, MzsaneError
from mzsane.files import save_tensors, to_parquet
from mzsane.tokens.store import build_tokens, canonicalise, plan_tokens, read_tokens
from mzsane.tokens.symmetry import derive_groups
from mzsane.zoo.architectures import build_network
from mzsane.zoo.images import load_images
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import plan_zoo


@pytest.fixture(scope="module")
def raw_table(make_store, tiny_tokens_config, tiny_zoo_config):
    """The tokens of the same zoo as it was trained, not aligned."""
    config = tiny_tokens_config.model_copy(update={"canonical": False})
    return read_tokens(build_tokens(config, tiny_zoo_config, make_store()))


class TestSplit:
    def test_every_model_is_in_one_split_with_all_its_epochs(self, tiny_table):
        assert len(tiny_table.index) == 12
        per_model = tiny_table.index.group_by("model").agg(pl.col("split").n_unique(), pl.col("epoch").n_unique())
        assert per_model["split"].to_list() == [1] * 6
        assert per_model["epoch"].to_list() == [2] * 6

    def test_shares_are_those_of_the_config(self, tiny_table, tiny_tokens_config):
        counts = tiny_table.index.group_by("split").agg(pl.col("model").n_unique())
        assert dict(counts.rows()) == {"train": 4, "val": 1, "test": 1} == tiny_tokens_config.count_split(6)

    def test_follows_its_seed(self, make_store, tiny_zoo_config, tiny_tokens_config):
        store, splits = make_store(), set()
        for seed in range(4):
            config = tiny_tokens_config.model_copy(update={"split_seed": seed})
            table = read_tokens(build_tokens(config, tiny_zoo_config, store))
            splits.add(tuple(table.index.unique("model").sort("model")["split"]))
        assert len(splits) > 1

    def test_is_the_same_in_whatever_order_the_zoo_is_listed(
        self, tiny_table, tiny_zoo, tiny_zoo_config, tiny_tokens_config, store
    ):
        """A zoo whose rows were written in another order, as a reader of folders might."""
        index, weights = load_weights(tiny_zoo)
        order = torch.arange(len(index) - 1, -1, -1)
        backwards = {name: value[order] for name, value in weights.items()}
        files = {
            "index.parquet": to_parquet(index[order.tolist()].with_columns(row=pl.int_range(pl.len()))),
            "weights-00000.safetensors": save_tensors(backwards),
            "history.parquet": to_parquet(index),
        }
        store.publish(plan_zoo(tiny_zoo_config), files, {})
        other = read_tokens(build_tokens(tiny_tokens_config, tiny_zoo_config, store))
        assert other.index["model"].to_list() != tiny_table.index["model"].to_list()
        keys = ["model", "epoch", "split"]
        ours, theirs = (
            dict(zip(table.index.select(keys).rows(), table.flat_NP, strict=True)) for table in (tiny_table, other)
        )
        assert set(ours) == set(theirs)
        for key, flat in ours.items():
            assert torch.equal(flat, theirs[key]), key

    def test_what_the_zoo_says_counts(self, tiny_zoo, tiny_zoo_config, tiny_tokens_config, store):
        index, weights = load_weights(tiny_zoo)
        given = {"000000": "test", "000001": "train", "000004": "val"}
        index = index.with_columns(split=pl.col("model").replace_strict(given, default=None))
        files = {"index.parquet": to_parquet(index), "weights-00000.safetensors": save_tensors(weights)}
        store.publish(plan_zoo(tiny_zoo_config), files, {})
        table = read_tokens(build_tokens(tiny_tokens_config, tiny_zoo_config, store))
        found = dict(table.index.select("model", "split").unique().rows())
        assert {model: found[model] for model in given} == given
        assert None not in found.values()

    def test_a_zoo_without_training_models_is_refused(self, make_store, tiny_zoo_config):
        """The reference of the canonical form is a training model."""
        config = TokensConfig(train_fraction=0.1)
        with pytest.raises(MzsaneError, match="train"):
            build_tokens(config, tiny_zoo_config, make_store())


class TestCanonicalForm:
    def test_keeps_the_function_of_every_checkpoint(self, tiny_table, raw_table, tiny_zoo_config):
        images = load_images(tiny_zoo_config.images)
        network = build_network(tiny_zoo_config.network, images.channels, images.classes)
        moved = 0
        for row, metrics in enumerate(tiny_table.index.iter_rows(named=True)):
            aligned, raw = tiny_table.flat_NP[row], raw_table.flat_NP[row]
            moved += not torch.equal(aligned, raw)
            for name, split in images.splits.items():
                with torch.no_grad():
                    logits, before = (
                        functional_call(network, tiny_table.layout.unflatten(flat), (split.images_NCHW,))
                        for flat in (aligned, raw)
                    )
                torch.testing.assert_close(logits, before, atol=1e-5, rtol=0)
                accuracy = (logits.argmax(dim=1) == split.labels_N).double().mean().item()
                assert accuracy == pytest.approx(metrics[f"{name}_accuracy"], abs=1e-12)
        assert moved >= 8  # all but the reference's two, give or take

    def test_all_epochs_of_a_model_move_alike(self, tiny_table, raw_table):
        for (model,), rows in tiny_table.index.with_row_index("row").group_by("model"):
            one, other = rows.sort("epoch")["row"].to_list()
            step, raw_step = (table.flat_NP[other] - table.flat_NP[one] for table in (tiny_table, raw_table))
            # One permutation of both epochs permutes their difference; two would change its values.
            assert torch.equal(step.sort().values, raw_step.sort().values), model

    def test_reference_is_the_first_training_model_and_stays(self, tiny_table, raw_table):
        first = tiny_table.index.filter(pl.col("split") == "train")["model"].min()
        rows = tiny_table.index.with_row_index("row").filter(pl.col("model") == first)["row"].to_list()
        assert torch.equal(tiny_table.flat_NP[rows], raw_table.flat_NP[rows])

    def test_brings_models_nearer_to_the_reference(self, tiny_table, raw_table):
        index = tiny_table.index.with_row_index("row").filter(pl.col("epoch") == 2)
        reference = index.filter(pl.col("split") == "train").sort("model")["row"][0]
        for row in index["row"]:
            near, far = (
                (table.flat_NP[row] - table.flat_NP[reference]).norm().item() for table in (tiny_table, raw_table)
            )
            if row == reference:
                assert near == far == 0
            else:
                assert near < far

    def test_canonicalise_tells_its_progress(self, raw_table):
        seen = []

        class Sink:
            def metrics(self, values, step):
                pass

            def progress(self, done, total, note=""):
                seen.append((done, total))

        canonicalise(raw_table.index, raw_table.flat_NP, raw_table.layout, raw_table.groups, Sink())
        assert seen == [(done, 6) for done in range(1, 7)]


class TestFile:
    def test_reading_back_equals_the_zoo(self, raw_table, tiny_zoo, tiny_zoo_config):
        index, weights = load_weights(tiny_zoo)
        assert torch.equal(raw_table.flat_NP, raw_table.layout.flatten(weights))
        assert raw_table.flat_NP.dtype == torch.float32
        assert raw_table.index.drop("split").equals(index.drop("split", "shard", "row"))
        assert raw_table.groups == derive_groups(build_network(tiny_zoo_config.network, 1, 4))
        assert raw_table.layout.token_dim == 51

    def test_negative_zero_comes_back(self, raw_table, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store):
        table = self._rebuild({0: [-0.0, 1e-42, 3.0, 0.0]}, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store)
        bits = torch.tensor([-0.0, 1e-42, 3.0, 0.0]).numpy().view(np.int32)
        assert np.array_equal(table.flat_NP[0, -4:].numpy().view(np.int32), bits)
        assert torch.equal(table.flat_NP[1:], raw_table.flat_NP[1:])

    def test_checkpoints_that_are_not_finite_are_set_aside(
        self, raw_table, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store
    ):
        broken = {1: [float("nan"), 0.0, 0.0, 0.0], 4: [0.0, float("-inf"), 0.0, 0.0]}
        table = self._rebuild(broken, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store)
        kept = [row for row in range(12) if row not in broken]
        assert torch.equal(table.flat_NP, raw_table.flat_NP[kept])
        rejected = pl.read_parquet(store.open(self.tokens_ref).path("rejected.parquet"))
        assert rejected["model"].to_list() == raw_table.index["model"][list(broken)].to_list()
        assert set(rejected["reason"]) == {"weights that are not finite"}

    def test_too_many_of_them_stop_it(self, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store):
        broken = {row: [float("nan")] * 4 for row in range(7)}
        with pytest.raises(ConfigError, match=r"7 of 12 checkpoints .*max_rejected \(0.5\)"):
            self._rebuild(broken, tiny_tokens_config, tiny_zoo_config, tiny_zoo, store)

    def _rebuild(self, values, tokens_config, zoo_config, zoo, store):
        index, weights = load_weights(zoo)
        for row, bias in values.items():
            weights["module_list.11.bias"][row] = torch.tensor(bias)
        files = {"index.parquet": to_parquet(index), "weights-00000.safetensors": save_tensors(weights)}
        store.publish(plan_zoo(zoo_config), files, {})
        tokens = build_tokens(tokens_config.model_copy(update={"canonical": False}), zoo_config, store)
        self.tokens_ref = tokens.ref
        return read_tokens(tokens)

    def test_is_hardly_larger_than_the_weights(self, tiny_tokens, tiny_table):
        raw_bytes = tiny_table.flat_NP.numel() * 4
        assert tiny_tokens.manifest.files["weights.parquet"].bytes <= 1.25 * raw_bytes

    def test_layout_and_groups_are_readable_json(self, tiny_tokens, tiny_table):
        description = json.loads(tiny_tokens.path("layout.json").read_bytes())
        assert description["digest"] == tiny_table.layout.digest
        assert len(description["groups"]) == 4
        assert tiny_tokens.manifest.counts == {
            "checkpoints": 12,
            "rejected": 0,
            "models": 6,
            "tokens_per_model": tiny_table.layout.length,
            "filled": pytest.approx(tiny_table.layout.mask_TD.float().mean().item()),
        }

    def test_polars_reads_the_file_without_us(self, tiny_tokens, tiny_table):
        frame = pl.read_parquet(tiny_tokens.path("weights.parquet"))
        assert frame["split"].to_list() == tiny_table.index["split"].to_list()
        assert np.array_equal(np.stack(frame["weights"].to_list()), tiny_table.flat_NP.numpy())

    def test_tokens_are_named_by_zoo_and_settings(self, tiny_tokens_config, tiny_zoo_config, tiny_tokens):
        assert plan_tokens(tiny_tokens_config, tiny_zoo_config).ref == tiny_tokens.ref
        changes = [{"token_dim": 50}, {"canonical": False}, {"split_seed": 1}, {"train_fraction": 0.5}]
        refs = {
            plan_tokens(tiny_tokens_config.model_copy(update=change), tiny_zoo_config).ref.fingerprint
            for change in changes
        }
        refs.add(plan_tokens(tiny_tokens_config, tiny_zoo_config.model_copy(update={"seed": 1})).ref.fingerprint)
        assert len(refs | {tiny_tokens.ref.fingerprint}) == 6


class TestPickRows:
    @pytest.mark.parametrize("split", ["train", "val", "test"])
    def test_picks_a_split(self, tiny_table, split):
        rows = tiny_table.pick_rows(split)
        assert rows.tolist() == [row for row, name in enumerate(tiny_table.index["split"]) if name == split]

    def test_picks_the_last_epochs_of_each_model(self, tiny_table):
        assert set(tiny_table.index[tiny_table.pick_rows("train", 1).tolist()]["epoch"]) == {2}
        assert len(tiny_table.pick_rows("train", 1)) == 4
        for many in (2, 3):
            assert torch.equal(tiny_table.pick_rows("train", many), tiny_table.pick_rows("train"))
        # A model that ended earlier has last epochs of its own.
        early = tiny_table.index["model"][int(tiny_table.pick_rows("train")[0])]
        index = tiny_table.index.with_columns(
            pl.when(pl.col("model") == early).then(pl.col("epoch") - 1).otherwise(pl.col("epoch")).alias("epoch")
        )
        picked = index[replace(tiny_table, index=index).pick_rows("train", 1).tolist()]
        assert sorted(picked["epoch"]) == [1, 2, 2, 2]
        assert picked["model"].n_unique() == 4

    def test_picks_models_by_name_within_the_split(self, tiny_table):
        models = sorted(set(tiny_table.index.filter(pl.col("split") == "train")["model"]))
        outside = tiny_table.index.filter(pl.col("split") == "test")["model"][0]
        rows = tiny_table.pick_rows("train", None, [models[1], outside])
        assert tiny_table.index[rows.tolist()]["model"].to_list() == [models[1]] * 2
        assert len(tiny_table.pick_rows("train", None, [])) == 0
