"""torchvision, opened so that it also works beside a torch that was built without CUDA."""

import importlib
import sys
from functools import cache
from types import ModuleType
from typing import Any

import torch

from mzsane.errors import ConfigError

_NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_schemas: list[Any] = []  # kept alive: a library that is collected takes its operators with it


@cache
def open_torchvision() -> ModuleType:
    """Import torchvision with its datasets and models.

    Its wheels are built for CUDA. Beside a CPU build of torch their operators do not load, and the import fails at the
    first one that is looked up; with the schemas of two of them defined, everything but detection works.

    Raises:
        ConfigError: torchvision is not installed or does not fit the installed torch.
    """
    try:
        return _import_all()
    except ImportError as error:
        raise ConfigError(f"torchvision cannot be imported: {error}") from None
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise ConfigError(f"torchvision does not fit this torch: {error}") from None
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}{_NMS}")
    _schemas.append(library)
    return _import_all()


def _import_all() -> ModuleType:
    torchvision = importlib.import_module("torchvision")
    for part in ("datasets", "models"):
        importlib.import_module(f"torchvision.{part}")
    return torchvision
