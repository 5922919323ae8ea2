"""What a pickle would make, counted before anything is made: the limits of the reading by torch.

torch reads only the instructions and globals of state dicts, and executes nothing, but it makes whatever size is asked
for. So a pickle is first run here on stand-ins, instruction for instruction as in torch's own restricted unpickler:
what it would allocate, hash or nest too much is refused, and what torch then reads has passed all of it.
"""

import math
import struct
from collections.abc import Callable
from typing import Any

from mzsane.errors import ConfigError

_INSTRUCTIONS = 500_000  # of the pickles of a file; a tensor takes about 30
_DEPTH = 1000  # of items that were begun
_TUPLE_KEYS = 1000  # tuples as keys of dicts: their hashes can be made to collide
_KEY_ITEMS = 100  # in such a tuple, those of inner tuples included
_LONG_BYTES = 17
_LEGACY_PICKLES = 5  # magic number, version, system, object, keys of the storages
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_CALLS: tuple[str, ...] = (
    *("torch._utils.", "torch._tensor._rebuild_from_type_v2", "torch.device", "torch.Size", "_codecs.encode"),
    *("torch.serialization._get_layout", "torch.nn.parameter.Parameter", "builtins.complex", "__builtin__.complex"),
)
_MODULES = ("torch", "collections", "_codecs", "builtins", "__builtin__")
_COLLECTIONS = ("collections.OrderedDict", "collections.Counter", "builtins.set", "__builtin__.set")
_SIZES = {"Double": 8, "Long": 8, "ComplexFloat": 8, "ComplexDouble": 16, "Float": 4, "Int": 4}
QUANTISED = (
    "quantised: the values are not the weights: save the state dict of the network before its quantisation, or "
    "dequantize() its tensors"
)


