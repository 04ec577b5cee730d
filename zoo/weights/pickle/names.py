"""Globals that a pickle may use: numpy arrays, ordered containers and torch tensors, each rebuilt by our own
code."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from detection_zoo.zoo.weights.pickle.machine import Machine, Name, Unfinished
from detection_zoo.zoo.weights.pickle.source import shown

_DTYPE = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248]|c8|c16|\?)")
MAX_DIMENSIONS = 32
_NUMPY_TYPES = ("bool_", "int8", "int16", "int32", "int64", "uint8", "float16", "float32", "float64", "str_")
_TORCH_TYPES = (
    *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
    *("uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
    *("quint8", "qint8", "qint32", "strided", "contiguous_format", "channels_last"),
)
# Types of training settings saved with the tensors. Their objects are never built: a Name replaces each.
PLAIN = (
    *("argparse.Namespace", "types.SimpleNamespace", "collections.deque", "typing.Any"),
    *(
        f"{module}.{kind}"
        for module in ("pathlib", "pathlib._local")
        for kind in ("Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath")
    ),
    *(f"datetime.{kind}" for kind in ("datetime", "date", "time", "timedelta", "timezone")),
    *("decimal.Decimal", "fractions.Fraction", "uuid.UUID"),
    *(
        f"{module}.{kind}"
        for module in ("builtins", "__builtin__")
        for kind in ("list", "dict", "tuple", "int", "float", "str", "bool", "object", "slice", "range")
    ),
    *(f"__builtin__.{kind}" for kind in ("long", "unicode", "xrange")),
    *(f"numpy.{kind}" for kind in _NUMPY_TYPES),
    *(f"torch.{kind}" for kind in _TORCH_TYPES),
    *("torch.torch_version.TorchVersion", "torch.version.TorchVersion", "torch._utils._rebuild_tensor_v3"),
    *("torch.serialization._get_layout",),
    *("yacs.config.CfgNode", "fvcore.common.config.CfgNode", "detectron2.config.config.CfgNode"),
    *("easydict.EasyDict", "addict.addict.Dict", "munch.Munch", "box.box.Box"),
    *("mmcv.utils.config.ConfigDict", "mmengine.config.config.ConfigDict", "mmengine.config.config.Config"),
    *("mmengine.logging.history_buffer.HistoryBuffer", "ml_collections.config_dict.config_dict.ConfigDict"),
    *(f"omegaconf.{kind}" for kind in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{kind}" for kind in ("ContainerMetadata", "Metadata", "Container", "Box")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Enum")),
    *(
        f"{package}.utilities.{module}.AttributeDict"
        for package in ("pytorch_lightning", "lightning_fabric", "lightning.fabric", "lightning.pytorch")
        for module in ("data", "parsing")
    ),
)


def _dtype_from_text(machine: Machine, text: Any) -> np.dtype:
    text = text.decode("latin1") if isinstance(text, bytes) else text
    if not isinstance(text, str) or not _DTYPE.fullmatch(text):
        kind = (
            "a numpy object array: its elements are arbitrary objects"
            if isinstance(text, str) and text.strip("<>=|")[:1] == "O"
            else "a numpy dtype"
        )
        raise machine.refuse(f"{kind} ({shown(text)})")
    return np.dtype(text)


def _dtype(machine: Machine, arguments: tuple) -> Unfinished:
    dtype = _dtype_from_text(machine, arguments[0] if arguments else None)

    def finish(machine: Machine, state: Any) -> np.dtype:
        fits = (
            isinstance(state, tuple)
            and len(state) == 8
            and state[0] == 3
            and state[2:5] == (None, None, None)
            and all(type(n) is int for n in state[5:])
            and state[5:] == (-1, -1, 0)  # item size, alignment, flags: none adds to the type
        )
        order = (
            state[1].decode("latin1") if fits and isinstance(state[1], bytes) else state[1] if fits else None
        )
        if order not in ("<", ">", "=", "|"):
            raise machine.refuse(f"the state of a numpy dtype ({shown(state)})")
        return dtype if order == "|" else dtype.newbyteorder(order)

    return Unfinished("numpy.dtype", finish)


def _settled_dtype(machine: Machine, dtype: Any) -> np.dtype:
    if not isinstance(dtype, np.dtype):
        raise machine.refuse(f"{getattr(dtype, 'path', type(dtype).__name__)} where a numpy dtype belongs")
    return dtype


def _raw(machine: Machine, data: Any) -> bytearray:
    """The data of an array, writable; Python 2 wrote it as a string of latin1."""
    if not isinstance(data, (bytes, str)):
        kind = "a numpy object array" if isinstance(data, list) else "array data"
        raise machine.refuse(f"{kind} of type {type(data).__name__}")
    machine.budget.spend_bytes(len(data))
    return bytearray(data, "latin1") if isinstance(data, str) else bytearray(data)


def sizes(machine: Machine, shape: Any) -> tuple[int, ...]:
    """A shape from a file: a short tuple of non-negative integers of a size that exists."""
    shape = _whole_numbers(machine, shape)
    if math.prod(n for n in shape if n) >= 1 << 47:
        raise machine.refuse(f"the shape {shown(shape)}, larger than any memory")
    return shape


def _whole_numbers(machine: Machine, shape: Any) -> tuple[int, ...]:
    if (
        not isinstance(shape, (tuple, list))
        or len(shape) > MAX_DIMENSIONS
        or not all(type(n) is int and 0 <= n < 1 << 47 for n in shape)
    ):
        raise machine.refuse(f"the shape {shown(shape)}")
    return tuple(shape)


def _array_of(machine: Machine, data: Any, dtype: Any, shape: Any, fortran: bool) -> np.ndarray:
    dtype, shape = _settled_dtype(machine, dtype), sizes(machine, shape)
    if math.prod(shape) * dtype.itemsize != (len(data) if isinstance(data, (bytes, str)) else -1):
        _raw(machine, data)
        raise machine.refuse(f"an array of shape {shape} and {dtype} with {len(data)} bytes")
    array = np.frombuffer(_raw(machine, data), dtype=dtype) if len(data) else np.zeros(0, dtype)
    return array.reshape(shape, order="F" if fortran else "C").astype(dtype.newbyteorder("="), copy=False)


def _reconstruct(machine: Machine, arguments: tuple) -> Unfinished:
    if not arguments or not isinstance(arguments[0], Name) or arguments[0].path != "numpy.ndarray":
        raise machine.refuse(f"numpy's _reconstruct of {shown(arguments[:1])}")

    def finish(machine: Machine, state: Any) -> np.ndarray:
        if not isinstance(state, tuple) or len(state) not in (4, 5):
            raise machine.refuse(f"the state of a numpy array ({shown(state)})")
        shape, dtype, fortran, data = state[-4:]
        return _array_of(machine, data, dtype, shape, fortran is True or fortran == 1)

    return Unfinished("numpy.ndarray", finish)


def _from_buffer(machine: Machine, arguments: tuple) -> np.ndarray:
    data, dtype, shape, order = arguments
    return _array_of(machine, data, dtype, shape, order == "F")


def _scalar(machine: Machine, arguments: tuple) -> Any:
    dtype, data = arguments
    return _array_of(machine, data, dtype, (), False)[()]


def _encode(machine: Machine, arguments: tuple) -> bytes:
    text, coding = arguments
    if not isinstance(text, str) or coding not in ("latin1", "latin-1"):
        raise machine.refuse(f"_codecs.encode with {shown(coding)}")
    machine.budget.spend_bytes(len(text))
    return text.encode("latin1")


def _mapping(machine: Machine, arguments: tuple) -> dict:
    items = arguments[0] if arguments else []
    pairs = list(items.items()) if isinstance(items, dict) else items
    if (
        len(arguments) > 1
        or not isinstance(pairs, (list, tuple))
        or not all(isinstance(p, (list, tuple)) and len(p) == 2 for p in pairs)
    ):
        raise machine.refuse("an ordered dict of something other than pairs")
    machine.budget.spend_operation(len(pairs))
    return {machine.key(key): value for key, value in pairs}


def _default_mapping(machine: Machine, arguments: tuple) -> dict:
    return _mapping(machine, arguments[1:])


def _members(kind: type) -> Callable[[Machine, tuple], Any]:
    def construct(machine: Machine, arguments: tuple) -> Any:
        items = arguments[0] if arguments else []
        if len(arguments) > 1 or not isinstance(items, (list, tuple)):
            raise machine.refuse(f"a {kind.__name__} of {shown(arguments)}")
        machine.budget.spend_operation(len(items))
        return kind(machine.key(item) for item in items)

    return construct


def _byte_array(machine: Machine, arguments: tuple) -> bytes:
    data = arguments[0] if arguments else b""
    if not isinstance(data, (bytes, str)):
        raise machine.refuse(f"a bytearray of {type(data).__name__}")
    return bytes(_raw(machine, data))


def _complex(machine: Machine, arguments: tuple) -> complex:
    real, imaginary = arguments
    return complex(float(real), float(imaginary))


def numpy_names() -> dict[str, Name]:
    """Names that a Detectron or Caffe2 pickle, or any pickle of numpy arrays and plain containers, may
    use."""
    constructs: dict[str, Callable[[Machine, tuple], Any]] = {
        "numpy.dtype": _dtype,
        "_codecs.encode": _encode,
        "collections.OrderedDict": _mapping,
        "collections.Counter": _mapping,
        "collections.defaultdict": _default_mapping,
    }
    for core in ("numpy.core", "numpy._core"):
        constructs |= {
            f"{core}.multiarray._reconstruct": _reconstruct,
            f"{core}.multiarray.scalar": _scalar,
            f"{core}.numeric._frombuffer": _from_buffer,
        }
    for builtins in ("builtins", "__builtin__"):
        constructs |= {
            f"{builtins}.set": _members(set),
            f"{builtins}.frozenset": _members(frozenset),
            f"{builtins}.bytearray": _byte_array,
            f"{builtins}.bytes": _byte_array,
            f"{builtins}.complex": _complex,
        }
    names = {path: Name(path, plain=True) for path in PLAIN}
    names |= {path: Name(path, construct) for path, construct in constructs.items()}
    return names | {"numpy.ndarray": Name("numpy.ndarray")}


# --- torch ----------

STORAGE_TYPES = {  # element kind -> torch's name of the type, bytes
    **{
        "Double": ("float64", 8),
        "Float": ("float32", 4),
        "Half": ("float16", 2),
        "BFloat16": ("bfloat16", 2),
    },
    **{"Long": ("int64", 8), "Int": ("int32", 4), "Short": ("int16", 2), "Char": ("int8", 1)},
    **{"Byte": ("uint8", 1), "Bool": ("bool", 1), "storage.Untyped": ("uint8", 1)},
    **{"ComplexFloat": ("complex64", 8), "ComplexDouble": ("complex128", 16)},
}


@dataclass
class Storage:
    """A torch storage named by a file: element kind ("Float"), element count, and a key to its bytes."""

    kind: str
    key: Any
    count: int
    start: int = 0  # of a view, in elements of the whole storage
    whole: int | None = None  # elements of the whole storage, for a view

    @property
    def item_bytes(self) -> int:
        """Bytes of one element."""
        return STORAGE_TYPES[self.kind][1]

    @property
    def root_count(self) -> int:
        """Elements of the whole storage, where this is a view of it."""
        return self.count if self.whole is None else self.whole


@dataclass
class TensorView:
    """A torch tensor named by a file: a strided view of a storage, checked to be inside it."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def tensor_view(machine: Machine, storage: Any, offset: Any, shape: Any, strides: Any) -> TensorView:
    """A tensor over a storage.

    Raises:
        CheckpointError: it reaches outside its storage, or repeats elements so that it is larger than the
            storage.
    """
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise machine.refuse(f"a tensor of {type(storage).__name__} at {shown(offset)}")
    shape, strides = sizes(machine, shape), _whole_numbers(machine, strides)
    if len(shape) != len(strides):
        raise machine.refuse(f"a tensor of shape {shape} with strides {strides}")
    if offset > storage.count:
        raise machine.refuse(f"a tensor at {shown(offset)} outside its storage of {storage.count} elements")
    elements = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) if elements else 0
    if elements and (last >= storage.count or elements > storage.count):
        raise machine.refuse(
            f"a tensor of shape {shape}, strides {strides}, offset {offset} outside its storage of"
            f" {storage.count} elements"
        )
    machine.budget.spend_bytes(elements * storage.item_bytes)
    return TensorView(storage, offset, shape, strides)


