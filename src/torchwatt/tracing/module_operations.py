"""Operations and bytes of module calls, from the class of a module and the shapes of its tensors.

Operations are those that `torch.utils.flop_counter` counts (two for each multiplication and addition of a matrix
product or convolution), and the arithmetic of norms: 7 for each element (4 for RMSNorm: square, sum, scale, weight).
Bytes are each input, weight and output once, by the sizes of their types: without caches, a lower bound. A module of an
unknown class, or with a `forward` of its own, has neither.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

NORM_OPERATIONS, RMS_NORM_OPERATIONS = 7, 4
# Names of the projection of queries in attention modules of transformers; of others the product is not known.
QUERY_NAMES = ("q_proj", "query", "c_attn", "qkv_proj", "q_lin", "q")

# Shape and type of the input, whether input and weight want a gradient, whether the output has one, and what the
# formula of the class needs besides.
ShapeKey = tuple[Any, ...]
ShapeReader = Callable[[Any, Any, Any, Any], ShapeKey]
_CONVOLUTIONS: tuple[Any, ...] = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_NORMS: tuple[Any, ...] = (
    nn.LayerNorm, nn.GroupNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class CallWork:
    """Operations and bytes of one call, and of the gradients that a backward call makes for it.

    Attributes:
        flops: Of the call.
        bytes_moved: Of the call.
        rows: Of its input: all dimensions but the last.
        gradient_flops: Of the gradients of input and weights.
        gradient_bytes: Likewise.
        has_gradient: Whether a backward call may make any.
    """

    flops: float
    bytes_moved: float
    rows: int
    gradient_flops: float = 0.0
    gradient_bytes: float = 0.0
    has_gradient: bool = False


WorkFormula = Callable[[ShapeKey], CallWork | None]


def read_plain(module: Any, args: Any, kwargs: Any, y: Any) -> ShapeKey:
    """Read the shape of the only input.

    Raises:
        TypeError: It is no plain tensor: reading a subclass's shape would run code of the user.
    """
    x = args[0] if args else next(iter(kwargs.values()))
    if type(x) is not Tensor:
        _check_type(x)
    weight = module._parameters.get("weight")
    return x.shape, x.dtype, x.requires_grad, weight is not None and weight.requires_grad, y.requires_grad


def _check_type(x: object) -> None:
    if type(x) is not torch.Tensor and type(x) is not nn.Parameter:
        raise TypeError(f"an input is a {type(x).__name__}")


def _read_convolution(module: Any, args: Any, kwargs: Any, y: Any) -> ShapeKey:
    return *read_plain(module, args, kwargs, y), y.shape


def _read_multihead(module: Any, args: Any, kwargs: Any, y: Any) -> ShapeKey:
    query, key, value = (args[i] if len(args) > i else kwargs[n] for i, n in enumerate(("query", "key", "value")))
    for x in (query, key, value):
        _check_type(x)
    weight, output = module._parameters.get("in_proj_weight"), module.out_proj.weight
    trained = (module.q_proj_weight if weight is None else weight).requires_grad
    wanted = query.requires_grad, key.requires_grad, value.requires_grad
    return query.shape, query.dtype, wanted, trained, y[0].requires_grad, key.shape, output.requires_grad


def _read_attention(module: Any, args: Any, kwargs: Any, y: Any) -> ShapeKey:
    x, out = args[0] if args else kwargs["hidden_states"], y[0] if isinstance(y, tuple) else y
    _check_type(x)
    return x.shape, x.dtype, True, True, out.requires_grad, _key_length(module, x, args, kwargs)


def _key_length(module: Any, x: Any, args: Any, kwargs: Any) -> int | None:
    """Return the number of positions that the queries attend to, from shapes alone; None if those do not show it."""
    mask = kwargs.get("attention_mask")
    tensors = [value for value in args[1:] if isinstance(value, torch.Tensor)]
    mask = next((value for value in tensors if value.dim() == 4), None) if mask is None else mask
    if isinstance(mask, torch.Tensor) and mask.dim() == 4:
        return int(mask.shape[-1])
    other = next((kwargs[n] for n in ("key_value_states", "encoder_hidden_states") if kwargs.get(n) is not None), None)
    if other is not None:
        return int(other.shape[1])
    names = ("past_key_values", "past_key_value", "layer_past")
    cache = next((kwargs[name] for name in names if kwargs.get(name) is not None), None)
    if cache is None:
        return None if tensors else int(x.shape[1])
    layers = getattr(cache, "layers", None)
    keys = cache.key_cache[module.layer_idx] if layers is None else layers[module.layer_idx].keys
    return int(keys.shape[-2])


def _runs(module: nn.Module, kinds: tuple[Any, ...]) -> bool:
    """Return whether a module runs the `forward` of one of some classes, not one of its own."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _is_transformers(module: nn.Module, name: str) -> bool:
    return type(module).__module__.partition(".")[0] == "transformers" and name in type(module).__name__


