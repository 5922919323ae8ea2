"""Every setting of mzsane, as frozen pydantic models. Unknown keys are errors; units are in the descriptions.

What changes a result is a setting of a stage and part of its fingerprint. What only changes how fast or where the
work is done is in `ExecutionConfig` and part of no fingerprint. Names are labels: they are part of no fingerprint
either, so that two ablations that call one zoo by different names share it.
"""

from mzsane.config.ablation import AblationConfig, CompositionConfig, SliceConfig, TargetConfig
from mzsane.config.backbone import BackboneConfig
from mzsane.config.base import Config
from mzsane.config.execution import ExecutionConfig
from mzsane.config.images import (
    IMAGE_SIZE,
    AnyImagesConfig,
    DigitsConfig,
    FilesConfig,
    GlyphsConfig,
    ImagesConfig,
    TorchvisionConfig,
)
from mzsane.config.loading import explain_validation, load_config, validate_config
from mzsane.config.questions import QuestionConfig
from mzsane.config.reading import DownloadConfig, MetricFilter, ReadConfig
from mzsane.config.sampling import EvaluationConfig, SamplingConfig
from mzsane.config.tokens import TokensConfig
from mzsane.config.zoo import FactorsConfig, NetworkConfig, RecipeConfig, ZooConfig
from mzsane.config.zoos import AnyZooConfig, SparseConfig

__all__ = [
    "IMAGE_SIZE",
    "AblationConfig",
    "AnyImagesConfig",
    "AnyZooConfig",
    "BackboneConfig",
    "CompositionConfig",
    "Config",
    "DigitsConfig",
    "DownloadConfig",
    "EvaluationConfig",
    "ExecutionConfig",
    "FactorsConfig",
    "FilesConfig",
    "GlyphsConfig",
    "ImagesConfig",
    "MetricFilter",
    "NetworkConfig",
    "QuestionConfig",
    "ReadConfig",
    "RecipeConfig",
    "SamplingConfig",
    "SliceConfig",
    "SparseConfig",
    "TargetConfig",
    "TokensConfig",
    "TorchvisionConfig",
    "ZooConfig",
    "explain_validation",
    "load_config",
    "validate_config",
]
