"""Networks whose tensors lie in several files with an index, as `save_pretrained` writes them.

`model.safetensors.index.json` (or `pytorch_model.bin.index.json`) names the file of each tensor; the files beside it
are called `model-00001-of-00002.safetensors` or otherwise.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from mzsane.errors import ConfigError
from mzsane.fetch.sources import Source
from mzsane.zoo.formats.checkpoint import CheckpointReader
from mzsane.zoo.formats.listing import Candidate, is_litter
from mzsane.zoo.formats.states import State

_INDEX = re.compile(r"(?P<whole>.*\.(?:safetensors|bin|pt|pth))\.index\.json$", re.IGNORECASE)
_SHARD = re.compile(r"(?P<stem>.*)-(?P<part>\d{3,6})-of-(?P<parts>\d{3,6})(?P<suffix>\.[a-z]+)$", re.IGNORECASE)
_SHARDS = 10_000  # of an index


@dataclass
class Shards:
    """What of a source's files are parts of networks.

    Attributes:
        names: the other files, and in place of the parts the file that the network would be if it was one.
        indexes: name of such a file -> the index, and the files that it names.
        rejected: parts that cannot be joined, with the reason.
    """

    names: list[str] = field(default_factory=list)
    indexes: dict[str, tuple[str, tuple[str, ...]]] = field(default_factory=dict)
    rejected: dict[str, str] = field(default_factory=dict)

    def complete(self, entry: Candidate) -> Candidate:
        """Return a checkpoint with the files that it lies in."""
        if entry.file not in self.indexes:
            return entry
        index, shards = self.indexes[entry.file]
        return replace(entry, file=index, shards=shards)


def find_shards(names: list[str], source: Source) -> Shards:
    """Find the indexes and shards among the files of a source."""
    found = Shards()
    there, parts = set(names), set()
    for name in names:
        match = _INDEX.match(name)
        if match is None or is_litter(name):
            continue
        try:
            folder = name[: name.rfind("/") + 1]
            shards = tuple(sorted({folder + place for place in _read_index(source.read(name)).values()}))
        except ConfigError as error:
            found.rejected[name] = str(error)
            continue
        parts |= there.intersection(shards)
        if match["whole"] in there:  # the whole file is there too
            continue
        if missing := [shard for shard in shards if shard not in there]:
            found.rejected[name] = (
                f"incomplete: the index names {len(shards)} files, and {missing[0][-80:]} is not there"
            )
        else:
            found.indexes[match["whole"]] = name, shards
    for name in sorted(there - parts):
        match = _SHARD.match(name)
        if match and int(match["parts"]) > 1 and not is_litter(name):
            index = f"{match['stem']}{match['suffix']}.index.json".rpartition("/")[2]
            found.rejected[name] = (
                f"a shard: part {int(match['part'])} of {int(match['parts'])} of a network: put its index, "
                f"{index[-80:]}, beside it, or save the network in one file"
            )
    found.names = sorted((there - parts - found.rejected.keys()) | found.indexes.keys())
    return found


def read_files(source: Source, entry: Candidate, max_bytes: int) -> dict[str, bytes]:
    """Return the bytes of a checkpoint's files by name.

    Raises:
        ConfigError: one is missing or damaged, or all together are too large.
        StoreError: the source cannot be reached.
    """
    files: dict[str, bytes] = {}
    for name in (entry.file, *entry.shards):
        files[name] = source.read(name)
        if entry.shards and sum(map(len, files.values())) > max_bytes:
            raise ConfigError(f"too large: the shards have more bytes than max_file_bytes, which is {max_bytes}")
    return files


def join_shards(reader: CheckpointReader, entry: Candidate, files: Mapping[str, bytes]) -> list[State]:
    """Return the network that lies in several files.

    Raises:
        ConfigError: a part is damaged, or a tensor is not where the index says.
    """
    folder = entry.file[: entry.file.rfind("/") + 1]
    places = {tensor: folder + place for tensor, place in _read_index(files[entry.file]).items()}
    return reader.join({name: files[name] for name in entry.shards}, places)


def _read_index(data: bytes) -> dict[str, str]:
    """Return the file of each tensor."""
    try:
        places = json.loads(data)["weight_map"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError("truncated or damaged: an index of shards without a weight_map") from None
    if not isinstance(places, dict) or not all(isinstance(place, str) and place for place in places.values()):
        raise ConfigError("truncated or damaged: an index of shards whose weight_map does not name files")
    if not 0 < len(set(places.values())) <= _SHARDS or any(".." in place or "\\" in place for place in places.values()):
        raise ConfigError("truncated or damaged: an index of shards that names no files beside it")
    return places
