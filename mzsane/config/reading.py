"""Reading a zoo that others trained, and downloading a published one."""

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mzsane.addresses import show_address
from mzsane.config.base import Address, Config, Fraction, Name
from mzsane.config.images import ImagesConfig
from mzsane.config.zoo import NetworkConfig

Metric = Literal[
    "train_loss",
    "train_accuracy",
    "val_loss",
    "val_accuracy",
    "test_loss",
    "test_accuracy",
    "generalisation_gap",
    "sparsity",
]

Epoch = Annotated[int, Field(ge=0)]
_LATER = ("key", "lists")


class DownloadConfig(Config):
    """A file on a server: a published zoo by its name or address, whole or only some of its epochs and members."""

    name: Name = Field(description="what people call this download")
    source: Address = Field(description="name in the catalogue (mzsane zoo list), or http(s) address of a file")
    epochs: tuple[Epoch, ...] | None = Field(
        None,
        min_length=1,
        description="only checkpoints of these epochs, with the params.json and result.json of their models; "
        "all if unset",
    )
    members: tuple[str, ...] = Field(
        (),
        description="only members of the archive that one of these shell patterns fits (star: anything, question mark: "
        "a character); all if none; with epochs, all checkpoints",
    )
    sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="sha256 of the whole file, 64 hex digits; not checked if unset"
    )
    md5: str | None = Field(
        None, pattern=r"^[0-9a-f]{32}$", description="md5 of the whole file, 32 hex digits; not checked if unset"
    )
    piece_bytes: int = Field(
        1 << 27,
        ge=1 << 16,
        le=1 << 32,
        description="bytes a piece: what is in flight is lost when a download is killed, and two pieces are held in "
        "memory; a larger member is a piece of its own",
    )

    @field_validator("sha256", "md5", mode="before")
    @classmethod
    def _lower(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("epochs")
    @classmethod
    def _sort(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        return tuple(sorted(set(value))) if value is not None else None

    @field_validator("source")
    @classmethod
    def _check_source(cls, value: str) -> str:
        parts = urlsplit(value)
        if "://" in value and (parts.scheme not in ("http", "https") or not parts.hostname):
            raise ValueError(f"only http and https addresses can be downloaded, not {parts.scheme}://{parts.hostname}")
        return value

    @model_validator(mode="after")
    def _check_selection(self) -> "DownloadConfig":
        if self.selective and (self.sha256 or self.md5):
            raise ValueError(
                "sha256 and md5 are of the whole file and cannot be checked when only epochs or members are fetched: "
                "leave them out; the CRC of every member is checked"
            )
        return self

    @property
    def selective(self) -> bool:
        """Whether only a part of the archive is asked for."""
        return self.epochs is not None or bool(self.members)


class MetricFilter(Config):
    """Keeps the checkpoints with a metric in a range."""

    metric: Metric = Field(
        "test_accuracy",
        description="which metric: losses in nats, accuracies as the zoo gives them (mostly 0 to 1), "
        "generalisation_gap as train minus test accuracy, sparsity as the share of weights that are zero; a checkpoint "
        "without it, or where it is not finite, is left out",
    )
    minimum: float | None = Field(
        None, description="smallest value that is kept, in the metric's unit; no limit if unset"
    )
    maximum: float | None = Field(
        None, description="largest value that is kept, in the metric's unit; no limit if unset"
    )

    @model_validator(mode="after")
    def _check_range(self) -> "MetricFilter":
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"a filter on {self.metric} needs minimum, maximum or both")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum ({self.minimum}) of {self.metric} cannot be more than maximum ({self.maximum})")
        return self


class ReadConfig(Config):
    """Checkpoints that others trained, read into a zoo."""

    name: Name = Field(description="what compositions and targets call this zoo")
    source: Address | None = Field(
        None,
        description="where the checkpoints are: a folder, an fsspec URL such as s3://bucket/prefix, a file .zip, .tar, "
        ".tar.gz or .tgz in either, or hf://owner/name (needs the package huggingface_hub)",
    )
    download: DownloadConfig | None = Field(
        None, description="a published zoo to fetch first, in place of a source; it stays in the store as an archive"
    )
    format: Literal["auto", "ray-tune", "files"] = Field(
        "auto",
        description="ray-tune: the published zoos' folders (params.json, result.json, checkpoint_000NNN/checkpoints); "
        "files: .pt .pth .th .bin .ckpt .pth.tar .safetensors .npz files in any folders, shards with their index too; "
        "auto: ray-tune if there is such a folder",
    )
    epochs: tuple[int, ...] | None = Field(
        None,
        min_length=1,
        description="epochs to read; one that a model does not have is listed as rejected; all if unset",
    )
    epoch_range: tuple[int, int] | None = Field(
        None, description="first and last epoch to read, both included; what a model has of them is read; all if unset"
    )
    where: tuple[MetricFilter, ...] = Field((), description="filters on metrics; a checkpoint must pass all of them")
    pattern: str | None = Field(
        None,
        description="for files: regular expression searched for in each path below the source, with groups that are "
        "named (as Python names them) model, epoch or both; files without a match are not read. If unset, the "
        "model is the path without its suffix, and the epoch the number after epoch, step, iter, checkpoint or their "
        "like, in the name or in that of a folder: checkpoints of one run are one model. A checkpoint whose epoch is "
        "told by nothing counts as epoch 0",
    )
    key: str | None = Field(
        None,
        min_length=1,
        description="where the weights are in each file: its keys with dots between them, such as netG or ema.model; "
        "also the beginning that the tensors' names share. If unset, found by the usual names",
    )
    lists: Literal["epochs", "models"] | None = Field(
        None,
        description="what a list of networks in a file is: epochs of one model, or several models; refused if unset",
    )
    metadata: Address | None = Field(
        None,
        description="table (.csv, .json, .jsonl or .parquet) inside the source or at an address of its own, with a "
        "column file (path below the source) or model, and any of epoch, split (train, val, test), dataset and metrics "
        "(train_loss, test_acc, ...); other columns become part of the recipe",
    )
    network: NetworkConfig | None = Field(
        None,
        description="the architecture of all checkpoints; others are rejected. If unset, mzsane's own ones are "
        "recognised by names and shapes, and of any other architecture the zoo can be tokenized but not scored",
    )
    images: ImagesConfig | None = Field(None, description="the image dataset that the models were trained on, if known")
    measure: bool = Field(
        False,
        description="measure loss and accuracy on the splits of images, in place of what the source says, and filter "
        "by what was measured; needs network, or settings in the source that tell the activation",
    )
    dataset: str | None = Field(
        None, min_length=1, description="label of the dataset in the index; the source of the images if unset"
    )
    max_rejected: Fraction = Field(
        0.5, description="share of the checkpoints that may be unusable; when more are, nothing is published"
    )
    max_file_bytes: int = Field(
        2**30,
        ge=1,
        le=2**50,
        description="largest checkpoint, bytes, both as a file, unpacked from an archive, and in memory as float32",
    )
    revision: str = Field(
        "",
        description="any label; a zoo is read once per address and label, so change it when the content behind the "
        "address has changed, which is said when it has",
    )

    @model_validator(mode="after")
    def _check_source(self) -> "ReadConfig":
        if (self.source is None) == (self.download is None):
            raise ValueError("a zoo that is read needs either source or download")
        return self

    @model_validator(mode="after")
    def _check_measure(self) -> "ReadConfig":
        if self.measure and self.images is None:
            raise ValueError("measure needs images to measure on: set images, or leave measure out")
        return self

    @model_validator(mode="after")
    def _check_epochs(self) -> "ReadConfig":
        if self.epochs is not None and self.epoch_range is not None:
            raise ValueError("epochs and epoch_range cannot both be set")
        if self.epochs is not None and (min(self.epochs) < 0 or len(set(self.epochs)) != len(self.epochs)):
            raise ValueError(f"epochs must be distinct and not negative, not {list(self.epochs)}")
        if self.epoch_range is not None and not 0 <= self.epoch_range[0] <= self.epoch_range[1]:
            raise ValueError(f"epoch_range must be a first epoch of 0 or more and a last one, not {self.epoch_range}")
        return self

    @model_validator(mode="after")
    def _check_pattern(self) -> "ReadConfig":
        if self.pattern is None:
            return self
        if self.format == "ray-tune":
            raise ValueError("pattern has no meaning for format ray-tune: leave it out")
        try:
            groups = set(re.compile(self.pattern).groupindex)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r} is not a regular expression: {error}") from None
        if not groups or groups - {"model", "epoch"}:
            raise ValueError(f"pattern {self.pattern!r} needs a group (?P<model>...) or (?P<epoch>...), and no other")
        return self

    def recipe(self) -> dict[str, Any]:
        """Return the settings that shape the result: a path from the root, and no names that people give.

        Those that came later are left out while they are unset.
        """
        settings = {name: value for name, value in super().recipe().items() if name not in _LATER or value is not None}
        if settings.get("source") is not None:
            settings["source"] = _make_absolute(settings["source"])
        if settings.get("download") is not None:
            settings["download"].pop("name", None)
        return settings

    @property
    def origin(self) -> str:
        """Where the checkpoints come from, for people."""
        return show_address(self.source or (self.download.source if self.download else ""))

    @property
    def models(self) -> None:
        """Number of models: not known before the zoo has been read."""

    @property
    def keep_epochs(self) -> None:
        """Number of epochs of each model: not known before the zoo has been read."""

    @property
    def dataset_label(self) -> str | None:
        """What the index calls the dataset, when nothing else says it."""
        return self.dataset or (self.images.source if self.images else None)

    def takes(self, epoch: int) -> bool:
        """Tell whether an epoch is asked for."""
        if self.epochs is not None:
            return epoch in self.epochs
        return self.epoch_range is None or self.epoch_range[0] <= epoch <= self.epoch_range[1]


def _make_absolute(address: str) -> str:
    """Return a path as it is from anywhere; other addresses as they are."""
    return address if "://" in address else os.path.abspath(Path(address).expanduser())  # noqa: PTH100  # links stay what they are called
