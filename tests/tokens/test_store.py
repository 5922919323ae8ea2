"""The TOKENS artifact as files: small, read as written, in memory or lazily, locally or from S3."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import s3fs
import torch

from mzsane.errors import CorruptArtifactError
from mzsane.networks.build import build_network
from mzsane.store.artifacts import ArtifactStore
from mzsane.symmetry.derive.trace import derive_groups
from mzsane.tokens.build import build_tokens, plan_tokens
from mzsane.tokens.scan import decode_weights, scan_checkpoints, scan_tokens
from mzsane.tokens.store import read_tokens, read_weights, write_weights
from mzsane.zoo.shards import iterate_weights, load_weights

BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}


class TestFile:
    def test_reading_back_equals_the_zoo(self, raw_table, tiny_zoo, tiny_zoo_config):
        index, weights = load_weights(tiny_zoo)
        assert torch.equal(raw_table.load(), raw_table.layout.flatten(weights))
        assert raw_table.load().dtype == torch.float32
        ours = raw_table.index.drop("split", "zoo", "layout", "part")
        assert ours.equals(index.drop("split", "shard", "row"))
        network = build_network(tiny_zoo_config.network, 1, 4)
        assert raw_table.groups == derive_groups(network, torch.zeros(1, 1, 28, 28)).groups
        assert raw_table.layout.token_dim == 51

    @pytest.mark.parametrize("dtype", BITS)
    def test_any_bits_come_back(self, dtype, tmp_path):
        bits = torch.randint(-(2**15), 2**15, (5, 333)).to(BITS[dtype])
        flat = (bits * (2 ** (8 * bits.itemsize - 16))).view(dtype)
        index = pl.DataFrame({"model": [f"m{i}" for i in range(5)], "accuracy": [0.1 * i for i in range(5)]})
        write_weights(index, flat, tmp_path / "part")
        assert torch.equal(
            read_weights((tmp_path / "part").read_bytes(), dtype).view(BITS[dtype]), flat.view(BITS[dtype])
        )

    @pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("float16", 2), ("bfloat16", 2)])
    def test_is_hardly_larger_than_the_weights(self, dtype, size, tmp_path):
        """1.03 times, from a few megabytes on; the rows' other columns are all there is beside them."""
        flat = torch.randn(1000, 2464).to(getattr(torch, dtype))
        index = pl.DataFrame(
            {"model": [f"{i:06d}" for i in range(1000)], "accuracy": np.random.default_rng(0).random(1000)}
        )
        write_weights(index, flat, tmp_path / "part")
        assert (tmp_path / "part").stat().st_size <= 1.03 * size * flat.numel()

    def test_layout_and_groups_are_readable_json(self, tiny_tokens, tiny_table):
        description = json.loads(tiny_tokens.path("layout.json").read_bytes())
        assert description["digest"] == tiny_table.layout.digest
        assert len(description["groups"]) == 4
        counts = tiny_tokens.manifest.counts
        assert (counts["checkpoints"], counts["rejected"], counts["models"], counts["groups"]) == (12, 0, 6, 4)
        assert counts["tokens_per_model"] == tiny_table.layout.length
        assert counts["filled"] == pytest.approx(tiny_table.layout.mask_TD.float().mean().item())

    def test_a_changed_part_is_noticed(self, make_store, tiny_tokens):
        store = make_store()
        tokens = store.open(tiny_tokens.ref)
        path = tokens.path("weights-00000.parquet")
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(CorruptArtifactError, match="changed after it was published"):
            read_tokens(tokens).load()

    def test_tokens_are_named_by_zoo_and_settings(self, tiny_tokens_config, tiny_zoo_config, tiny_tokens):
        assert plan_tokens(tiny_tokens_config, tiny_zoo_config).ref == tiny_tokens.ref
        changes = [
            {"token_dim": 50},
            {"dtype": "float16"},
            {"running_statistics": "in"},
            {"canonical": False},
            {"signs": True},
            {"split_seed": 1},
            {"train_fraction": 0.5},
        ]
        refs = {
            plan_tokens(tiny_tokens_config.model_copy(update=change), tiny_zoo_config).ref.fingerprint
            for change in changes
        }
        refs.add(plan_tokens(tiny_tokens_config, tiny_zoo_config.model_copy(update={"seed": 1})).ref.fingerprint)
        assert len(refs | {tiny_tokens.ref.fingerprint}) == len(changes) + 2


