"""The code for GPUs, run on a pretended one: no tensors of both devices meet, and a step of training reads nothing."""

import copy
import shutil
from contextlib import nullcontext
from types import SimpleNamespace

import polars as pl
import pytest
import torch

from mzsane.backbone import machine
from mzsane.backbone.pretrain import pretrain
from mzsane.composition import TokenSlice
from mzsane.config import AblationConfig, BackboneConfig, ExecutionConfig, NetworkConfig, SamplingConfig, SliceConfig
from mzsane.evaluation.selection import draw_samples
from mzsane.layout.running import read_weights
from mzsane.layout.token_layout import TokenLayout
from mzsane.metrics import NO_SINK
from mzsane.networks.build import build_network, initialise_network
from mzsane.networks.disagreement import classify_models
from mzsane.networks.run import ModelSet, run_models, score_models
from mzsane.plan import plan_ablation
from mzsane.probing.stage import probe_backbone
from mzsane.problems.images.dataset import load_images
from mzsane.report.latents import map_latents
from mzsane.sampling.populations import read_populations
from mzsane.sampling.target import Target
from mzsane.store.artifacts import ArtifactStore
from mzsane.store.serialisation import load_tensors
from mzsane.zoo.shards import load_weights
from mzsane.zoo.train import train_zoo
from tests.pipeline.golden import CONFIG
from tests.pretended_gpu import MixedDevicesError, PretendedGpu

GPU = ExecutionConfig(processes=1, device="cuda", compile=False)
CPU = ExecutionConfig(processes=1, device="cpu")


class TestTheDevice:
    def test_tensors_know_where_they_are(self):
        with PretendedGpu():
            there = torch.randn(4, 3, device="cuda")
            here = torch.randn(3, 5)
            assert {there.device.type, (there @ there.T).device.type, there[:2].sum().device.type} == {"cuda"}
            assert (here.device.type, here.to(there.device).device.type, here.to(there).is_cuda) == (
                "cpu",
                "cuda",
                True,
            )
            assert torch.nn.Linear(3, 2).to("cuda").weight.device.type == "cuda"
        assert here.device.type == "cpu"

    def test_tensors_of_both_devices_cannot_meet(self):
        with PretendedGpu():
            there, here = torch.randn(4, 3, device="cuda"), torch.randn(3, 5)
            with pytest.raises(MixedDevicesError, match="aten::mm"):
                there @ here
            with pytest.raises(MixedDevicesError):
                torch.func.vmap(lambda matrix: there @ matrix)(torch.randn(6, 3, 2))
            with pytest.raises(TypeError, match="numpy"):
                there.numpy()
            assert (there * torch.tensor(2.0)).is_cuda  # single numbers of the host can be used, as on a GPU

    def test_what_the_host_reads_is_counted(self):
        with PretendedGpu() as gpu:
            there = torch.ones(3, device="cuda")
            assert not gpu.reads
            assert there.sum().item() == 3
            assert there.tolist() == [1, 1, 1]
            assert bool((there > 0).all())
            there.cpu()
        assert gpu.reads == {"item": 2, "tolist": 1, "cpu": 1}

    def test_gradients_go_over_devices_and_are_where_their_tensors_are(self):
        with PretendedGpu():
            here = torch.ones(3, requires_grad=True)
            layer = torch.nn.Linear(3, 1).to("cuda")
            layer(here.to("cuda")).sum().backward()
            assert (here.grad.device.type, layer.weight.grad.device.type) == ("cpu", "cuda")
            torch.optim.AdamW(layer.parameters()).step()


def test_a_zoo_is_trained_as_one_program(tiny_zoo_config, tiny_zoo, store):
    with PretendedGpu():
        zoo = train_zoo(tiny_zoo_config, store, GPU)
    assert zoo.manifest.counts["engine"] == "batched"
    index, weights = load_weights(zoo)
    _, expected = load_weights(tiny_zoo)
    assert len(index) == 12
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("more", [{}, {"behaviour": 0.3}, {"latent_noise": 0.1, "averaging": 0.9, "erasing": 0.2}])
def test_a_backbone_is_trained_and_its_steps_read_nothing(
    tiny_tokens, make_store, tiny_backbone_config, more, monkeypatch
):
    monkeypatch.setitem(machine._PEAK_SIZE, "cuda", 64)  # the speed of a GPU is nothing to measure here
    slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]
    reads = []
    for steps in (4, 20):  # numbers for people are read in the first and the last step of both
        config = BackboneConfig.model_validate(tiny_backbone_config.model_dump() | more | {"steps": steps})
        with PretendedGpu() as gpu:
            there = pretrain(config, slices, 0, make_store(), GPU)
        assert there.manifest.counts["device"] == "cuda"
        reads.append(gpu.reads)
    per_step = {name: count / 16 for name, count in (reads[1] - reads[0]).items()}
    # A behavioural step asks once which models of its windows are whole.
    assert per_step == ({"nonzero": 1.0} if "behaviour" in more else {})
    here = pretrain(config, slices, 0, make_store(), CPU)
    expected, weights = (load_tensors(each.path("weights.safetensors").read_bytes())[0] for each in (here, there))
    for name, value in expected.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-4)


