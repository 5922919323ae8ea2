"""What `test_pretended_gpu` has done on the pretended GPU, in a process of its own."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.func import vmap

from mzsane.backbone.checkpoints import Checkpoints
from mzsane.backbone.distributed.ranks import Ranks
from mzsane.backbone.inference import decode_models, encode_models, load_backbone
from mzsane.backbone.pretrain import plan_backbone
from mzsane.backbone.refinement import refine_latents
from mzsane.backbone.training import Training
from mzsane.composition import TokenSlice, choose_checkpoints
from mzsane.config import AblationConfig, BackboneConfig, ExecutionConfig, SliceConfig
from mzsane.metrics import NO_SINK
from mzsane.networks.behaviour import NetworkBehaviour
from mzsane.networks.build import build_network
from mzsane.plan import plan_ablation
from mzsane.probing.features import extract_features
from mzsane.problems.images.dataset import load_images
from mzsane.report.latents import map_latents
from mzsane.store.artifacts import ArtifactRef, ArtifactStore
from mzsane.tokens.store import read_tokens
from mzsane.tokens.subject import find_origin
from tests.pipeline.golden import CONFIG
from tests.pretended_gpu import NAME, PretendedTensor, clear_counts, reads

GPU = ExecutionConfig(device="cuda", processes=1)


def make_config() -> AblationConfig:
    """Make the golden pipeline's config with all that computes on a device: behaviour, refinement, guidance, rates."""
    config = copy.deepcopy(CONFIG)
    config["zoos"] = config["zoos"][:1]
    config["compositions"] = [{"name": "letters", "slices": [{"zoo": "letters", "models": 4}]}]
    config["backbone"] |= {"steps": 4, "behaviour": 0.3, "averaging": 0.9, "latent_noise": 0.1, "validations": 1}
    config["targets"] = config["targets"][:1]
    config["sampling"] |= {"guidance_steps": 2, "refine_anchors": True}
    config["evaluation"] |= {"distillation_steps": [2], "learning_rates": [0.001, 0.003]}
    return AblationConfig.model_validate(config)


def run_pipeline(folder: str) -> list[tuple[str, str, dict[str, Any]]]:
    """Run every stage of a small pipeline but the report; return kind, address and counts of each artifact."""
    store = ArtifactStore(folder)
    stages = [stage for stage in plan_ablation(make_config()) if stage.work.kind != "comparison"]
    made = [stage.run(store, GPU, NO_SINK) for stage in stages]
    return [(artifact.ref.kind, str(artifact.ref), dict(artifact.manifest.counts)) for artifact in made]


def use_backbone(folder: str, backbone: str, tokens: str) -> dict[str, float]:
    """Encode, decode, refine and take features on both devices; return the largest differences."""
    store = ArtifactStore(folder)
    table = read_tokens(store.open(ArtifactRef.parse(tokens)))
    flat_BP, layout = table.load()[:3], table.layout
    origin = find_origin(table.artifact)
    assert origin is not None
    images = load_images(origin.images)
    network = build_network(origin.network, images.channels, images.classes, images.size)
    found = []
    for device in ("cpu", NAME):
        model, config = load_backbone(store.open(ArtifactRef.parse(backbone)), device)
        assert isinstance(model.token_in.weight, PretendedTensor) == (device == NAME)
        behaviour = NetworkBehaviour(network, layout, images.splits["train"].images_NCHW, 8, "logits")
        latents_BTL = encode_models(model, layout, flat_BP, config.window)
        refined_BTL = refine_latents(model, config, layout, flat_BP, latents_BTL, behaviour, steps=3)
        places = map_latents(
            store.open(ArtifactRef.parse(backbone)), {"letters": table.artifact.ref}, {"letters"}, 0, store, device
        )
        features = extract_features(model, layout, flat_BP, config.window)
        found.append(
            {
                "latents": latents_BTL,
                "decoded": decode_models(model, layout, latents_BTL, config.window),
                "refined": refined_BTL,
                "map": places.select("x", "y").to_torch(),
                **{name: torch.from_numpy(value) for name, value in features.items()},
            }
        )
    here, there = found
    return {name: float((here[name] - there[name]).abs().max()) for name in here}


def count_waits(folder: str, tokens: str, settings: dict[str, Any]) -> dict[str, int]:
    """Return how often the host waits in a step of pre-training, and for a block of windows beside it."""
    store = ArtifactStore(folder)
    config = BackboneConfig.model_validate({**CONFIG["backbone"], "steps": 6, **settings})
    part = TokenSlice(ArtifactRef.parse(tokens), SliceConfig(zoo="letters", models=4))
    work = plan_backbone(config, [part], 0, "checkpoints")
    chosen = choose_checkpoints([part], 0, store)
    checkpoints = Checkpoints(store.partial(work))
    with Training(config, 0, chosen, "checkpoints", checkpoints, GPU, NO_SINK, Ranks(device=NAME)) as training:
        training._take_step(log=False)
        clear_counts()
        training.step = 1
        training._take_step(log=False)  # of a block that is there already
        waits = {"step": reads.total()}
        clear_counts()
        training.feeder._make(number=9)
        return waits | {"block": reads.total()}


def do_what_cuda_refuses() -> list[str]:
    """Return for each thing that CUDA does not do what is raised, or that nothing is."""
    here, there = torch.ones(3, 4), torch.ones(3, 4).to(NAME)
    number = torch.tensor(2.0)
    things: list[Callable[[], object]] = [
        lambda: there + here,
        lambda: torch.cat([there, here]),
        lambda: here[there.bool()],
        lambda: number.add_(there.sum()),
        lambda: nn.functional.linear(there, here),
        lambda: vmap(lambda row: row + here[0])(there),
        lambda: torch.randn(3, device=NAME, generator=torch.Generator()),
        lambda: there.numpy(),
        lambda: np.asarray(there),
    ]
    said = []
    for thing in things:
        try:
            thing()
            said.append("nothing")
        except (RuntimeError, TypeError) as error:
            said.append(str(error))
    return said


def do_what_cuda_does() -> dict[str, int]:
    """Return how often the host waits in what CUDA does without waiting, and in what it waits for."""
    there, number = torch.ones(3, 4).to(NAME), torch.tensor(2.0)
    weight_IO = nn.Parameter(torch.ones(4, 2).to(NAME))
    optimizer = torch.optim.AdamW([weight_IO], lr=0.1, fused=True)
    clear_counts()
    for _ in range(2):
        loss = vmap(lambda row: (row @ weight_IO * number).sum())(there).sum()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([weight_IO], 1.0)
        optimizer.step()
    there[there > 2] = 0.0
    waits = {"trains": reads.total()}
    things: dict[str, Callable[[], object]] = {
        "item": lambda: loss.detach().item(),
        "float": lambda: float(loss.detach()),
        "bool": lambda: bool(loss > 0),
        "tolist": lambda: there.tolist(),
        "cpu": lambda: there.cpu(),
        "copy": lambda: torch.empty(3, 4).copy_(there),
        "mask": lambda: there[there > 0],
        "nonzero": lambda: there.nonzero(),
        "unique": lambda: there.unique(),
    }
    for name, thing in things.items():
        clear_counts()
        thing()
        waits[name] = reads.total()
    return waits
