"""A GPU that is not there: tensors say cuda:0 and hold CPU memory.

Inside `simulated_gpu()` factories and `.to("cuda")` give `GpuTensor`s. Operators that mix devices raise as
on a GPU, waits of the host are counted by place, and the project's CUDA kernels run in the host shim
(tests/cuda_on_cpu.py), launched by the code that launches them on a GPU.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from cuda_on_cpu import CudaOnCpu
from simulated_log import LOG, Log, place
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.overrides import TorchFunctionMode

from detection_zoo.kernels import launch
from detection_zoo.kernels.operator import BODIES
from detection_zoo.zoo.parts.fixed_size import best_candidates

CUDA = torch.device("cuda", 0)
# of an image, in place of 4,096: slim_families.py gives fewer, and a kernel tests all pairs
MOST_CANDIDATES = 512
# operators whose result the host must have before it can go on
WAITING = {
    "_local_scalar_dense",
    "nonzero",
    "nonzero_numpy",
    "argwhere",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "masked_select",
    "bincount",
    "equal",
    "is_nonzero",
}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
COPYING = {"copy_", "_to_copy"}
# operators of float16 that a GPU sums up in float32, which a CPU does ten times as fast
SUMMING = {"convolution", "convolution_backward", "addmm", "mm", "bmm"}


def is_cuda(device: Any) -> bool:
    """Whether a device as callers give it is a GPU."""
    return device is not None and torch.device(device).type == "cuda"


def on_gpu(value: Any) -> Any:
    """A tensor on the simulated GPU that shares memory with a CPU tensor; anything else as it is."""
    return GpuTensor(value) if isinstance(value, Tensor) and not isinstance(value, GpuTensor) else value


def memory_of(value: Any) -> Any:
    """The CPU tensor that holds a simulated tensor's memory; anything else as it is."""
    return value.memory if isinstance(value, GpuTensor) else value


def leaves(value: Any) -> list[Any]:
    """What is in the tuples, lists and dicts of an operator's arguments, as torch's tree_leaves gives it in
    many times the time."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, tuple | list):
        return [leaf for one in value for leaf in leaves(one)]
    return [value]


def mapped(change: Callable[[Any], Any], value: Any) -> Any:
    """The value with each of its leaves changed, as by torch's tree_map."""
    if isinstance(value, tuple | list):
        return type(value)([mapped(change, one) for one in value])
    if isinstance(value, dict):
        return {name: mapped(change, one) for name, one in value.items()}
    return change(value)


class GpuTensor(Tensor):
    """Says cuda:0; `memory` is a CPU tensor."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, memory: Tensor) -> GpuTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            memory.shape,
            strides=memory.stride(),
            storage_offset=memory.storage_offset(),
            dtype=memory.dtype,
            layout=memory.layout,
            device=memory.device,
        )

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory.detach() if memory.requires_grad else memory

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    @property
    def data(self) -> Tensor:
        """As `Tensor.data`; a tensor that is put there brings its memory."""
        return self.detach()

    @data.setter
    def data(self, value: GpuTensor) -> None:
        Tensor.data.__set__(self, value)
        self.memory = value.memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            one = GpuTensor(self.memory.clone())
            memo[id(self)] = nn.Parameter(one, self.requires_grad) if isinstance(self, nn.Parameter) else one
        return memo[id(self)]

    def data_ptr(self) -> int:
        """Address in the CPU's memory, where the kernels run."""
        return self.memory.data_ptr()

    def __repr__(self) -> str:
        return f"GpuTensor({self.memory})"

    def numpy(self, *_: Any, **__: Any) -> Any:
        """Refused, as by torch."""
        raise TypeError("can't convert cuda:0 device type tensor to numpy; use Tensor.cpu() first")

    __array__ = numpy

    def tolist(self) -> Any:
        """Python numbers, for which the host waits."""
        LOG.wait("to the host")
        return self.memory.tolist()

    def cpu(self, *_: Any, **__: Any) -> Tensor:
        """A copy on the CPU, for which the host waits."""
        LOG.wait("to the host")
        return _ToCpu.apply(self)

    def cuda(self, *_: Any, **__: Any) -> Tensor:
        """Itself."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Tensor:
        """As `Tensor.to`."""
        kwargs.pop("copy", None)
        if args and isinstance(args[0], Tensor):
            device, dtype, layout = args[0].device, args[0].dtype, None
        else:
            device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        found: Tensor = self
        if (dtype is not None and dtype != self.dtype) or layout is not None:
            kept = {} if layout is None else {"memory_format": layout}
            found = Tensor.to(self, dtype=dtype or self.dtype, **kept)
        return found if device is None or is_cuda(device) else found.cpu()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, about, foreign = kwargs or {}, facts_of(func), []
        given, named = _memories(args, foreign), _memories(kwargs, foreign)
        name = about.name
        if foreign and name not in INDEXING | COPYING:
            raise RuntimeError(
                f"{func}: expected all tensors to be on the same device, but found cuda:0 and cpu"
                f" {[tuple(one.shape) for one in foreign]} at {place()}"
            )
        if about.ours:
            with _Factories():  # torch switches modes off while it runs an operator
                return BODIES[name](*args, **kwargs)
        if name in INDEXING:
            _index(func, name, args)
        elif name == "copy_" and foreign:
            LOG.wait("to the device" if isinstance(args[0], GpuTensor) else "to the host")
        elif name in WAITING or (name == "repeat_interleave" and kwargs.get("output_size") is None):
            LOG.wait(name)
        result = computed(func, given, named)
        if "out" in kwargs:
            return kwargs["out"]
        if about.written is not None and about.written < len(args):
            return None if name.startswith(("_foreach", "_fused", "_amp_foreach")) else args[about.written]
        return mapped(on_gpu, result)


class Facts(NamedTuple):
    """Of an operator: its name, whether it is the project's, its first argument that it writes to."""

    name: str
    ours: bool
    written: int | None


