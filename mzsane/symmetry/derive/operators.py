"""What each operator does to units: the rules that a tracer applies to the nodes of an exported graph.

An operator is known by its ATen name, without the trailing underscore of its in-place version.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mzsane.symmetry.derive import products
from mzsane.symmetry.derive.values import NotTraceable, Reference, Value, build_invariant, shrink, spread

if TYPE_CHECKING:
    from mzsane.symmetry.derive.tracer import Tracer

Arguments = dict[str, Any]
Rule = Callable[["Tracer", Arguments], Any]

IDENTITY = {
    *("alias", "clone", "contiguous", "detach", "lift_fresh", "lift_fresh_copy", "to", "_to_copy", "type_as"),
    *("dropout", "alpha_dropout", "feature_dropout", "positive"),
}
SHAPE = {
    *("view", "view_as", "_unsafe_view", "reshape", "reshape_as", "flatten", "unflatten", "squeeze", "unsqueeze"),
    *("permute", "transpose", "t", "numpy_T", "swapaxes", "movedim", "roll", "flip", "diagonal", "unfold"),
    *("expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile"),
    *("slice", "select", "narrow", "chunk", "split", "split_with_sizes", "tensor_split", "unbind"),
    *("cat", "concat", "stack", "index", "index_select", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle"),
}
# Operators that tell the positions along their last axes apart, and how many axes that are.
POSITIONAL = {
    **{f"{kind}_pool{n}d": n for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for n in (1, 2, 3)},
    **{f"upsample_nearest{n}d": n for n in (1, 2, 3)},
    **{"max_pool2d_with_indices": 2, "upsample_linear1d": 1, "upsample_bilinear2d": 2, "upsample_trilinear3d": 3},
    **{"upsample_bicubic2d": 2, "_upsample_nearest_exact2d": 2},
}
POSITIONAL_DIM = {"cumsum", "cumprod", "max", "min", "argmax", "argmin", "sort", "argsort", "topk"}
REDUCE = {"mean", "sum", "amax", "amin", "norm", "linalg_vector_norm", "var", "std", "logsumexp", "prod", "all", "any"}
POINTWISE = {"masked_fill", "where", "hardswish", "relu6"}  # those that are not tagged as such
LIKE = {"new_zeros", "new_ones", "new_full", "new_empty", "zeros_like", "ones_like", "full_like", "empty_like"}
CONVOLUTIONS = {f"conv{transposed}{n}d" for transposed in ("", "_transpose") for n in (1, 2, 3)}
LINEAR = {
    *(*IDENTITY, *SHAPE, *CONVOLUTIONS, "linear", "embedding", "pad", "constant_pad_nd", *LIKE),
    *(name for name in POSITIONAL if "max" not in name),
}
# Operators that commute with flipping a unit's sign, or with scaling it by a positive number.
ODD = {
    "tanh",
    "hardtanh",
    "erf",
    "sin",
    "tan",
    "atan",
    "asinh",
    "sinh",
    "softshrink",
    "hardshrink",
    "neg",
    "mean",
    "sum",
}
HOMOGENEOUS = {
    *("relu", "leaky_relu", "abs", "neg", "mean", "sum", "amax", "amin"),
    *(name for name in POSITIONAL if "max" in name),
}


def apply_shape(tracer: "Tracer", a: Arguments) -> Any:
    """Rearrange the labels as the operator rearranges the elements."""
    operands = [leaf for leaf in tracer.list_leaves(a) if isinstance(leaf, Reference)]
    rearranged = ("self", "tensors", "other")

    def run(convert: Callable[[Any], Tensor]) -> Any:
        def take(key: str, item: Any) -> Any:
            if isinstance(item, list | tuple):
                return [take(key, part) for part in item]
            if not isinstance(item, Value | Reference):
                return item
            if key in rearranged:
                return convert(item)
            constant = item.constant if isinstance(item, Value) else None
            if constant is None:
                raise NotTraceable("an index depends on the input")
            return constant

        arguments = {key: take(key, item) for key, item in a.items()}
        if tracer.operator in ("view", "_unsafe_view"):
            return arguments["self"].reshape(arguments["size"])
        return tracer.call(arguments)

    if len(operands) == 1 and isinstance(a.get("self"), Reference):
        reference = operands[0]
        moved = run(lambda item: item.list_positions() if isinstance(item, Reference) else item.labels)
        return _rewrap(moved, lambda part: Reference(reference.name, tuple(part.shape), reference.stored_shape, part))
    moved = run(lambda item: tracer.slots.read(item).labels)
    uniform: frozenset[int] = frozenset()
    if tracer.operator in ("expand", "expand_as", "broadcast_to"):
        before, after = tracer.slots.read(a["self"]).shape, tuple(moved.shape)
        padded = (1,) * (len(after) - len(before)) + before
        uniform = frozenset(axis for axis, (b, n) in enumerate(zip(padded, after, strict=True)) if b == 1 and n > 1)
    return _rewrap(moved, lambda part: Value(part, uniform))


def _rewrap(moved: Any, wrap: Callable[[Tensor], Any]) -> Any:
    return [wrap(part) for part in moved] if isinstance(moved, list | tuple) else wrap(moved)


def apply_positional(tracer: "Tracer", a: Arguments, axes: Sequence[int]) -> Any:
    """Keep the labels where they do not vary along axes whose positions are told apart."""
    value = tracer.slots.read(a["self"] if "self" in a else a["input"])
    labels = shrink(value, tracer.units)
    axes = [axis % labels.ndim for axis in axes]
    if any(labels.shape[axis] > 1 for axis in axes):
        raise NotTraceable("units along an axis whose positions are told apart")
    results = []
    for shape in tracer.list_shapes():
        kept = labels if len(shape) == labels.ndim else labels.squeeze(tuple(axes))
        results.append(spread(kept, shape))
    return results if tracer.has_many_outputs() else results[0]


def apply_pad(tracer: "Tracer", a: Arguments) -> Any:
    """Pad along axes on which labels do not vary with the same label, along others with 0."""
    value = tracer.slots.read(a["self"])
    labels = shrink(value, tracer.units)
    pads = list(a["pad"])
    constant = a.get("mode", "constant") == "constant"
    if constant and (a.get("value") or 0) != 0:
        tracer.units.limit(labels, sign=False, scale=False)
    kept = []
    for number in range(len(pads) // 2):
        before, after = pads[2 * number : 2 * number + 2]
        moves = labels.shape[labels.ndim - 1 - number] > 1 and (before, after) != (0, 0)
        if moves and not constant:
            raise NotTraceable("units along an axis that is padded with its own elements")
        kept += [before, after] if moves else [0, 0]
    padded = torch.nn.functional.pad(torch.from_numpy(labels), kept)
    return spread(padded.numpy(), tracer.list_shapes()[0])


def apply_pointwise(tracer: "Tracer", a: Arguments) -> Any:
    """Combine the labels of the operands element by element."""
    operands = [leaf for leaf in tracer.list_leaves(a) if isinstance(leaf, Value | Reference)]
    shape = tracer.list_shapes()[0]
    result = tracer.slots.read(operands[0])
    for number, operand in enumerate(operands[1:]):
        result = tracer.algebra.combine(result, tracer.slots.read(operand), number)
    return spread(shrink(result, tracer.units), shape, result.uniform if result.shape == shape else frozenset())


def apply_glu(tracer: "Tracer", a: Arguments) -> Value:
    """Combine two halves."""
    value = tracer.slots.read(a["self"])
    first, second = value.labels.chunk(2, dim=a["dim"])
    return tracer.algebra.combine(Value(first), Value(second), 0)


def apply_prelu(tracer: "Tracer", a: Arguments) -> Value:
    """Multiply negative elements by a slope, one for all or one a channel."""
    value = tracer.slots.read(a["self"])
    return _scale_and_shift(tracer, value, [a["weight"]], min(1, len(value.shape) - 1))


def apply_fill(tracer: "Tracer", a: Arguments) -> Value:
    """Write one number over elements: they stay their units' own; where is told apart by how often a unit occurs."""
    if isinstance(a.get("value"), Value | Reference):
        number = tracer.slots.read(a["value"])
        if number.labels.numel() != 1 or shrink(number, tracer.units).any():
            raise NotTraceable("it writes values of units")
    return tracer.slots.read(a["self"])


