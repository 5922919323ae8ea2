"""From a zoo to tokens: split by model, aligned without a change of function, resumed, and what is set aside."""

import polars as pl
import pytest
import torch
from torch.func import functional_call

from mzsane.config import ExecutionConfig, NetworkConfig, ReadConfig, TokensConfig
from mzsane.errors import ConfigError, MzsaneError
from mzsane.networks.build import build_network
from mzsane.problems.images.dataset import load_images
from mzsane.store.serialisation import save_tensors, to_parquet
from mzsane.tokens import build
from mzsane.tokens.build import build_tokens, fix_token_dim, plan_tokens
from mzsane.tokens.store import read_tokens
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import plan_zoo

SERIAL = ExecutionConfig(processes=1)


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
            table = read_tokens(build_tokens(config, tiny_zoo_config, store, SERIAL))
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
        other = read_tokens(build_tokens(tiny_tokens_config, tiny_zoo_config, store, SERIAL))
        assert other.index["model"].to_list() != tiny_table.index["model"].to_list()
        keys = ["model", "epoch", "split"]
        ours, theirs = (
            dict(zip(table.index.select(keys).rows(), table.load(), strict=True)) for table in (tiny_table, other)
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
        table = read_tokens(build_tokens(tiny_tokens_config, tiny_zoo_config, store, SERIAL))
        found = dict(table.index.select("model", "split").unique().rows())
        assert {model: found[model] for model in given} == given
        assert None not in found.values()

    def test_a_zoo_without_training_models_is_refused(self, make_store, tiny_zoo_config):
        """The reference of the canonical form is a training model."""
        config = TokensConfig(train_fraction=0.001)
        with pytest.raises(MzsaneError, match="train"):
            build_tokens(config, tiny_zoo_config, make_store(), SERIAL)


class TestCanonicalForm:
    def test_keeps_the_function_of_every_checkpoint(self, tiny_table, raw_table, tiny_zoo_config):
        images = load_images(tiny_zoo_config.images)
        network = build_network(tiny_zoo_config.network, images.channels, images.classes)
        moved = 0
        everything = zip(tiny_table.index.iter_rows(named=True), tiny_table.load(), raw_table.load(), strict=True)
        for metrics, aligned, raw in everything:
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
            pair = torch.tensor([one, other])
            step, raw_step = (table.load(pair).diff(dim=0)[0] for table in (tiny_table, raw_table))
            # One permutation of both epochs permutes their difference; two would change its values.
            assert torch.equal(step.sort().values, raw_step.sort().values), model

    def test_reference_is_the_first_training_model_and_stays(self, tiny_table, raw_table):
        first = tiny_table.index.filter(pl.col("split") == "train")["model"].min()
        rows = tiny_table.index.with_row_index("row").filter(pl.col("model") == first)["row"].to_list()
        assert torch.equal(tiny_table.load(torch.tensor(rows)), raw_table.load(torch.tensor(rows)))

    def test_brings_models_nearer_to_the_reference(self, tiny_table, raw_table):
        index = tiny_table.index.with_row_index("row").filter(pl.col("epoch") == 2)
        reference = index.filter(pl.col("split") == "train").sort("model")["row"][0]
        for row in index["row"]:
            pair = torch.tensor([row, reference])
            near, far = (table.load(pair).diff(dim=0).norm().item() for table in (tiny_table, raw_table))
            if row == reference:
                assert near == far == 0
            else:
                assert near < far


class TestReport:
    def test_says_how_much_the_alignment_helped(self, tiny_tokens, tiny_table, raw_table):
        alignment = pl.read_parquet(tiny_tokens.path("alignment.parquet"))
        index = tiny_table.index.with_row_index("row").filter(pl.col("epoch") == 2).sort("model")
        first = index.filter(pl.col("split") == "train")["row"][0]
        reference = raw_table.load(torch.tensor([first]))[0]
        for table, name in ((raw_table, "objective_before"), (tiny_table, "objective_after")):
            flat = table.load(torch.tensor(index["row"].to_list()))
            expected = dict(zip(index["model"], (flat @ reference).tolist(), strict=True))
            found = dict(alignment.select("model", name).rows())
            assert found == {model: pytest.approx(value, rel=1e-4, abs=1e-4) for model, value in expected.items()}
        assert (alignment["objective_after"] >= alignment["objective_before"]).all()

    def test_measures_the_loss_barrier_before_and_after(self, tiny_tokens, tiny_table):
        barriers = pl.read_parquet(tiny_tokens.path("barriers.parquet"))
        training = tiny_table.index.filter(pl.col("split") == "train")["model"].unique().sort()
        assert barriers.select("first", "second").rows() == [(training[0], training[1])]
        assert barriers.select("barrier_before", "barrier_after").to_numpy().min() >= 0
        counts = tiny_tokens.manifest.counts
        assert counts["barrier_after"] == pytest.approx(barriers["barrier_after"].mean())
        assert counts["objective_after"] > counts["objective_before"]


class TestRejected:
    def test_checkpoints_that_are_not_finite_are_set_aside(self, raw_table, rebuild):
        broken = {1: [float("nan"), 0.0, 0.0, 0.0], 4: [0.0, float("-inf"), 0.0, 0.0]}
        tokens = rebuild(broken)
        kept = [row for row in range(12) if row not in broken]
        assert torch.equal(read_tokens(tokens).load(), raw_table.load(torch.tensor(kept)))
        rejected = pl.read_parquet(tokens.path("rejected.parquet"))
        assert rejected["model"].to_list() == raw_table.index["model"][list(broken)].to_list()
        assert set(rejected["reason"]) == {"weights that are not finite"}

    def test_what_float16_cannot_hold_is_set_aside(self, raw_table, rebuild):
        tokens = rebuild({3: [1e5, 0.0, 0.0, 0.0]}, dtype="float16")
        rejected = pl.read_parquet(tokens.path("rejected.parquet"))
        assert rejected["reason"].to_list() == ["weights beyond the range of float16"]
        assert len(read_tokens(tokens).index) == 11
        assert len(read_tokens(rebuild({3: [1e5, 0.0, 0.0, 0.0]}, dtype="bfloat16")).index) == 12

    def test_too_many_of_them_stop_it(self, rebuild):
        with pytest.raises(ConfigError, match=r"7 of 12 checkpoints .*not finite.*max_rejected \(0.5\)"):
            rebuild({row: [float("nan")] * 4 for row in range(7)})

    def test_a_reference_that_is_broken_is_not_the_reference(self, rebuild, tiny_table):
        """The first training model's last epoch is set aside; the epoch before it takes its place."""
        training = tiny_table.index.with_row_index("row").filter(pl.col("split") == "train").sort("model", "epoch")
        last = training["row"][1]
        tokens = rebuild({last: [float("nan")] * 4}, canonical=True)
        first = read_tokens(tokens).index.filter(pl.col("split") == "train").sort("model", "epoch")[0]
        assert first["epoch"].to_list() == [1]


@pytest.fixture
def rebuild(tiny_tokens_config, tiny_zoo_config, tiny_zoo, make_store, tmp_path_factory):
    """The builder of tokens of the tiny zoo with other biases in some rows."""

    def rebuild(values, **settings):
        from mzsane.store.artifacts import ArtifactStore

        store = ArtifactStore(str(tmp_path_factory.mktemp("rebuilt") / "store"))
        index, weights = load_weights(tiny_zoo)
        for row, bias in values.items():
            weights["module_list.11.bias"][row] = torch.tensor(bias)
        files = {"index.parquet": to_parquet(index), "weights-00000.safetensors": save_tensors(weights)}
        store.publish(plan_zoo(tiny_zoo_config), files, {})
        config = tiny_tokens_config.model_copy(update={"canonical": False, **settings})
        return build_tokens(config, tiny_zoo_config, store, SERIAL)

    return rebuild


class TestResume:
    def test_continues_where_it_stopped(self, make_store, tiny_zoo_config, tiny_tokens_config, tiny_table, monkeypatch):
        """Killed after each job, the next call does only what is missing, and ends with the same bits."""
        config = tiny_tokens_config.model_copy(update={"barrier_pairs": 0})
        monkeypatch.setattr(build, "ROW_GROUP_BYTES", 3 * 4 * tiny_table.layout.weights)
        store, calls = make_store(), []

        class KilledError(Exception):
            pass

        for name in ("scan_shard", "align_models", "write_part"):
            original = getattr(build, name)

            def call(job, name=name, original=original):
                if calls and calls[-1] == "stop":
                    calls.append("killed")
                    raise KilledError
                data = original(job)
                calls.extend([name, "stop"])
                return data

            monkeypatch.setattr(build, name, call)
        rounds = 0
        while True:
            calls.append("start")
            try:
                tokens = build_tokens(config, tiny_zoo_config, store, SERIAL)
                break
            except KilledError:
                rounds += 1
        done = [name for name in calls if name not in ("start", "stop", "killed")]
        assert done == ["scan_shard", "align_models", *["write_part"] * 4]
        assert rounds == 5
        table = read_tokens(tokens)
        assert table.parts == 4
        assert [len(rows) for rows in table.part_rows] == [3, 3, 3, 3]
        assert torch.equal(table.load(), tiny_table.load())
        assert not store.partial(plan_tokens(config, tiny_zoo_config)).names()

    def test_makes_a_part_again_that_was_lost(self, make_store, tiny_zoo_config, tiny_tokens_config, monkeypatch):
        config = tiny_tokens_config.model_copy(update={"barrier_pairs": 0})
        store = make_store()
        publish = store.publish
        monkeypatch.setattr(store, "publish", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            build_tokens(config, tiny_zoo_config, store, SERIAL)
        work = plan_tokens(config, tiny_zoo_config)
        (part,) = store.files.list_names(str(work.ref))
        store.files.remove(f"{work.ref}/{part}")
        monkeypatch.setattr(store, "publish", publish)
        assert read_tokens(build_tokens(config, tiny_zoo_config, store, SERIAL)).load().isfinite().all()

    def test_processes_change_nothing(self, make_store, tiny_zoo_config, tiny_tokens_config, tiny_table, monkeypatch):
        config = tiny_tokens_config.model_copy(update={"barrier_pairs": 0})
        monkeypatch.setattr(build, "ROW_GROUP_BYTES", 5 * 4 * tiny_table.layout.weights)
        tokens = build_tokens(config, tiny_zoo_config, make_store(), ExecutionConfig(processes=2))
        assert torch.equal(read_tokens(tokens).load(), tiny_table.load())


class TestSettings:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dtype": "float8"}, "'float32', 'float16' or 'bfloat16'"),
            ({"token_dim": 0}, "greater than or equal to 1"),
            ({"running_statistics": "maybe"}, "'in', 'out' or 'conditioned'"),
            ({"canonical": False, "signs": True}, "signs and scales are parts of the canonical form"),
        ],
    )
    def test_what_means_nothing_is_refused_before_any_work(self, settings, message):
        with pytest.raises(ValueError, match=message):
            TokensConfig.model_validate(settings)

    def test_a_width_is_chosen_for_all_zoos(self, tiny_zoo_config):
        config = TokensConfig(token_dim=None)
        mlp = tiny_zoo_config.model_copy(update={"network": NetworkConfig(architecture="mlp")})
        widths = {
            zoos: fix_token_dim(config, zoos).token_dim for zoos in ((tiny_zoo_config,), (mlp,), (tiny_zoo_config, mlp))
        }
        assert all(32 <= width <= 512 for width in widths.values())
        assert len(set(widths.values())) > 1
        assert fix_token_dim(TokensConfig(token_dim=7), [tiny_zoo_config]).token_dim == 7
        assert plan_tokens(config, tiny_zoo_config).config["token_dim"] == widths[tiny_zoo_config,]
        with pytest.raises(ConfigError, match="token_dim must be given: the network and images of zoo 'read'"):
            fix_token_dim(config, [ReadConfig(name="read", source="somewhere")])

    def test_running_statistics_are_among_the_tokens_when_asked_for(self, store, tiny_zoo_config, monkeypatch):
        images = load_images(tiny_zoo_config.images)
        network = build_network(NetworkConfig(architecture="resnet18", width=4), 1, 4, 28)
        state = {name: torch.stack([value] * 4) for name, value in network.state_dict().items()}
        for name, value in state.items():
            if value.is_floating_point():
                state[name] = torch.rand(value.shape, generator=torch.Generator().manual_seed(len(name))) + 0.5
        assert images.size == 28
        zoo = tiny_zoo_config.model_copy(update={"network": NetworkConfig(architecture="resnet18", width=4)})
        index = pl.DataFrame(
            {"model": ["a", "b", "c", "d"], "epoch": 1, "split": None, "shard": "00000", "row": range(4)},
            schema_overrides={"split": pl.String},
        )
        files = {"index.parquet": to_parquet(index), "weights-00000.safetensors": save_tensors(state)}
        store.publish(plan_zoo(zoo), files, {})
        sizes = {}
        for statistics in ("in", "conditioned"):
            config = TokensConfig(running_statistics=statistics, barrier_pairs=0, train_fraction=0.5)
            table = read_tokens(build_tokens(config, zoo, store, SERIAL))
            assert table.layout.running_statistics == statistics
            sizes[statistics] = table.layout.weights
            aligned = table.layout.unflatten(table.load())
            assert ("bn1.running_mean" in aligned) == (statistics == "in")
            # Whatever moved, moved with its unit: the same values, channel by channel.
            if statistics == "in":
                units = torch.stack([aligned[f"bn1.{name}"] for name in ("weight", "bias", "running_mean")], dim=-1)
                before = torch.stack([state[f"bn1.{name}"] for name in ("weight", "bias", "running_mean")], dim=-1)
                assert (units.sort(dim=1).values == before.sort(dim=1).values).all()
                pairs = [{tuple(unit) for unit in model} for model in units.tolist()]
                assert pairs == [{tuple(unit) for unit in model} for model in before.tolist()]
        assert sizes["in"] == sizes["conditioned"] + 2 * 4 * (5 + 5 * 2 + 5 * 4 + 5 * 8)

    def test_a_zoo_that_is_not_of_its_network_is_refused(self, make_store, tiny_zoo, tiny_zoo_config, store):
        index, weights = load_weights(tiny_zoo)
        weights["module_list.0.weight"] = weights["module_list.0.weight"][:, :5]
        files = {"index.parquet": to_parquet(index), "weights-00000.safetensors": save_tensors(weights)}
        store.publish(plan_zoo(tiny_zoo_config), files, {})
        with pytest.raises(
            ConfigError, match=r"shard 00000: the weights do not fit the layout: module_list\.0\.weight"
        ):
            build_tokens(TokensConfig(), tiny_zoo_config, store, SERIAL)

    def test_an_empty_zoo_is_refused(self, store, tiny_zoo, tiny_zoo_config):
        index, _ = load_weights(tiny_zoo)
        store.publish(plan_zoo(tiny_zoo_config), {"index.parquet": to_parquet(index.clear())}, {})
        with pytest.raises(ConfigError, match=r"has no checkpoints; its rejected\.parquet says why"):
            build_tokens(TokensConfig(), tiny_zoo_config, store, SERIAL)