@functools.cache
def facts_of(func: Any) -> Facts:
    """From the operator's schema."""
    written = (
        number
        for number, one in enumerate(func._schema.arguments)
        if one.alias_info is not None and one.alias_info.is_write
    )
    return Facts(func._schema.name.split("::")[1], func.namespace == "detection_zoo", next(written, None))


def _memories(value: Any, foreign: list[Tensor]) -> Any:
    """An operator's arguments with the memory of each tensor; tensors on the CPU are added to `foreign`."""
    if type(value) is GpuTensor:
        return value.memory
    if isinstance(value, tuple | list):
        return [_memories(one, foreign) for one in value]
    if isinstance(value, dict):
        return {name: _memories(one, foreign) for name, one in value.items()}
    if isinstance(value, Tensor) and value.dim() > 0:
        foreign.append(value)
    return value


def computed(func: Any, given: Sequence[Any], named: dict[str, Any]) -> Any:
    """What an operator of torch gives for CPU tensors, float16 summed as on a GPU."""
    if facts_of(func).name in SUMMING and given[0].dtype == torch.float16:
        return mapped(_half, func(*mapped(_whole, given), **named))
    return func(*given, **named)


def _whole(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype == torch.float16 else value


def _half(value: Any) -> Any:
    return value.half() if isinstance(value, Tensor) else value


def _index(func: Any, name: str, args: tuple[Any, ...]) -> None:
    """Check the devices of an indexing operator; count the wait that a mask or an index on the CPU means."""
    values = args[2] if name != "index" else None
    if not isinstance(args[0], GpuTensor) or (
        isinstance(values, Tensor) and not isinstance(values, GpuTensor) and values.dim() > 0
    ):
        raise RuntimeError(f"{func}: tensors on cuda:0 and cpu at {place()}")
    filling = values is not None and values.numel() == 1 and len(args[1]) == 1
    for one in args[1]:
        if isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8):
            if not filling:
                LOG.wait("a mask as index")
        elif isinstance(one, Tensor) and not isinstance(one, GpuTensor):
            LOG.wait("to the device")


class _ToCpu(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, one: GpuTensor) -> Tensor:
        return one.memory.clone()

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return on_gpu(gradient)


class _ToGpu(torch.autograd.Function):
    @staticmethod
    def forward(_context: Any, one: Tensor) -> Tensor:
        return GpuTensor(one.detach().clone())

    @staticmethod
    def backward(_context: Any, gradient: Tensor) -> Tensor:
        return memory_of(gradient)


