"""A backbone over several processes: a copy in each (DDP), or a part of it in each (FSDP), and its state as a whole.

What is saved is the same in both, and in one process, so that a training can go on with another number of them.

`torch.distributed`'s tensors and checkpoints take a second to import, and are imported where they are needed.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from mzsane.backbone.autoencoder import Autoencoder
from mzsane.backbone.distributed.ranks import Ranks


def spread(model: Autoencoder, ranks: Ranks, shard: bool) -> nn.Module:
    """Return what is called in training: the model itself in one process, wrapped or sharded in several."""
    if ranks.count == 1:
        return model
    if not shard:
        return DistributedDataParallel(model, gradient_as_bucket_view=True)
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(ranks.device.type, (ranks.count,))
    for block in (*model.encoder, *model.decoder):
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def is_sharded(model: nn.Module) -> bool:
    """Tell whether this process has only a part of a model's weights."""
    return hasattr(model, "set_requires_gradient_sync")  # an FSDPModule's


def hold_gradients(spread_model: nn.Module, hold: bool) -> AbstractContextManager[None]:
    """Return a block in which the backward pass exchanges no gradients, when they are held back."""
    if (exchange := getattr(spread_model, "set_requires_gradient_sync", None)) is not None:
        exchange(not hold)
    elif hold and isinstance(spread_model, DistributedDataParallel):
        held: AbstractContextManager[None] = spread_model.no_sync()
        return held
    return nullcontext()


def gather_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors as wholes; parts of sharded ones are put together, in all processes."""
    return {
        name: value.full_tensor() if hasattr(value, "full_tensor") else value  # a DTensor's
        for name, value in tensors.items()
    }


def share_tensors(tensors: Mapping[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return whole tensors as what others of the same names are: on their device, and this process's part of them."""
    shared = {name: tensors[name].to(other.device) for name, other in like.items()}
    for name, other in like.items():
        if (mesh := getattr(other, "device_mesh", None)) is not None:  # a DTensor's
            from torch.distributed.tensor import distribute_tensor

            shared[name] = distribute_tensor(shared[name], mesh, getattr(other, "placements", None))
    return shared


def gather_state(model: Autoencoder, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return the states of a model and its optimizer; of sharded ones in the first process alone, by all together."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, get_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=is_sharded(model))
    return {
        "model": get_model_state_dict(model, options=options),
        "optimizer": get_optimizer_state_dict(model, optimizer, options=options),
    }


def restore_state(model: Autoencoder, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Set what `gather_state` has returned; each process has read the whole."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict, set_optimizer_state_dict

    options = StateDictOptions(full_state_dict=True)
    set_model_state_dict(model, state["model"], options=options)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)