def test_samples_are_drawn_refined_and_guided_there(tiny_tokens, tiny_zoo_config, make_store, tiny_backbone_config):
    store = make_store()
    slices = [TokenSlice(tiny_tokens.ref, SliceConfig(zoo="tiny", models=3))]
    backbone = pretrain(tiny_backbone_config, slices, 0, store, CPU)
    config = SamplingConfig(anchors=3, bandwidth=0.1, samples=4, keep=2, refine_anchors=True, guidance_steps=3)
    target = Target(tiny_zoo_config.network, tiny_zoo_config.images, tiny_tokens.ref)
    made = []
    for execution in (GPU, CPU):
        own = make_store()
        shutil.copytree(f"{store.root}/{backbone.ref}", f"{own.root}/{backbone.ref}")
        with PretendedGpu() if execution is GPU else nullcontext() as gpu:
            samples = draw_samples(config, target, backbone.ref, slices, [0], 0, own, execution)
            probes = probe_backbone(backbone.ref, slices, [tiny_tokens.ref], 0, own, execution)
        made.append((read_populations(samples)[0], pl.read_parquet(probes.path("probes.parquet"))))
        if gpu:
            assert gpu.reads["cpu"] > 0
    (there, told), (here, expected) = made
    for name, value in here.items():
        torch.testing.assert_close(there[name], value, rtol=1e-2, atol=1e-3)
    assert told.columns == expected.columns
    assert len(told) == len(expected)


def test_every_stage_runs_there(tmp_path, monkeypatch):
    """Fine-tuning, distillation, baselines, novelty and the map of latents too, with all that looks at images."""
    monkeypatch.setitem(machine._PEAK_SIZE, "cuda", 64)
    config = copy.deepcopy(CONFIG)
    config["zoos"], config["targets"] = config["zoos"][:1], config["targets"][:1]
    config["compositions"] = [{"name": "letters", "slices": [{"zoo": "letters", "models": 4}]}]
    config["backbone"] |= {"steps": 4, "behaviour": 0.3, "validations": 1}
    config["sampling"] |= {"guidance_steps": 2, "refine_anchors": True}
    config["evaluation"] |= {"distillation_steps": [2], "learning_rates": [0.001, 0.003]}
    ablation = AblationConfig.model_validate(config)
    store, stages = ArtifactStore(str(tmp_path / "store")), plan_ablation(ablation)
    made = {}
    with PretendedGpu():
        for stage in stages[:-1]:  # the last one draws the report
            made[stage.work.kind] = stage.run(store, GPU, NO_SINK)
        latents = [
            map_latents(made["backbone"], {"letters": made["tokens"].ref}, set(), 0, store, torch.device(name))
            for name in ("cuda", "cpu")
        ]
    assert {made[kind].manifest.counts["device"] for kind in ("zoo", "backbone", "baselines", "scores")} == {"cuda"}
    there, here = (places.select("x", "y").to_torch() for places in latents)
    torch.testing.assert_close(there, here, rtol=1e-3, atol=1e-3)
    scores = pl.concat(pl.read_parquet(made[kind].path("scores.parquet")) for kind in ("baselines", "scores"))
    assert {"samples", "distilled_init", "random_init", "flat_noise", "zoo"} <= set(scores["method"])
    assert scores["accuracy"].is_between(0, 1).all()
    assert scores["error_overlap"].count() > 0  # models were compared by their errors


@pytest.mark.parametrize("statistics", ["in", "conditioned"])
@pytest.mark.parametrize("memory", [2**33, 1], ids=["together", "one by one"])
def test_models_say_the_same_there_whatever_there_is_room_for(tiny_zoo_config, statistics, memory, monkeypatch):
    images = load_images(tiny_zoo_config.images)
    network = NetworkConfig(architecture="resnet18", width=4)
    built = [build_network(network, images.channels, images.classes, images.size) for _ in range(3)]
    for seed, one in enumerate(built):
        initialise_network(one, "kaiming_uniform", torch.Generator().manual_seed(seed))
    layout = TokenLayout.from_network(built[0], 51, statistics)
    flat_NP = torch.stack([read_weights(layout, one) for one in built])
    models = ModelSet(network, tiny_zoo_config.images, layout, flat_NP, ("relu", "gelu", "relu"))
    shown_NCHW = images.splits["val"].images_NCHW
    with PretendedGpu():
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(total_memory=memory))
        there = run_models(models, images, shown_NCHW, torch.device("cuda")).cpu()
        judged = classify_models(models, GPU)
    torch.testing.assert_close(there, run_models(models, images, shown_NCHW, torch.device("cpu")), rtol=1e-3, atol=1e-3)
    assert not torch.allclose(there[0], there[1])
    assert torch.equal(judged, classify_models(models, CPU))


def test_models_are_scored_as_one_program(tiny_table, tiny_zoo_config):
    models = ModelSet(tiny_zoo_config.network, tiny_zoo_config.images, tiny_table.layout, tiny_table.load())
    with PretendedGpu() as gpu:
        there = score_models(models, "test", GPU)
    here = score_models(models, "test", CPU)
    assert [score.accuracy for score in there] == [score.accuracy for score in here]
    assert gpu.reads
