"""A GPU that is a mark on CPU tensors' storage, to find on any machine what would fail where two devices meet.

    Tensor.to("cuda"), zeros(device="cuda") ─ function mode ─ a CPU tensor whose storage is marked
    every operator, backward passes too ─ dispatch mode ─ RuntimeError where marked and unmarked tensors mix

Promises the rules of CUDA about which tensors an operator takes together: one device, except that numbers (0-dim
tensors of the CPU) go with any and indices may stay on the CPU; a random generator belongs to one device; numpy reads
CPU tensors only. Leaves out all that is not about devices: kernels, rounding, memory, streams.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

GPU = torch.device("cuda:0")
Observer = Callable[[Any, list[Tensor]], None]  # is told of every operator and the tensors that it takes
_observer: Observer | None = None
_pretended = GPU  # or Apple's
_aten = torch.ops.aten
_COPIES = {_aten.copy_.default, _aten._to_copy.default, _aten._has_compatible_shallow_copy_type.default}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}
_REAL_GENERATOR = torch.Generator


def _storage_of(tensor: Tensor) -> Any:
    """Return where a tensor's mark is kept; None for tensors that have no storage of their own."""
    with torch._C.DisableTorchFunction():
        if tensor.is_meta or tensor.layout is not torch.strided:
            return None
        return tensor.untyped_storage()


def _mark_of(tensor: Tensor) -> bool | None:
    """Return True on the GPU, False on the CPU, None for what autograd made by itself, which goes with both."""
    storage = _storage_of(tensor)
    return False if storage is None else storage.__dict__.get("gpu", False)


def _tensors(tree: Any) -> list[Tensor]:
    """Return the tensors in arguments or results, in their order."""
    found, rest = [], [tree]
    while rest:
        one = rest.pop()
        if isinstance(one, Tensor):
            if not one.is_meta:
                found.append(one)
        elif isinstance(one, (tuple, list)):
            rest += reversed(one)
        elif isinstance(one, dict):
            rest += reversed(one.values())
    return found


def _mark(tensors: Any, mark: bool | None) -> None:
    for one in _tensors(tensors):
        if (storage := _storage_of(one)) is not None:
            storage.gpu = mark


def on_gpu(tensor: Tensor) -> bool:
    """Tell whether a tensor would be on the GPU."""
    return bool(_mark_of(tensor))


def _is_gpu(place: Any) -> bool:
    return isinstance(place, (str, torch.device)) and str(place).startswith(_pretended.type)


class Generator(torch.Generator):
    """A random generator that remembers the device that it was made for."""

    def __new__(cls, device: Any = "cpu") -> Generator:
        """Make a generator of the CPU, whatever it stands for."""
        return super().__new__(cls, device="cpu")

    def __init__(self, device: Any = "cpu") -> None:
        self.gpu = _is_gpu(device)

    @property
    def device(self) -> torch.device:
        return _pretended if self.gpu else torch.device("cpu")


class _Operators(TorchDispatchMode):
    """The operators below autograd, so that backward passes are seen too."""

    def __init__(self) -> None:
        super().__init__()
        self.called_by_python = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = _tensors((args, kwargs))
        ours = [one for one in given if on_gpu(one)]
        theirs = [one for one in given if _mark_of(one) is False]
        if ours and theirs and func not in _COPIES and not self._allowed(func, args, ours, theirs):
            raise RuntimeError(f"expected all tensors to be on the same device: {func} of {_described(given)}")
        if ours and _observer is not None:
            _observer(func, given)
        found = func(*args, **kwargs or {})
        if ours and func is not _aten.copy_.default:
            _mark(found, True)
        elif not given and not self.called_by_python:
            _mark(found, None)
        if _pretended.type == "mps" and any(one.dtype == torch.float64 and on_gpu(one) for one in _tensors(found)):
            raise TypeError(f"Apple's GPUs have no float64: {func}")
        return found

    @staticmethod
    def _allowed(func: Any, args: Any, ours: list[Tensor], theirs: list[Tensor]) -> bool:
        if func in _INDEXING:
            values = [one for one in args[2:3] if isinstance(one, Tensor) and one.dim()]
            return on_gpu(args[0]) and all(on_gpu(one) for one in values)
        return all(one.dim() == 0 for one in theirs) and any(one.dim() for one in ours)