class TestScan:
    def test_polars_filters_without_reading_weights(self, tiny_tokens, tiny_table):
        frame = scan_checkpoints(tiny_tokens).filter(pl.col("epoch") == 2, pl.col("split") == "train")
        rows = frame.select("model", "epoch", "test_accuracy").collect()
        expected = tiny_table.index.filter(pl.col("epoch") == 2, pl.col("split") == "train")
        assert rows.equals(expected.select("model", "epoch", "test_accuracy"))
        plan = frame.select("model").explain()
        assert "PROJECT" in plan
        assert "SELECTION" in plan

    @pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
    def test_weights_are_decoded_by_polars(self, dtype, make_store, tiny_zoo_config, tiny_tokens_config, tiny_table):
        config = tiny_tokens_config.model_copy(update={"dtype": dtype, "barrier_pairs": 0})
        tokens = build_tokens(config, tiny_zoo_config, make_store())
        table = read_tokens(tokens)
        frame = scan_checkpoints(tokens).with_columns(decode_weights(table)).collect()
        expected = tiny_table.load().to(table.dtype).float()
        assert np.array_equal(frame["weights"].to_numpy().astype(np.float32), expected.numpy())
        assert torch.equal(table.load(), expected)

    def test_the_long_table_holds_every_weight_where_the_layout_says(self, tiny_tokens, tiny_table):
        model = tiny_table.index["model"][3]
        long = scan_tokens(tiny_tokens, where=(pl.col("model") == model) & (pl.col("epoch") == 2)).collect()
        assert len(long) == tiny_table.layout.length
        row = tiny_table.index.with_row_index("at").filter(pl.col("model") == model, pl.col("epoch") == 2)["at"][0]
        flat = tiny_table.load(torch.tensor([row]))[0]
        parameters = tiny_table.layout.unflatten(flat)
        for record in long.iter_rows(named=True):
            rows = parameters[f"{record['layer']}.weight"][record["row"]].flatten().tolist()
            rows.append(parameters[f"{record['layer']}.bias"][record["row"]].item())
            first = record["part"] * 51
            assert record["values"] == rows[first : first + 51]
        assert long["kind"].unique().sort().to_list() == ["conv", "linear"]

    def test_the_long_table_is_lazy(self, tiny_tokens):
        norms = (
            scan_tokens(tiny_tokens)
            .filter(pl.col("layer") == "module_list.3", pl.col("split") == "test")
            .group_by("model", "epoch")
            .agg(pl.col("values").list.len().sum().alias("weights"))
            .collect()
        )
        assert norms["weights"].to_list() == [1206, 1206]
        assert len(scan_tokens(tiny_tokens).head(7).collect()) == 7

    def test_reads_from_s3(self, s3_endpoint, tmp_path, monkeypatch, tiny_tokens, tiny_table, trained_store):
        """The same files behind a real HTTP server: filtered by polars, read by us."""
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        s3fs.S3FileSystem(endpoint_url=s3_endpoint, key="test", secret="test").mkdir("tokens")
        s3_store = ArtifactStore("s3://tokens/store", tmp_path / "cache", {"endpoint_url": s3_endpoint})
        for name in trained_store.files.list_names(str(tiny_tokens.ref)):
            s3_store.files.write(f"{tiny_tokens.ref}/{name}", trained_store.files.read(f"{tiny_tokens.ref}/{name}"))
        tokens = s3_store.open(tiny_tokens.ref)
        accurate = scan_checkpoints(tokens).filter(pl.col("test_accuracy") >= 0.0, pl.col("epoch") == 1)
        assert accurate.select("model").collect().height == 6
        assert torch.equal(read_tokens(tokens).load(), tiny_table.load())
        assert (
            scan_tokens(tokens, where=pl.col("epoch") == 1).select("number").collect().height
            == 6 * tiny_table.layout.length
        )


class TestDamage:
    """A flipped byte in any file of a zoo or its tokens is noticed by whatever reads that file."""

    @staticmethod
    def flip(store, artifact, name):
        path = Path(store.root, str(artifact.ref), artifact.manifest.files[name].path)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    def test_every_file_is_verified(self, make_store, tiny_zoo, tiny_tokens):
        store = make_store()
        for artifact in (store.open(tiny_zoo.ref), store.open(tiny_tokens.ref)):
            for name in artifact.manifest.files:
                self.flip(store, artifact, name)
                for read in (artifact.read, artifact.path):
                    with pytest.raises(CorruptArtifactError, match="changed after it was published"):
                        read(name)

    @pytest.mark.parametrize("name", ["index.parquet", "weights-00000.parquet"])
    @pytest.mark.parametrize("scan", [scan_checkpoints, scan_tokens])
    def test_scans_of_tokens_notice_it(self, make_store, tiny_tokens, scan, name):
        store = make_store()
        tokens = store.open(tiny_tokens.ref)
        self.flip(store, tokens, name)
        with pytest.raises(CorruptArtifactError, match="changed after it was published"):
            scan(tokens).collect()

    @pytest.mark.parametrize("name", ["index.parquet", "weights-00000.safetensors"])
    def test_readers_of_zoos_notice_it(self, make_store, tiny_zoo, name):
        store = make_store()
        zoo = store.open(tiny_zoo.ref)
        self.flip(store, zoo, name)
        with pytest.raises(CorruptArtifactError, match="changed after it was published"):
            list(iterate_weights(zoo))

    def test_rows_are_scanned_without_the_parts(self, make_store, tiny_tokens, tiny_table):
        store = make_store()
        tokens = store.open(tiny_tokens.ref)
        Path(store.root, str(tokens.ref), tokens.manifest.files["weights-00000.parquet"].path).unlink()
        rows = scan_checkpoints(tokens).filter(pl.col("epoch") == 2).select("model").collect()
        assert rows["model"].to_list() == tiny_table.index.filter(pl.col("epoch") == 2)["model"].to_list()
        none = scan_checkpoints(tokens).filter(pl.col("epoch") == 99).collect()
        assert none.is_empty()
        assert none.schema["weights"] == pl.Binary

    def test_filters_on_weights_and_limits_hold(self, tiny_tokens, tiny_table):
        whole = scan_checkpoints(tiny_tokens).collect()
        assert whole.drop("weights").equals(tiny_table.index.drop("part"))
        assert [len(value) for value in whole["weights"]] == [4 * tiny_table.layout.weights] * 12
        wanted = whole["weights"][5]
        found = scan_checkpoints(tiny_tokens).filter(pl.col("weights") == wanted, pl.col("epoch") > 0).collect()
        assert found.equals(whole[5])
        assert scan_checkpoints(tiny_tokens).head(5).collect().equals(whole[:5])


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