def _is_attention(module: nn.Module) -> bool:
    return _is_transformers(module, "Attention") and any(name in module._modules for name in QUERY_NAMES)


def _is_linear(module: nn.Module) -> bool:
    is_conv1d = _is_transformers(module, "Conv1D") and type(module).__module__ == "transformers.pytorch_utils"
    return is_conv1d or _runs(module, (nn.Linear,))


def _is_rms_norm(module: nn.Module) -> bool:
    return _is_transformers(module, "RMSNorm") or _runs(module, (nn.RMSNorm,))


def shape_reader(module: nn.Module) -> ShapeReader | None:
    """Return the function that reads the shapes of a module's calls; None for an unknown class."""
    if _runs(module, (*_NORMS, nn.Embedding)) or _is_linear(module) or _is_rms_norm(module):
        return read_plain
    if _runs(module, _CONVOLUTIONS):
        return _read_convolution
    if _runs(module, (nn.MultiheadAttention,)):
        return _read_multihead
    return _read_attention if _is_attention(module) else None


def _own_bytes(module: nn.Module) -> int:
    own = [parameter for parameter in module._parameters.values() if parameter is not None]
    return sum(parameter.numel() * parameter.element_size() for parameter in own)


def work_formula(module: nn.Module) -> WorkFormula:
    """Return the function from the shapes of a call to its work, for a module that has a `shape_reader`."""
    own_bytes = _own_bytes(module)
    if _is_linear(module):
        weight: Any = module.weight
        return partial(_linear_work, weight.numel(), weight.numel() // _input_width(module, weight), own_bytes)
    if isinstance(module, nn.Embedding):
        return partial(_embedding_work, module.embedding_dim * module.weight.element_size())
    if isinstance(module, nn.modules.conv._ConvNd):
        taps = prod(module.kernel_size) * module.in_channels * module.out_channels // module.groups
        over_input = module.out_channels if not module.transposed else module.in_channels
        return partial(_convolution_work, taps // over_input, module.transposed, own_bytes)
    if isinstance(module, nn.MultiheadAttention):
        return _multihead_formula(module)
    if _is_attention(module):
        return _attention_formula(module)
    each = RMS_NORM_OPERATIONS if _is_rms_norm(module) else NORM_OPERATIONS
    return partial(_norm_work, each, own_bytes)


def _input_width(module: nn.Module, weight: Any) -> int:
    return int(weight.shape[1] if isinstance(module, nn.Linear) else weight.shape[0])  # Conv1D's is transposed


def _linear_work(products: int, width: int, own_bytes: int, key: ShapeKey) -> CallWork:
    shape, dtype, wants_input, wants_weight, grows = key
    rows = prod(shape[:-1])
    flops = 2.0 * rows * products
    return _with_gradients(
        flops, rows, (prod(shape), rows * width), own_bytes, dtype, (wants_input, wants_weight, grows)
    )


def _convolution_work(taps: int, transposed: bool, own_bytes: int, key: ShapeKey) -> CallWork:
    """Return the work of a convolution; `taps`: multiplications for each element of the output (transposed: input)."""
    shape, dtype, wants_input, wants_weight, grows, out = key
    flops = 2.0 * taps * prod(shape if transposed else out)
    return _with_gradients(
        flops, int(shape[0]), (prod(shape), prod(out)), own_bytes, dtype, (wants_input, wants_weight, grows)
    )


def _with_gradients(
    flops: float, rows: int, elements: tuple[int, int], own_bytes: int, dtype: Any, wanted: tuple[bool, bool, bool]
) -> CallWork:
    """Return a call and its gradients: those of input and of weights are products as large as the call's.

    Args:
        flops: Of the call.
        rows: Of the input.
        elements: Of input and output.
        own_bytes: Of weights and bias.
        dtype: Of the input.
        wanted: Gradients of the input, of the weights, of anything.
    """
    read_bytes, written_bytes = (count * dtype.itemsize for count in elements)
    wants_input, wants_weight, grows = wanted
    parts = grows * (wants_input + wants_weight)
    gradient_bytes = written_bytes + parts * (read_bytes + own_bytes) if parts else 0
    return CallWork(
        flops, read_bytes + own_bytes + written_bytes, rows, flops * parts, gradient_bytes, has_gradient=bool(grows)
    )


def _norm_work(each: int, own_bytes: int, key: ShapeKey) -> CallWork:
    shape, dtype, *wanted = key
    elements = prod(shape)
    rows = prod(shape[:-1])
    return _with_gradients(
        float(each * elements), rows, (elements, elements), own_bytes, dtype, (wanted[0], wanted[1], wanted[2])
    )


def _embedding_work(row_bytes: int, key: ShapeKey) -> CallWork:
    """Return the work of a lookup: no arithmetic, its rows are read and written."""
    shape, dtype, _, _, grows = key
    rows = prod(shape)
    moved = 2.0 * rows * row_bytes
    return CallWork(0.0, moved + rows * dtype.itemsize, rows, 0.0, moved * grows, has_gradient=bool(grows))


@dataclass(frozen=True, slots=True)
class _MultiheadSizes:
    """Sizes of an `nn.MultiheadAttention`."""

    width: int
    key_width: int
    value_width: int
    own_bytes: int
    batch_first: bool

    def work(self, key: ShapeKey) -> CallWork:
        """Return the projections of queries, keys and values, the two products, and the output's projection."""
        shape, dtype, wants_inputs, wants_in, grows, key_shape, wants_out = key
        batch_axis = 0 if self.batch_first else 1
        batch = shape[batch_axis] if len(shape) == 3 else 1
        queries, keys = prod(shape[:-1]), prod(key_shape[:-1])
        rows = (queries, keys, keys)
        widths = (self.width, self.key_width, self.value_width)
        projections = [2.0 * n * width * self.width for n, width in zip(rows, widths, strict=True)]
        products = 4.0 * queries * (keys // max(batch, 1)) * self.width
        output = 2.0 * queries * self.width**2
        gradients = sum(f * (w + wants_in) for f, w in zip(projections, wants_inputs, strict=True))
        gradients += 2.0 * products + output * (1 + wants_out)
        read = sum(n * width for n, width in zip(rows, widths, strict=True)) * dtype.itemsize
        moved = read + self.own_bytes + queries * self.width * dtype.itemsize
        return CallWork(
            sum(projections) + products + output, moved, queries, gradients * grows, 2.0 * moved * grows,
            has_gradient=bool(grows),
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class _AttentionSizes:
    """Sizes of an attention module of transformers, whose projections are modules of their own."""

    heads: int
    key_heads: int
    head_width: int

    def work(self, key: ShapeKey) -> CallWork | None:
        """Return the two products of attention, over all positions as the masked products compute them."""
        shape, dtype, _, _, grows, keys = key
        if keys is None:
            return None
        rows = prod(shape[:-1])
        flops = 4.0 * rows * keys * self.heads * self.head_width
        cached = 2 * shape[0] * keys * self.key_heads
        moved = float((2 * rows * self.heads + cached) * self.head_width * dtype.itemsize)
        return CallWork(flops, moved, rows, 2.0 * flops * grows, 2.0 * moved * grows, has_gradient=bool(grows))


def _multihead_formula(module: nn.MultiheadAttention) -> WorkFormula:
    sizes = _own_bytes(module) + _own_bytes(module.out_proj)
    return _MultiheadSizes(module.embed_dim, module.kdim, module.vdim, sizes, module.batch_first).work


def _attention_formula(module: Any) -> WorkFormula:
    """Return the formula of an attention module; a class that does not state heads and their width has no work."""
    config = getattr(module, "config", None)
    heads = _first_size((module, config), ("num_heads", "num_attention_heads", "n_heads", "n_head"))
    width = _first_size((module,), ("head_dim", "attention_head_size", "key_value_proj_dim", "dim_per_head"))
    key_heads = _first_size((module, config), ("num_key_value_heads",)) or heads
    if not heads or not width or not key_heads:
        return lambda _: None
    return _AttentionSizes(heads, key_heads, width).work


def _first_size(owners: tuple[Any, ...], names: tuple[str, ...]) -> int | None:
    found = (getattr(owner, name, None) for owner in owners for name in names)
    return next((size for size in found if isinstance(size, int) and size > 0), None)


@dataclass(frozen=True, slots=True)
class ModuleMetadata:
    """Class and size of a module, kept after its deletion; parameters are its own, without its children's."""

    class_name: str
    params: int
    param_bytes: int
    dtype: str = ""  # of most of its parameters, or their quantisation; empty without parameters


def metadata_of(module: nn.Module) -> ModuleMetadata:
    """Count a module's own parameters; lazy ones count once they have a shape."""
    own = [p for p in vars(module).get("_parameters", {}).values() if p is not None]
    sized = [parameter for parameter in own if not nn.parameter.is_lazy(parameter)]
    count = sum(parameter.numel() for parameter in sized)
    size = sum(parameter.numel() * parameter.element_size() for parameter in sized)
    largest = max(sized, key=lambda parameter: parameter.numel(), default=None)
    return ModuleMetadata(type(module).__name__, count, size, "" if largest is None else _dtype_name(largest))


def _dtype_name(parameter: Any) -> str:
    """Return the quantisation that a parameter states (bitsandbytes, quanto), else its type: `float32`."""
    stated = getattr(parameter, "quant_type", None) or getattr(getattr(parameter, "qtype", None), "name", None)
    return stated if isinstance(stated, str) else str(parameter.dtype).removeprefix("torch.")