_MOVING = {Tensor.to, Tensor.cuda, Tensor.new_tensor}


class _Factories(TorchFunctionMode):
    """Inside, "cuda" is a device that tensors can be made on and moved to."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if not kwargs and func not in _MOVING:
            return func(*args)
        kwargs = dict(kwargs or {})
        if func in (Tensor.to, Tensor.cuda) and not isinstance(args[0], GpuTensor):
            return self._moved(func, args, kwargs)
        if func is Tensor.new_tensor and isinstance(args[0], GpuTensor):
            LOG.wait("to the device")
            return GpuTensor(torch.tensor(args[1], dtype=kwargs.get("dtype") or args[0].dtype))
        if is_cuda(kwargs.get("device")):
            if func in (torch.tensor, torch.as_tensor):
                LOG.wait("to the device")
            return mapped(on_gpu, func(*args, **{**kwargs, "device": "cpu"}))
        return func(*args, **kwargs)

    @staticmethod
    def _moved(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
        """A CPU tensor moved or cast; copies of `move` are from page-locked memory, so nobody waits."""
        pinned = False
        if func is Tensor.cuda:
            device, dtype = CUDA, None
        elif len(args) > 1 and isinstance(args[1], Tensor):
            device, dtype = args[1].device, args[1].dtype
        else:
            plain = {name: value for name, value in kwargs.items() if name != "copy"}
            device, dtype, pinned, _ = torch._C._nn._parse_to(*args[1:], **plain)
        if not is_cuda(device):
            return func(*args, **kwargs)
        if not pinned or LOG.capturing:
            LOG.wait("to the device")
        one = args[0] if dtype is None else args[0].to(dtype)
        return _ToGpu.apply(one) if one.requires_grad else GpuTensor(one.detach().clone())


def move_module(module: nn.Module) -> nn.Module:
    """The module with parameters and buffers on the simulated GPU, in place; shared ones stay shared."""
    moved: dict[int, Any] = {}
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, one in tensors.items():
                if one is None or isinstance(one, GpuTensor):
                    continue
                if id(one) not in moved:
                    moved[id(one)] = GpuTensor(one.detach())
                    if tensors is part._parameters:
                        moved[id(one)] = nn.Parameter(moved[id(one)], requires_grad=one.requires_grad)
                tensors[name] = moved[id(one)]
    return module


@contextmanager
def simulated_gpu() -> Iterator[Log]:
    """Run with a simulated GPU; yields the log, which is empty at the start."""
    shim, runner, module_to = CudaOnCpu(), launch.runner, nn.Module.to
    group = clip_grad._group_tensors_by_device_and_dtype

    def by_device(lists: Any, *options: Any) -> dict[tuple[torch.device, Any], Any]:
        """C++ groups the gradients to be clipped by the device that it sees, the CPU."""
        found = group(lists, *options)
        return {(memory[0][0].device, kind): (memory, rows) for (_, kind), (memory, rows) in found.items()}

    def run(
        file: str,
        kernel: str,
        options: tuple[str, ...],
        grid: tuple[int, ...],
        block: tuple[int, ...],
        args: Sequence[Any],
        shared_bytes: int,
    ) -> None:
        for number, one in enumerate(args):
            if isinstance(one, Tensor) and not isinstance(one, GpuTensor):
                raise RuntimeError(f"{kernel} in {file}: argument {number} is on the CPU")
        LOG.kernels[kernel] += 1
        shim(file, kernel, options, grid, block, [memory_of(one) for one in args], shared_bytes)

    def to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
        device, dtype, _, _ = torch._C._nn._parse_to(*args, **kwargs)
        if not is_cuda(device):
            return module_to(module, *args, **kwargs)
        return move_module(module if dtype is None else module_to(module, dtype))

    most, best_candidates.__defaults__ = best_candidates.__defaults__, (MOST_CANDIDATES,)
    launch.runner, nn.Module.to, clip_grad._group_tensors_by_device_and_dtype = run, to, by_device
    LOG.clear()
    try:
        with _Factories():
            yield LOG
    finally:
        launch.runner, nn.Module.to = runner, module_to
        clip_grad._group_tensors_by_device_and_dtype = group
        best_candidates.__defaults__ = most