class _Global:
    """A name that the pickle asks for."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Made:
    """What a call gave."""

    def __init__(self, name: str) -> None:
        self.name = name


class _Dict:
    """A dict; its keys were checked, and its values do not matter."""


def check_pickles(data: bytes | memoryview, records_bytes: int, legacy: bool = False) -> None:
    """Check what the pickles at the start of data would make.

    Args:
        data: one pickle, or with `legacy` those before the raw numbers of a file that is no zip.
        records_bytes: bytes of raw numbers that there can be, which bounds what is made for them.
        legacy: whether the file is of the older form.

    Raises:
        ConfigError: it would make too much, or is none of the pickles that torch reads.
    """
    machine = _Machine(bytes(data), records_bytes)
    try:
        first = machine.run()
        if legacy and first == _LEGACY_MAGIC:
            for _ in range(_LEGACY_PICKLES - 1):
                machine.run()
    except (IndexError, KeyError, struct.error, UnicodeDecodeError, ValueError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"truncated or damaged: the pickle ends early or makes no sense (byte {machine.at})"
        ) from None


class _Machine:
    """Runs pickles on stand-ins: scalars are themselves, tuples and lists hold stand-ins."""

    def __init__(self, data: bytes, records_bytes: int) -> None:
        self.at = 0
        self._data = data
        self._records_bytes = records_bytes
        self._storages: dict[Any, int] = {}
        self._asked_bytes = 0
        self._instructions = 0
        self._tuple_keys = 0
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def run(self) -> Any:
        """Run one pickle and return what it gives."""
        self._stack, self._marks, self._memo = [], [], {}
        while True:
            code = self._read(1)
            self._instructions += 1
            if self._instructions > _INSTRUCTIONS:
                raise ConfigError(f"too large: the pickle has more than {_INSTRUCTIONS} instructions")
            if code == b".":
                return self._stack.pop()
            step = _STEPS.get(code)
            if step is None:
                raise ConfigError(
                    f"truncated or damaged: or the pickle holds more than a state dict: Unsupported operand {code[0]}"
                )
            step(self)

    def _read(self, count: int) -> bytes:
        piece = self._data[self.at : self.at + count]
        if len(piece) < count:
            raise IndexError
        self.at += count
        return piece

    def _line(self) -> str:
        end = self._data.index(b"\n", self.at)
        line = self._data[self.at : end].decode()
        self.at = end + 1
        return line

    def _pop_mark(self) -> list[Any]:
        items, self._stack = self._stack, self._marks.pop()
        return items

    def push(self, value: Any) -> None:
        """Put a constant on the stack."""
        self._stack.append(value)

    def push_number(self, form: str) -> None:
        """Put a number on the stack."""
        self.push(struct.unpack(form, self._read(struct.calcsize(form)))[0])

    def push_text(self, form: str) -> None:
        """Put a string on the stack, as bytes."""
        self.push(self._read(struct.unpack(form, self._read(struct.calcsize(form)))[0]))

    def push_long(self) -> None:
        """Put a whole number of any size on the stack."""
        count = self._read(1)[0]
        if count > _LONG_BYTES:
            raise ConfigError(f"no plain numbers: the pickle holds a whole number of {count} bytes")
        self.push(int.from_bytes(self._read(count), "little", signed=True))

    def push_global(self) -> None:
        """Put a name on the stack."""
        module, name = self._line(), self._line()
        if (module, name) in (("builtins", "bytearray"), ("__builtin__", "bytearray")):
            raise ConfigError("no state dict: the pickle asks for a bytearray; save the state dict alone")
        if name == "_rebuild_qtensor":
            raise ConfigError(QUANTISED)
        if module.partition(".")[0] not in _MODULES or module == "torch.nn" or module.startswith("torch.nn.modules"):
            raise _refuse_code(f"{module}.{name}")
        self.push(_Global(f"{module}.{name}"))

    def protocol(self) -> None:
        """Skip the protocol's number."""
        self._read(1)

    def mark(self) -> None:
        """Begin items of an unknown number."""
        if len(self._marks) >= _DEPTH:
            raise ConfigError(f"too large: the pickle nests more than {_DEPTH} levels deep")
        self._marks.append(self._stack)
        self._stack = []

    def make_tuple(self, count: int | None) -> None:
        """Make a tuple of the last items, or of those since the mark."""
        if count is None:
            self.push(tuple(self._pop_mark()))
            return
        if len(self._stack) < count:
            raise IndexError
        self._stack[-count:] = [tuple(self._stack[-count:])]

    def get(self, form: str) -> None:
        """Put a remembered value on the stack."""
        self.push(self._memo[struct.unpack(form, self._read(struct.calcsize(form)))[0]])

    def put(self, form: str) -> None:
        """Remember the value on top of the stack."""
        self._memo[struct.unpack(form, self._read(struct.calcsize(form)))[0]] = self._stack[-1]

    def append(self, several: bool) -> None:
        """Append to a list."""
        items = self._pop_mark() if several else [self._stack.pop()]
        if not isinstance(self._stack[-1], list):
            raise TypeError
        self._stack[-1].extend(items)

    def set_items(self, several: bool) -> None:
        """Set keys of a dict."""
        items = self._pop_mark() if several else [self._stack.pop(-2), self._stack.pop()]
        if not isinstance(self._stack[-1], _Dict | _Made) or len(items) % 2:
            raise TypeError
        for key in items[::2]:
            self._check_key(key)

    def call(self) -> None:
        """Call a name with arguments: only what makes no more than it is given."""
        arguments, called = self._stack.pop(), self._stack.pop()
        if not isinstance(called, _Global) or not isinstance(arguments, tuple):
            raise TypeError
        if called.name in _COLLECTIONS:
            self._check_collection(called.name, arguments)
        elif called.name.endswith(("Tensor", "Storage")):
            raise ConfigError(f"no state dict: the pickle makes a {called.name[:80]} out of nothing")
        elif not called.name.startswith(_CALLS):
            raise _refuse_code(called.name)
        elif called.name.endswith("_rebuild_from_type_v2") and not (
            arguments and isinstance(arguments[0], _Global) and arguments[0].name.startswith("torch._utils.")
        ):
            raise ConfigError("no state dict: the pickle makes a tensor by something else than torch's functions")
        self.push(_Made(called.name))

    def build(self) -> None:
        """Give an object its state, which only tensors and dicts have."""
        self._stack.pop()
        if not isinstance(self._stack[-1], _Made):
            raise TypeError

    def load_storage(self) -> None:
        """Take a storage by its key, type and size."""
        asked = self._stack.pop()
        if not isinstance(asked, tuple) or len(asked) < 5 or not isinstance(asked[4], int):
            raise TypeError
        kind, key, count = asked[1], asked[2], asked[4]
        name = kind.name.rpartition(".")[2].removesuffix("Storage") if isinstance(kind, _Global) else ""
        if not isinstance(key, bytes | int):
            raise TypeError
        size = count * _SIZES.get(name, 1)
        self._asked_bytes += max(0, size - self._storages.get(key, 0))
        self._storages[key] = max(self._storages.get(key, 0), size)
        if count < 0 or self._asked_bytes > self._records_bytes:
            raise ConfigError("truncated or damaged: the pickle asks for more numbers than there are in the file")
        self.push(_Made("storage"))

    def _check_collection(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Check the keys of a set or dict that is made of a list."""
        for items in arguments:
            if not isinstance(items, list | tuple):
                continue
            for item in items:
                pair = name == "collections.OrderedDict" and isinstance(item, list | tuple)
                if pair and not item:
                    raise TypeError
                self._check_key(item[0] if pair else item)

    def _check_key(self, key: Any) -> None:
        if isinstance(key, int):
            if not -(2**63) <= key < 2**63:
                raise ConfigError("no plain numbers: a key of a dict is a whole number beyond 64 bits")
        elif isinstance(key, tuple):
            self._tuple_keys += 1
            if self._tuple_keys > _TUPLE_KEYS or not _is_small(key):
                raise ConfigError("too large: the pickle has too many, or too large, tuples as keys of dicts")
        elif isinstance(key, float):
            if math.isnan(key):
                raise ConfigError("no plain numbers: a key of a dict is NaN")
        elif not isinstance(key, bytes | _Global) and key is not None:
            raise ConfigError("no state dict: a key of a dict is neither a name nor a number")


def _refuse_code(name: str) -> ConfigError:
    shown = name.removeprefix("builtins.").removeprefix("__builtin__.")[:80]
    return ConfigError(f"code: the pickle asks for {shown}; save the state dict alone")


def _is_small(key: tuple[Any, ...]) -> bool:
    """Tell whether a tuple has few items, inner ones included; one that is there twice counts twice."""
    waiting, seen = [key], 0
    while waiting:
        for item in waiting.pop():
            seen += 1
            if seen > _KEY_ITEMS:
                return False
            if isinstance(item, tuple):
                waiting.append(item)
            elif not isinstance(item, int | float | bytes | _Global) and item is not None:
                return False
    return True


_STEPS: dict[bytes, Callable[[_Machine], None]] = {
    b"c": _Machine.push_global,
    b"R": _Machine.call,
    b"\x81": _Machine.call,
    b"b": _Machine.build,
    b"a": lambda machine: machine.append(False),
    b"e": lambda machine: machine.append(True),
    b"s": lambda machine: machine.set_items(False),
    b"u": lambda machine: machine.set_items(True),
    b"(": _Machine.mark,
    b"t": lambda machine: machine.make_tuple(None),
    b"\x85": lambda machine: machine.make_tuple(1),
    b"\x86": lambda machine: machine.make_tuple(2),
    b"\x87": lambda machine: machine.make_tuple(3),
    b"N": lambda machine: machine.push(None),
    b"\x88": lambda machine: machine.push(True),
    b"\x89": lambda machine: machine.push(False),
    b")": lambda machine: machine.push(()),
    b"]": lambda machine: machine.push([]),
    b"}": lambda machine: machine.push(_Dict()),
    b"\x8f": lambda machine: machine.push(_Made("builtins.set")),
    b"J": lambda machine: machine.push_number("<i"),
    b"K": lambda machine: machine.push_number("<B"),
    b"M": lambda machine: machine.push_number("<H"),
    b"G": lambda machine: machine.push_number(">d"),
    b"X": lambda machine: machine.push_text("<I"),
    b"U": lambda machine: machine.push_text("<B"),
    b"Q": _Machine.load_storage,
    b"h": lambda machine: machine.get("<B"),
    b"j": lambda machine: machine.get("<I"),
    b"q": lambda machine: machine.put("<B"),
    b"r": lambda machine: machine.put("<I"),
    b"\x8a": _Machine.push_long,
    b"\x80": _Machine.protocol,
}
