"""A pretended GPU: numbers on the CPU that carry another device's tag, so that code for a GPU is run without one.

Within `PretendedGpu()` the device `cuda` can be used. What lies on it is known by its memory; an operation on tensors
of both devices raises, as CUDA would, and each read by the host (`item`, `tolist`, `bool`, `cpu`) is counted.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace, TracebackType
from typing import Any, ClassVar
from unittest.mock import patch

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda", 0)
_HOST = {"aten::_local_scalar_dense": "item", "aten::equal": "equal", "aten::nonzero": "nonzero"}
# They take indices, shapes or random numbers of the host, as CUDA's do.
_MIXED = {"aten::index.Tensor", "aten::_index_put_impl_", "aten::index_put_", "aten::index_put", "aten::copy_"}


_ANSWERS: dict[str, Any] = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "device": lambda device: nullcontext(),
    "get_device_name": lambda device=None: "a pretended GPU",
    "get_device_properties": lambda device: SimpleNamespace(total_memory=2**33),
    "get_rng_state": lambda device=None: torch.zeros(1, dtype=torch.uint8),
    "set_rng_state": lambda state, device=None: None,
    "is_bf16_supported": lambda including_emulation=True: True,
    "manual_seed": lambda seed: None,
    "max_memory_allocated": lambda device=None: 0,
    "synchronize": lambda device=None: None,
}


class MixedDevicesError(RuntimeError):
    """An operation got tensors of both devices."""


class PretendedGpu:
    """A block in which there is a device `cuda`.

    Attributes:
        reads: how often the host read what lies on the device, by what.
    """

    # What was put there stays, as caches do; a weak reference keeps the number of a memory from being given again.
    _there: ClassVar[dict[int, StorageWeakRef]] = {}

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self._stack, self._call = ExitStack(), threading.local()

    def __enter__(self) -> "PretendedGpu":
        for name, value in _ANSWERS.items():
            self._stack.enter_context(patch.object(torch.cuda, name, value))
        group = clip_grad._group_tensors_by_device_and_dtype
        # It is told in C++ which devices tensors are on.
        self._stack.enter_context(
            patch.object(
                clip_grad, "_group_tensors_by_device_and_dtype", lambda lists, *more: self._rename(group(lists, *more))
            )
        )
        submit = ThreadPoolExecutor.submit
        self._stack.enter_context(
            patch.object(
                ThreadPoolExecutor, "submit", lambda pool, *call, **named: submit(pool, self._run, *call, **named)
            )
        )
        self._stack.enter_context(self._modes())
        return self

    def _rename(self, groups: dict[tuple[Any, Any], Any]) -> dict[tuple[Any, Any], Any]:
        """Return groups of tensors under the devices that they are said to be on."""
        named = {}
        for (device, dtype), found in groups.items():
            there = any(self.holds(tensor) for each in found[0] for tensor in each)
            named[CUDA if there else device, dtype] = found
        return named

    def _run(self, function: Any, *arguments: Any, **named: Any) -> Any:
        """Call a function in another thread, which knows the device as well."""
        with self._modes():
            return function(*arguments, **named)

    @contextmanager
    def _modes(self) -> Iterator[None]:
        with _Calls(self), _Operations(self):
            yield

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    @contextmanager
    def note_call(self, there: bool) -> Iterator[None]:
        """Note in a block whether the call that is done in it has tensors on the device.

        What its C++ code makes beside them (in `vmap` the weights of norms that have none) is made there too.
        """
        before, self._call.there = self._is_called_there(), there
        try:
            yield
        finally:
            self._call.there = before

    def _is_called_there(self) -> bool:
        return getattr(self._call, "there", False)

    def holds(self, tensor: torch.Tensor) -> bool:
        """Tell whether a tensor lies on the device."""
        return tensor.untyped_storage()._cdata in self._there

    def put(self, tensor: torch.Tensor) -> torch.Tensor:
        """Say that a tensor lies on the device."""
        storage = tensor.untyped_storage()
        self._there.setdefault(storage._cdata, StorageWeakRef(storage))
        return tensor


def _is_cuda(device: Any) -> bool:
    return device is not None and str(device).startswith("cuda")


class _Calls(TorchFunctionMode):
    """Takes the device out of calls before PyTorch looks for CUDA, and tells tensors' devices."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_function__(self, function: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = dict(named or {})
        name = getattr(function, "__name__", "")
        owner = getattr(function, "__self__", None)
        if name == "__get__" and arguments and isinstance(arguments[0], torch.Tensor):
            if owner is torch.Tensor.device:
                return CUDA if self._holds(arguments[0]) else function(*arguments, **named)
            if owner is torch.Tensor.is_cuda:
                return self._holds(arguments[0])
        if function in (torch.Tensor.to, torch.Tensor.cuda, torch.Tensor.cpu):
            return self._move(function, arguments, named)
        if function in (torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__) and self._holds(arguments[0]):
            if function is not torch.Tensor.tolist:
                raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
            self.gpu.reads["tolist"] += 1
        if _is_cuda(named.get("device")):
            named["device"] = torch.device("cpu")
            return tree_map(self._put, function(*arguments, **named))
        leaves = tree_leaves((arguments, named))
        with self.gpu.note_call(any(isinstance(leaf, torch.Tensor) and self._holds(leaf) for leaf in leaves)):
            return function(*arguments, **named)

    def _move(self, function: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        tensor, *rest = arguments
        there = self._holds(tensor)
        wanted = (
            CUDA if function is torch.Tensor.cuda else torch.device("cpu") if function is torch.Tensor.cpu else None
        )
        if function is torch.Tensor.to:
            others = []
            for value in rest:
                if isinstance(value, str | torch.device):
                    wanted = torch.device(value)
                elif isinstance(value, torch.Tensor):
                    wanted, others = (CUDA if self._holds(value) else value.device), [*others, value.dtype]
                elif isinstance(value, torch.dtype):
                    others.append(value)
            if named.get("device") is not None:
                wanted = torch.device(named["device"])
            named.pop("device", None)
            named.pop("non_blocking", None)
            tensor = torch.Tensor.to(tensor, *others, **named) if others or named else tensor
        if wanted is None or _is_cuda(wanted) == there:
            return self.gpu.put(tensor) if there else tensor
        if there:
            self.gpu.reads["cpu"] += 1
        return _Move.apply(tensor, self.gpu, not there)

    def _holds(self, tensor: torch.Tensor) -> bool:
        with torch._C.DisableTorchFunction():
            while torch._C._functorch.is_functorch_wrapped_tensor(tensor):  # within vmap and grad
                tensor = torch._C._functorch.get_unwrapped(tensor)
            return self.gpu.holds(tensor)

    def _put(self, value: Any) -> Any:
        return self.gpu.put(value) if isinstance(value, torch.Tensor) else value


class _Move(torch.autograd.Function):
    """A copy to the other device, through which gradients come back."""

    @staticmethod
    def forward(context: Any, tensor: torch.Tensor, gpu: PretendedGpu, there: bool) -> torch.Tensor:
        context.gpu, context.there = gpu, there
        return _copy(tensor, gpu, there)

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> Any:  # type: ignore[override]
        return _copy(gradient, context.gpu, not context.there), None, None


def _copy(tensor: torch.Tensor, gpu: PretendedGpu, there: bool) -> torch.Tensor:
    with torch.utils._python_dispatch._disable_current_modes():
        moved = tensor.detach().clone()
    return gpu.put(moved) if there else moved


class _Operations(TorchDispatchMode):
    """Sees every operation, those of backward passes and vectorised ones too."""

    def __init__(self, gpu: PretendedGpu) -> None:
        super().__init__()
        self.gpu = gpu

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        named = named or {}
        tensors = [leaf for leaf in tree_leaves((arguments, named)) if isinstance(leaf, torch.Tensor)]
        there = [tensor for tensor in tensors if self.gpu.holds(tensor)]
        name = operation.name()
        if there:
            elsewhere = [tensor for tensor in tensors if not self.gpu.holds(tensor) and tensor.dim()]
            if elsewhere and name not in _MIXED:
                raise MixedDevicesError(
                    f"{name}: tensors of both devices, {[tuple(t.shape) for t in there]} on cuda:0 and "
                    f"{[tuple(t.shape) for t in elsewhere]} on cpu"
                )
            if name in _HOST:
                self.gpu.reads[_HOST[name]] += 1
        result = operation(*arguments, **named)
        if not tensors and self.gpu._is_called_there():
            return tree_map(lambda value: self.gpu.put(value) if isinstance(value, torch.Tensor) else value, result)
        if there and name not in ("aten::_local_scalar_dense", "aten::equal"):
            written_on_host = name == "aten::copy_" and not self.gpu.holds(arguments[0])
            if not written_on_host:
                tree_map(lambda value: self.gpu.put(value) if isinstance(value, torch.Tensor) else value, result)
        return result