def apply_like(tracer: "Tracer", a: Arguments) -> Value:
    """Make a constant from the shape of a value."""
    constant = tracer.call({**a, "self": torch.zeros(a["self"].shape, dtype=tracer.find_dtype())})
    return build_invariant(tuple(constant.shape), constant)


def apply_reduce(tracer: "Tracer", a: Arguments) -> Value:
    """Reduce over axes in a way that does not depend on the order of the elements."""
    value = tracer.slots.read(a["self"])
    axes = a.get("dim")
    if axes is None or axes == []:
        axes = list(range(len(value.shape)))
    axes = [axis % len(value.shape) for axis in (axes if isinstance(axes, list | tuple) else [axes])]
    reduced = tracer.algebra.reduce(value, axes)
    if a.get("keepdim", False):
        return reduced
    keep = [axis for axis in range(len(value.shape)) if axis not in axes]
    return Value(reduced.labels.reshape([reduced.shape[axis] for axis in keep]))


def apply_softmax(tracer: "Tracer", a: Arguments) -> Value:
    """Divide by a sum over an axis."""
    value = tracer.slots.read(a["self"])
    return tracer.algebra.combine(value, tracer.algebra.reduce(value, [a["dim"] % len(value.shape)]), 0)


def apply_layer_norm(tracer: "Tracer", a: Arguments) -> Value:
    """Normalise over the last axes; then scale and shift."""
    value = tracer.slots.read(a["input"])
    axes = list(range(len(value.shape) - len(a["normalized_shape"]), len(value.shape)))
    result = tracer.algebra.combine(value, tracer.algebra.reduce(value, axes), 0)
    return _scale_and_shift(tracer, result, [a.get("weight"), a.get("bias")], None)


