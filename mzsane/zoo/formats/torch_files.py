"""What `torch.save` wrote, read safely, and fast where many files have one structure.

The checkpoints of a zoo are small zips with the same pickle in each: only the records, the raw numbers, differ. A
pickle is therefore read by torch once or twice, and after that the files that carry it are read record by record,
which takes a tenth of the time. What a pickle makes of its records is learned from a *twin*: a file with the same
pickle whose records say their own number.
"""

import hashlib
import io
import re
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from mzsane.errors import ConfigError
from mzsane.fetch.zip_members import HEADER_BYTES, ZipMember
from mzsane.store.serialisation import load_torch
from mzsane.zoo.formats.pickle_limits import check_pickles
from mzsane.zoo.formats.states import Choice, State, find_states, is_plain

_MARK_BYTES = 2  # a record says its number in two bytes
_ORDER: Literal["little"] = "little"
_SCRIPT = ("constants.pkl", "code")  # of TorchScript, which is for torch alone


@dataclass(frozen=True)
class _View:
    """A tensor as a view of a record."""

    record: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


@dataclass(frozen=True)
class _Layout:
    """What a pickle makes of the records beside it: states of views, and the records' sizes in bytes."""

    states: list[tuple[dict[str, _View], int | None]]
    sizes: dict[str, int]


class _Records:
    """The records of a file of `torch.save`, by their names without the folder that they are all in."""

    def __init__(self, data: bytes, members: Sequence[ZipMember]) -> None:
        self._data = data
        self._members = {member.name.partition("/")[2]: member for member in members}
        self._starts: dict[str, int] = {}
        stored = "byteorder" in self._members and self._members["byteorder"].method == zipfile.ZIP_STORED
        order = bytes(self.view("byteorder")).decode(errors="replace") if stored else _ORDER
        self.sizes = {name: member.size for name, member in self._members.items() if name.startswith("data/")}
        self.plain = (
            "data.pkl" in self._members and len(self._members) == len(members) and order == _ORDER == sys.byteorder
        )

    def check(self) -> None:
        """Check that torch wrote the zip, and that reading it makes no more than there is.

        Raises:
            ConfigError: it is another kind of zip, or one that was packed anew.
        """
        if any(name.partition("/")[0] in _SCRIPT for name in self._members):
            raise ConfigError("code: a TorchScript archive; save the state dict of the module that it holds")
        if "data.pkl" not in self._members:
            some = next((member.name[-60:] for member in self._members.values()), "nothing")
            raise ConfigError(
                f"no checkpoint: a zip that torch did not write, with {some} in it; unpack it if it is one"
            )
        if packed := next((member for member in self._members.values() if member.method != zipfile.ZIP_STORED), None):
            raise ConfigError(
                f"packed anew: a zip tool has compressed {packed.name[-60:]}, which torch stores as it is: unpack the "
                "file and zip it without compression (zip -0), or load it and save it with torch.save"
            )

    def view(self, name: str) -> memoryview:
        """Return the bytes of a record, checked."""
        member = self._members[name]
        start = member.locate(self._data[member.header : member.header + HEADER_BYTES])
        found = memoryview(self._data)[start : start + member.size]
        member.check(found)
        self._starts[name] = start
        return found

    def take(self, view: _View, buffer: bytearray) -> Tensor:
        """Return a tensor over a copy of the file's bytes."""
        if view.record not in self._starts:
            self.view(view.record)
        size = self.sizes[view.record]
        if size == 0:
            return torch.empty(view.shape, dtype=view.dtype)
        start = self._starts[view.record]
        flat = torch.frombuffer(buffer, dtype=view.dtype, count=size // view.dtype.itemsize, offset=start)
        return flat.as_strided(view.shape, view.stride, view.offset)


class TorchFiles:
    """Reads files of `torch.save`, and remembers the pickles that it has seen.

    Args:
        choice: which networks of a file are wanted.
    """

    def __init__(self, choice: Choice | None = None) -> None:
        self._choice = choice or Choice()
        self._seen: set[bytes] = set()
        self._layouts: dict[bytes, _Layout | None] = {}

    def read(self, data: bytes, members: Sequence[ZipMember] = ()) -> list[State]:
        """Return the state dicts in a file, their tensors as they were stored.

        Args:
            data: the file.
            members: what is in it, when it is a zip.

        Raises:
            ConfigError: the file is damaged, would run code, or holds no tensors.
        """
        if not members:
            check_pickles(data, len(data), legacy=True)
            return self._load(data)
        records = _Records(data, members)
        records.check()
        pickled = bytes(records.view("data.pkl"))
        key = hashlib.sha256(pickled).digest()
        layout = None
        if records.plain and key in self._seen:
            if key not in self._layouts:
                self._layouts[key] = self._learn(pickled, records)
            layout = self._layouts[key]
        if layout is None or layout.sizes != records.sizes:
            check_pickles(pickled, sum(records.sizes.values()))
            self._seen.add(key)
            return self._load(data)
        buffer = bytearray(data)  # tensors want memory that can be written
        return [
            State({name: records.take(view, buffer) for name, view in views.items()}, epoch)
            for views, epoch in layout.states
        ]

    def _load(self, data: bytes) -> list[State]:
        try:
            loaded = load_torch(data)
        except Exception as error:  # what a damaged or hostile file makes torch raise is anybody's guess
            raise ConfigError(_explain(error)) from None
        return find_states(loaded, self._choice)

    def _learn(self, pickled: bytes, records: _Records) -> _Layout | None:
        """Return what a pickle makes of its records; None when that cannot be told."""
        names = list(records.sizes)
        if len(names) >= 2 ** (8 * _MARK_BYTES) or min(records.sizes.values(), default=0) < _MARK_BYTES:
            return None
        twin = io.BytesIO()
        with zipfile.ZipFile(twin, "w") as archive:
            archive.writestr("twin/data.pkl", pickled)
            archive.writestr("twin/byteorder", _ORDER)
            archive.writestr("twin/version", "3\n")
            for number, name in enumerate(names):
                size = records.sizes[name]
                mark = number.to_bytes(_MARK_BYTES, _ORDER)
                archive.writestr(f"twin/{name}", (mark * (size // _MARK_BYTES + 1))[:size])
        try:
            states = self._load(twin.getvalue())
        except ConfigError:
            return None
        found: list[tuple[dict[str, _View], int | None]] = []
        for state in states:
            views: dict[str, _View] = {}
            for name, value in state.tensors.items():
                if type(value) not in (Tensor, torch.nn.Parameter) or not is_plain(value):
                    return None
                stored = bytes(value.untyped_storage()[:_MARK_BYTES].tolist())
                record = names[int.from_bytes(stored, _ORDER)]
                if value.is_neg() or records.sizes[record] % value.dtype.itemsize:
                    return None
                views[name] = _View(
                    record, value.dtype, tuple(value.shape), value.stride(), int(value.storage_offset())
                )
            found.append((views, state.epoch))
        return _Layout(found, dict(records.sizes))


def _explain(error: Exception) -> str:
    text = " ".join(str(error).split())
    if found := re.search(r"nsupported (?:global: )?GLOBAL ([\w.]+)", text):
        return f"code: the pickle asks for {found[1][:80]}; save the state dict alone"
    if found := re.search(r"WeightsUnpickler error: (.{,80})", text):
        return f"truncated or damaged: or the pickle holds more than a state dict: {found[1]}"
    return f"truncated or damaged: {type(error).__name__}: {text[:160]}"
