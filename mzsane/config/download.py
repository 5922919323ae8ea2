"""Downloads of published zoos: what to fetch, and in pieces of which size."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from mzsane.config.base import Address, Config, Name

Epoch = Annotated[int, Field(ge=0)]


class DownloadConfig(Config):
    """A file on a server: a published zoo by its name or address, whole or only some of its epochs and members."""

    name: Name = Field(description="what people call this download")
    source: Address = Field(
        description="name in the catalogue (python -m flows.zoo list), or http(s) address of a file"
    )
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
