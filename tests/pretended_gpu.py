"""A GPU that is none: numbers on the CPU that carry another device's tag, and fail wherever CUDA would.

It stands in for the hardware in tests of what is where: operations that mix devices, a generator of the CPU for numbers
on the device, and `.numpy()` raise as on CUDA, and all that makes the host wait for the device is counted with its
place in the code. Operators without a kernel on CUDA, precision and speed are not pretended. It goes through autograd,
`torch.func` and threads, since the tag is that of a whole backend (`PrivateUse1`) whose every kernel is `_run`.

PyTorch takes new devices only before the first backward pass of a process: work on it is done in a process of its own
(`start_pretended_gpu`).
"""

import threading
import traceback
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
ROOT = Path(__file__).parent.parent
aten = torch.ops.aten

# Functions whose outputs' sizes, or whose result, the host has to know: they wait for the device.
_WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "bincount", "repeat_interleave"}
_COPYING = {"copy_", "_to_copy"}
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"}
_JOINING = {"cat", "stack", "mm", "bmm", "addmm", "baddbmm"}  # take no number of the CPU either

# What the host waits for, and copies to the device, by thread and place in the code.
reads: Counter[tuple[str, str]] = Counter()
copies: Counter[tuple[str, str]] = Counter()
_library: list[torch.library.Library] = []


class PretendedTensor(Tensor):
    """A tensor with the tag of the device; `held` has its numbers."""

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held: Tensor) -> "PretendedTensor":
        """Give numbers the tag."""
        made = Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=torch.device(NAME, 0),
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Run an operation of tensors of which one is on the device."""
        return _run(function, *args, **(kwargs or {}))

    def numpy(self, *args, **kwargs):
        """Raise what a tensor on a GPU raises."""
        raise TypeError(f"can't convert {self.device} device type tensor to numpy: use Tensor.cpu() first")

    def __repr__(self) -> str:
        """Tell the numbers and where they are said to be."""
        return f"{NAME}:{self.held!r}"

    def tolist(self):
        """Read the numbers, which the host waits for."""
        return self.detach().cpu().tolist()


def _is_device(value: object) -> bool:
    return isinstance(value, torch.device) and value.type == NAME


def _run(function, *args, **kwargs):
    """Do an operation on the numbers; raise, or count, what CUDA would not do, or would wait for."""
    name = function.overloadpacket.__name__
    own: dict[int, PretendedTensor] = {}
    others: list[Tensor] = []
    indices = {id(value) for value in args[1] if value is not None} if name in _INDEXING else set()

    def untag(value):
        if isinstance(value, PretendedTensor):
            own[id(value.held)] = value
            return value.held
        if isinstance(value, Tensor):
            if id(value) in indices:
                copies[_find_place()] += 1
            elif value.ndim or name in _JOINING:
                others.append(value)
        elif isinstance(value, torch.Generator):
            raise RuntimeError(f"Expected a '{NAME}' device type for generator but found '{value.device}': {name}")
        return torch.device("cpu") if _is_device(value) else value

    plain_args, plain_kwargs = pytree.tree_map(untag, (args, kwargs))
    changed = args[0] if name.endswith("_") and not name.startswith("_foreach") and args else None
    if name not in _COPYING and (
        (own and others)
        or (own and isinstance(changed, Tensor) and not isinstance(changed, PretendedTensor))
        or (indices and not isinstance(args[0], PretendedTensor))
    ):
        shapes = [tuple(value.shape) for value in others]
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {NAME} and cpu {shapes}")
    _count(name, args, kwargs, own)
    found = function(*plain_args, **plain_kwargs)
    if name == "copy_":
        return args[0]
    for value in own.values():
        if value.shape != value.held.shape or value.stride() != value.held.stride():  # as after `squeeze_`
            value.data = PretendedTensor(value.held)
    to_cpu = kwargs.get("device") is not None and not _is_device(torch.device(kwargs["device"]))

    def tag(value):
        if not isinstance(value, Tensor):
            return value
        if to_cpu:
            return value.clone() if id(value) in own else value
        return own.get(id(value)) if id(value) in own else PretendedTensor(value)

    return pytree.tree_map(tag, found)


def _count(name: str, args, kwargs, own) -> None:
    if name == "copy_":
        here, there = (isinstance(value, PretendedTensor) for value in args[:2])
        if there and not here:
            reads[_find_place()] += 1
        elif here and not there:
            copies[_find_place()] += 1
    elif name == "_to_copy":
        wanted = kwargs.get("device")
        here, there = isinstance(args[0], PretendedTensor), wanted is not None and torch.device(wanted).type == NAME
        if here and wanted is not None and torch.device(wanted).type == "cpu":
            reads[_find_place()] += 1
        elif there and not here:
            copies[_find_place()] += 1
    elif own and (name in _WAITING or "unique" in name):
        reads[_find_place()] += 1
    elif name in _INDEXING and any(value is not None and value.dtype == torch.bool for value in args[1]):
        reads[_find_place()] += "put" not in name or args[2].numel() > 1  # to write one number is a masked fill


def _find_place() -> tuple[str, str]:
    """Return the thread and the innermost line of mzsane that an operation is done by."""
    thread = threading.current_thread().name
    for frame in reversed(traceback.extract_stack(limit=60)):
        if (path := Path(frame.filename)).is_relative_to(ROOT / "mzsane"):
            return thread, f"{path.relative_to(ROOT)}:{frame.lineno} {frame.line}"
    return thread, "outside"


class _Module(_DummyBackendModule):
    """What `torch.get_device_module` returns."""

    def mem_get_info(self, device: torch.device) -> tuple[int, int]:
        """Return the free memory, and all of it: 1 GiB."""
        return 2**30, 2**30

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        """Return the number formats of autocast."""
        return [torch.bfloat16, torch.float16]


def install() -> None:
    """Make the device known to this process, and the one that `choose_device` takes for the GPU."""
    import mzsane.device
    from mzsane.backbone import machine

    _setup_privateuseone_for_python_backend(NAME, _Module())
    _library.append(torch.library.Library("_", "IMPL"))
    _library[0].fallback(_run, "PrivateUse1")
    make_tensor = torch.tensor

    def tensor(data, *, device=None, **kwargs):  # torch's own copies past every kernel
        made = make_tensor(data, **kwargs)
        return made if device is None else made.to(device)

    torch.tensor = tensor
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_name = lambda: NAME
    mzsane.device.GPU = NAME
    machine._PEAK_SIZE = {"cpu": 64, "other": 64}  # the speed of a GPU's products takes a CPU two minutes to measure
    torch.set_num_threads(1)


def clear_counts() -> None:
    """Forget what was counted."""
    reads.clear()
    copies.clear()


def start_pretended_gpu() -> ProcessPoolExecutor:
    """Start the process that work on the device is done in."""
    return ProcessPoolExecutor(1, get_context("spawn"), install)