def apply_group_norm(tracer: "Tracer", a: Arguments) -> Value:
    """Normalise over groups of channels; then scale and shift."""
    value = tracer.slots.read(a["input"])
    count, channels, *space = value.shape
    split = (count, a["num_groups"], channels // a["num_groups"], *space)
    labels = shrink(value, tracer.units)
    labels = np.broadcast_to(labels, (labels.shape[0], channels, *labels.shape[2:]))
    grouped = spread(labels.reshape(labels.shape[0], *split[1:3], *labels.shape[2:]), split)
    result = tracer.algebra.combine(grouped, tracer.algebra.reduce(grouped, list(range(2, len(split)))), 0)
    labels = shrink(result, tracer.units)
    labels = np.broadcast_to(labels, (labels.shape[0], *split[1:3], *labels.shape[3:]))
    result = spread(labels.reshape(labels.shape[0], channels, *labels.shape[3:]), value.shape)
    return _scale_and_shift(tracer, result, [a.get("weight"), a.get("bias")], 1)


def apply_batch_norm(tracer: "Tracer", a: Arguments) -> Value:
    """Normalise every channel; then scale and shift."""
    value = tracer.slots.read(a["input"])
    parts = [a.get("weight"), a.get("bias"), a.get("running_mean"), a.get("running_var")]
    if a.get("training") or a.get("use_input_stats"):
        first = 2 if tracer.operator == "instance_norm" else 0
        axes = [axis for axis in range(first, len(value.shape)) if axis != 1]
        value = tracer.algebra.combine(value, tracer.algebra.reduce(value, axes), 0)
    return _scale_and_shift(tracer, value, parts, 1)


def _scale_and_shift(tracer: "Tracer", value: Value, parts: list[Any], axis: int | None) -> Value:
    """Combine a value with vectors along an axis, or with tensors along its last axes."""
    for number, part in enumerate(parts, start=1):
        if part is None:
            continue
        operand = tracer.slots.read(part)
        if axis is not None:
            shape = [1] * len(value.shape)
            shape[axis] = operand.shape[0]
            operand = Value(operand.labels.reshape(shape))
        value = tracer.algebra.combine(value, operand, number)
    return value


def apply_max(tracer: "Tracer", a: Arguments) -> Any:
    """Reduce over everything, or over one axis, whose positions are told apart where they are an output."""
    return apply_reduce(tracer, a) if a.get("dim") is None else apply_positional(tracer, a, [a["dim"]])


def _build_positional(count: int) -> Rule:
    return lambda tracer, a: apply_positional(tracer, a, range(-count, 0))


def _pass_on(tracer: "Tracer", a: Arguments) -> Any:
    return a["self"] if "self" in a else a["input"]


RULES: dict[str, Rule] = {
    **dict.fromkeys(IDENTITY, _pass_on),
    **dict.fromkeys(SHAPE, apply_shape),
    **{name: _build_positional(count) for name, count in POSITIONAL.items()},
    **dict.fromkeys(POSITIONAL_DIM, lambda tracer, a: apply_positional(tracer, a, [a.get("dim", -1)])),
    **dict.fromkeys(("max", "min"), apply_max),
    **dict.fromkeys(REDUCE, apply_reduce),
    **dict.fromkeys(POINTWISE, apply_pointwise),
    **dict.fromkeys(("softmax", "log_softmax"), apply_softmax),
    **dict.fromkeys(("layer_norm", "rms_norm"), apply_layer_norm),
    **dict.fromkeys(("batch_norm", "instance_norm"), apply_batch_norm),
    **dict.fromkeys(("pad", "constant_pad_nd"), apply_pad),
    **dict.fromkeys(CONVOLUTIONS, products.apply_convolution),
    **dict.fromkeys(("matmul", "mm", "bmm", "addmm", "baddbmm"), products.apply_matmul),
    **dict.fromkeys(("fill", "zero"), apply_fill),
    **dict.fromkeys(LIKE, apply_like),
    "group_norm": apply_group_norm,
    "glu": apply_glu,
    "prelu": apply_prelu,
    "embedding": products.apply_embedding,
    "linear": products.apply_linear,
    "einsum": products.apply_einsum,
    "scaled_dot_product_attention": products.apply_attention,
}