def _described(tensors: list[Tensor]) -> str:
    return ", ".join(f"{'cuda' if on_gpu(one) else 'cpu'} {list(one.shape)}" for one in tensors)


class _Functions(TorchFunctionMode):
    """The functions that Python calls: those that name a device place marks, all others are passed on."""

    def __enter__(self) -> Any:
        self.below = _Operators()
        self.below.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.below.__exit__(*error)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", "")
        here = bool(args) and isinstance(args[0], Tensor) and on_gpu(args[0])
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.device:
            return _pretended if here else func(*args)
        if name == "__get__" and getattr(func, "__self__", None) is Tensor.is_cuda:
            return here
        if name in ("numpy", "__array__") and here:
            raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
        if name == "tolist" and here and args[0].dim() and _observer is not None:  # no operator
            _observer(_aten._local_scalar_dense.default, [args[0]])
        if name in ("to", "cpu", "cuda") and args and isinstance(args[0], Tensor):
            return self._moved(func, name, args, kwargs, here)
        if isinstance(generator := kwargs.get("generator"), torch.Generator):
            placed = here or _is_gpu(kwargs.get("device"))
            if getattr(generator, "gpu", False) != placed:
                raise RuntimeError(f"expected a generator of {'cuda' if placed else 'cpu'}, got {generator.device}")
        place = kwargs.get("device")
        if _is_gpu(place):
            kwargs["device"] = "cpu"
        self.below.called_by_python += 1
        try:
            found = func(*args, **kwargs)
        finally:
            self.below.called_by_python -= 1
        if place is not None and func is not torch.device:
            _mark(found, _is_gpu(place))
        return found

    @staticmethod
    def _moved(func: Any, name: str, args: Any, kwargs: Any, here: bool) -> Any:
        rest = [_pretended if name == "cuda" else "cpu"] if name != "to" else [*args[1:], *kwargs.values()]
        if rest and isinstance(rest[0], Tensor):
            rest = [_pretended if on_gpu(rest[0]) else "cpu", rest[0].dtype]
        places = [one for one in rest if isinstance(one, (str, torch.device))]
        types = [one for one in rest if isinstance(one, torch.dtype)]
        if "meta" in map(str, places):
            return func(*args, **kwargs)
        moved = _Move.apply(args[0], _is_gpu(places[0])) if places and _is_gpu(places[0]) != here else args[0]
        return moved.to(types[0]) if types and types[0] != moved.dtype else moved


class _Move(torch.autograd.Function):
    """A copy with the other mark, through which gradients return."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, to_gpu: bool) -> Tensor:
        ctx.to_gpu = to_gpu
        with torch._C.DisableTorchFunction():
            found = torch.empty_like(tensor, device="cpu")
            _mark(found, to_gpu)
            return found.copy_(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        return _Move.apply(gradients[0], not ctx.to_gpu), None


_group = torch._C._group_tensors_by_device_and_dtype


def _grouped(*given: Any) -> Any:
    """Group tensors for operators that take lists, as an optimiser does: torch reads their devices by itself."""
    groups = {}
    for (_, dtype), found in _group(*given).items():
        marked = [one for one in _tensors(found) if on_gpu(one)]
        groups[_pretended if marked else torch.device("cpu"), dtype] = found
    return groups


class _Stream:
    """A stream that records no graph."""

    def is_capturing(self) -> bool:
        return False


@contextmanager
def pretend_gpu(kind: str = "cuda", observer: Observer | None = None) -> Iterator[None]:
    """Let torch find one GPU in a `with` block, in this thread and in those that are started in it.

    `kind` may be mps, Apple's, which has no float64. `observer` is told of the operators that run on the GPU.
    """
    run: Callable[[threading.Thread], None] = threading.Thread.run

    def run_with_modes(thread: threading.Thread) -> None:
        with _Functions():
            run(thread)

    with (
        mock.patch(f"{__name__}._pretended", torch.device(kind, 0)),
        mock.patch(f"{__name__}._observer", observer),
        mock.patch.object(threading.Thread, "run", run_with_modes),
        mock.patch.object(torch, "Generator", Generator),
        mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", _grouped),
        mock.patch.object(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device(kind)),
        mock.patch.object(torch.accelerator, "device_count", lambda: 1),
        mock.patch.object(torch.accelerator, "current_stream", lambda device=None: _Stream()),  # optimisers ask it
        _Functions(),
    ):
        yield
