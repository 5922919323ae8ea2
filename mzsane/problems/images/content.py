"""What images of one's own are known by: a digest of what is in their files, wherever they lie.

Reading every byte takes as long as loading the images. So a digest is kept in the cache, under the names, sizes and
times of the files, and planning again costs a look at the folder.
"""

import hashlib
import os
from pathlib import Path
from typing import Any, TypeVar, cast

from mzsane.config import FilesConfig
from mzsane.config.base import Config
from mzsane.errors import ConfigError
from mzsane.problems.images.folders import list_images
from mzsane.problems.images.pixels import show_path
from mzsane.store.cache import Cache

_DIGEST_BYTES = 16
_BLOCK = 2**20
AnyConfig = TypeVar("AnyConfig", bound=Config)


def pin_images(config: AnyConfig) -> AnyConfig:
    """Return a config in which all images of one's own have their content, so that it is part of the fingerprint.

    Images that are not there keep what the config says of them: a plan can be made without them, but no work done.
    """
    if isinstance(config, FilesConfig):
        content = None if config.content is not None else _measure(config)
        return config if content is None else cast(AnyConfig, config.model_copy(update={"content": content}))
    pinned = {name: _pin(value) for name, value in config}
    changed = {name: value for name, value in pinned.items() if value is not getattr(config, name)}
    return config.model_copy(update=changed) if changed else config


def _pin(value: Any) -> Any:
    if isinstance(value, Config):
        return pin_images(value)
    if isinstance(value, tuple):
        items = tuple(map(_pin, value))
        return items if any(new is not old for new, old in zip(items, value, strict=True)) else value
    return value


def check_content(config: FilesConfig) -> None:
    """Check that the files still hold the images that the config was planned with.

    Raises:
        ConfigError: they hold others.
    """
    if config.content is None:
        return
    found = _measure(config)
    if found is not None and found != config.content:
        raise ConfigError(
            f"the images in {show_path(config.train)} are others than those that this was planned with (content "
            f"{', '.join(found)}, not {', '.join(config.content)}): put those back, or run again with these"
        )


def _measure(config: FilesConfig) -> tuple[str, ...] | None:
    places = [locate_data(path) for path in (config.train, config.test) if path is not None]
    return tuple(map(_digest_place, places)) if all(place.exists() for place in places) else None


def locate_data(path: str) -> Path:
    """Return where a user's file or folder is: absolute, or below the data folder `MZSANE_DATA`."""
    return Path(os.environ.get("MZSANE_DATA") or ".") / path


def cache_folder() -> Path:
    """Return the folder for what is made of image files, which is there."""
    folder = Cache().folder / "images"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _digest_place(place: Path) -> str:
    """Return the digest of a file's bytes, or of the names and bytes of all images in a folder."""
    try:
        files = list_images(place) if place.is_dir() else [place]
        listing = [(os.fsencode(file.relative_to(place)), file.stat()) for file in files]
        seen = hashlib.blake2b(os.fsencode(place.resolve()), digest_size=_DIGEST_BYTES)
        for name, stat in listing:
            seen.update(repr((name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)).encode())
        note = cache_folder() / "content" / seen.hexdigest()
        if note.exists():
            return note.read_text()
        digest = hashlib.blake2b(digest_size=_DIGEST_BYTES)
        for file, (name, stat) in zip(files, listing, strict=True):
            digest.update(repr((name, stat.st_size)).encode())
            with file.open("rb") as stream:
                while block := stream.read(_BLOCK):
                    digest.update(block)
    except OSError as error:
        raise ConfigError(f"{show_path(place)} cannot be read: {error.strerror or error}") from None
    note.parent.mkdir(exist_ok=True)
    fresh = note.with_name(f".{note.name}-{os.getpid()}")
    fresh.write_text(digest.hexdigest())
    fresh.replace(note)
    return digest.hexdigest()
