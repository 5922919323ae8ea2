"""Where the zoos of an ablation come from: trained here, read from others' checkpoints, or made sparse."""

from typing import Annotated, Any

from pydantic import Discriminator, Tag

from mzsane.config.base import ShownAsAnyOf
from mzsane.config.reading import ReadConfig
from mzsane.config.twins import TwinsConfig
from mzsane.config.zoo import ZooConfig


def _find_origin(value: Any) -> str:
    """Tell the kinds of zoos apart by the setting that only one of them needs."""
    if isinstance(value, ReadConfig | TwinsConfig | ZooConfig):
        return {ReadConfig: "read", TwinsConfig: "twins", ZooConfig: "train"}[type(value)]
    if isinstance(value, dict) and ("source" in value or "download" in value):
        return "read"
    return "twins" if isinstance(value, dict) and "zoo" in value else "train"


AnyZooConfig = Annotated[
    Annotated[ZooConfig, Tag("train")] | Annotated[ReadConfig, Tag("read")] | Annotated[TwinsConfig, Tag("twins")],
    Discriminator(_find_origin),
    ShownAsAnyOf(),
]