def _rebuild_tensor(machine: Machine, arguments: tuple) -> TensorView:
    return tensor_view(machine, *arguments[:4])


def _rebuild_parameter(machine: Machine, arguments: tuple) -> TensorView:
    if not arguments or not isinstance(arguments[0], TensorView):
        raise machine.refuse(f"a parameter of {shown(arguments[:1])}")
    return arguments[0]


def _size(machine: Machine, arguments: tuple) -> tuple[int, ...]:
    return sizes(machine, arguments[0] if arguments else ())


def _device(machine: Machine, arguments: tuple) -> str:
    if not arguments or not isinstance(arguments[0], str):
        raise machine.refuse(f"a torch device {shown(arguments)}")
    return arguments[0]


def torch_names() -> dict[str, Name]:
    """Names that a torch checkpoint of tensors and plain containers may use, those of numpy among them."""
    constructs: dict[str, Callable[[Machine, tuple], Any]] = {
        "torch._utils._rebuild_tensor": _rebuild_tensor,
        "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
        "torch._utils._rebuild_parameter": _rebuild_parameter,
        "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
        "torch.Size": _size,
        "torch.device": _device,
    }
    markers = [f"torch.{kind}{what}" for kind in STORAGE_TYPES for what in ("Storage", "Tensor")]
    markers += ["torch.storage.UntypedStorage"]
    names = {path: Name(path, construct) for path, construct in constructs.items()}
    return numpy_names() | names | {path: Name(path) for path in markers}
