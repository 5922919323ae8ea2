"""How and where the work is done."""

from typing import Literal

from pydantic import Field, model_validator

from mzsane.config.base import Config


class ExecutionConfig(Config):
    """How and where the work is done; no setting here is part of the name of a result.

    Most change only how fast it is there. These change its last bits, and what is drawn for dropout: the device, which
    has another engine, with chunk_models on a GPU; threads; ranks and compile. An artifact's manifest says what it was
    made with, and a comparison says so where arms differ in it.
    """

    processes: int | None = Field(
        None, ge=1, le=1024, description="worker processes for populations; all cores if unset"
    )
    arms: int | None = Field(
        None,
        ge=1,
        le=1024,
        description="arms that run at the same time and share the cores, when an ablation is started by hand; if unset "
        "one a core on a CPU, where each has 4 GiB of memory, and one on a GPU",
    )
    threads: int = Field(
        1,
        ge=1,
        le=1024,
        description="threads that train a backbone, draw samples and measure distances, in each arm; more change the "
        "last bits of what is computed, and are faster for a large backbone that has the cores to itself",
    )
    checkpoint_steps: int = Field(100, ge=1, le=1_000_000_000, description="pre-training steps between checkpoints")
    chunk_models: int | None = Field(
        None,
        ge=1,
        le=1_000_000,
        description="models that are trained and saved together in a zoo; if unset 4 on a CPU, 512 on a GPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="where populations and backbones are trained and used, and models run; auto takes the GPU if there "
        "is one",
    )
    ranks: int = Field(
        1,
        ge=1,
        le=1024,
        description="processes that pre-train one backbone together, each with its part of every batch and a GPU of "
        "its own; more than one are started by torchrun",
    )
    sharding: Literal["replicate", "shard"] = Field(
        "replicate",
        description="what each of several processes holds: all of the backbone (DDP), or a part of its weights and of "
        "AdamW's moments (FSDP), for one that does not fit",
    )
    compile: bool | None = Field(
        None, description="compile the backbone with torch.compile before it is trained; if unset on a GPU only"
    )

    @model_validator(mode="after")
    def _check_ranks(self) -> "ExecutionConfig":
        if self.sharding == "shard" and self.ranks == 1:
            raise ValueError("sharding shard needs more than one of ranks to share the backbone: raise ranks")
        return self
