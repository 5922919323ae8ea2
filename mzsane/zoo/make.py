"""One way to every zoo, wherever it comes from: trained here, read from others' checkpoints, or made sparse."""

from mzsane.config import AnyZooConfig, ExecutionConfig, ReadConfig, SparseConfig
from mzsane.metrics import NO_SINK, MetricSink
from mzsane.store.artifacts import Artifact, ArtifactStore, Work
from mzsane.zoo.read import plan_read, read_zoo
from mzsane.zoo.sparse import plan_sparse, sparsify_zoo
from mzsane.zoo.train import plan_zoo as plan_training
from mzsane.zoo.train import train_zoo


def plan_zoo(config: AnyZooConfig) -> Work:
    """Name the work of making a zoo."""
    if isinstance(config, ReadConfig):
        return plan_read(config)
    return plan_sparse(config) if isinstance(config, SparseConfig) else plan_training(config)


def make_zoo(
    config: AnyZooConfig, store: ArtifactStore, execution: ExecutionConfig | None = None, sink: MetricSink = NO_SINK
) -> Artifact:
    """Make a zoo, or open it when that was done before; the zoo that twins are made of is trained first.

    Raises:
        ConfigError: what it is made from cannot be had, or is not as the config says.
        WorkerError: a worker process was killed.
    """
    if isinstance(config, ReadConfig):
        return read_zoo(config, store, execution, sink)
    if isinstance(config, SparseConfig):
        train_zoo(config.zoo, store, execution, sink)
        return sparsify_zoo(config, store, execution, sink)
    return train_zoo(config, store, execution, sink)
