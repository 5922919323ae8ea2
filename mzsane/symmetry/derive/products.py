"""What products do to units: linear layers, convolutions, matrix products, attention.

A weight's rows become new units, its columns belong to the units that it meets. In a product of two activations the
contraction ties the units of both; where it runs inside heads, the head becomes their parent.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from mzsane.symmetry.derive.units import INVARIANT
from mzsane.symmetry.derive.values import NotTraceable, Reference, Value, shrink, spread

if TYPE_CHECKING:
    from mzsane.symmetry.derive.tracer import Tracer

Arguments = dict[str, Any]


def apply_embedding(tracer: "Tracer", a: Arguments) -> Value:
    """Look up rows, which stay in place."""
    weight, chosen = a["weight"], tracer.slots.read(a["indices"])
    if not isinstance(weight, Reference) or weight.positions is not None or (shrink(chosen, tracer.units) != 0).any():
        raise NotTraceable("not a plain table")
    tracer.units.freeze(tracer.slots.get(weight, 0))
    return spread(tracer.slots.get(weight, 1), tracer.list_shapes()[0])


def apply_linear(tracer: "Tracer", a: Arguments) -> Value:
    """Multiply by a weight along the last axis."""
    weight = a["weight"]
    if not isinstance(weight, Reference):
        return apply_contract(tracer, [a["input"], weight], "matmul_transposed", a.get("bias"))
    slots = tracer.slots.get_matrix(weight)
    if slots is None:
        raise NotTraceable("a weight put together in a way that is not known")
    value = tracer.slots.read(a["input"])
    result = project(tracer, value, len(value.shape) - 1, slots[1], slots[0], weight)
    return result if a.get("bias") is None else tracer.algebra.combine(result, tracer.slots.read(a["bias"]), 1)


def project(
    tracer: "Tracer", value: Value, axis: int, columns: np.ndarray, rows: np.ndarray, weight: Reference
) -> Value:
    """Contract one axis of a value with a weight's columns; its rows become the new axis."""
    labels = shrink(value, tracer.units)
    shape = (*value.shape[:axis], len(rows), *value.shape[axis + 1 :])
    if labels.shape[axis] == 1 and labels.size > 1:
        # The weight mixes positions of units: they keep their places, and the units go through.
        tracer.slots.pin(weight.name)
        tracer.note(f"mixes positions; its own {len(rows)} units stay in place")
        tracer.units.limit(labels, sign=False, scale=False)
        return spread(labels, shape)
    tracer.units.tie(tracer.algebra.align(value, axis), columns)
    out = np.reshape(rows, [-1 if number == axis else 1 for number in range(len(shape))])
    return spread(out, shape)


def apply_convolution(tracer: "Tracer", a: Arguments) -> Value:
    """Multiply by a weight along the channels, in groups."""
    weight, value, groups = a["weight"], tracer.slots.read(a["input"]), a["groups"]
    if not isinstance(weight, Reference) or weight.positions is not None:
        raise NotTraceable("a weight that is not a parameter")
    axis = len(value.shape) - len(weight.shape) + 1
    labels = shrink(value, tracer.units)
    if labels.shape[axis] == 1 and labels.size > 1:
        raise NotTraceable("it mixes positions of units")
    channels = tracer.algebra.align(value, axis)
    transposed = "transpose" in tracer.operator
    in_axis, out_axis = (0, 1) if transposed else (1, 0)
    if groups == 1:
        tracer.units.tie(channels, tracer.slots.get(weight, in_axis, role="in"))
        out = tracer.slots.get(weight, out_axis)
    else:
        out = _convolve_groups(tracer, weight, channels, groups, transposed)
    if a.get("bias") is not None:
        tracer.units.tie(tracer.slots.read(a["bias"]).labels.numpy(), out)
    shape = tracer.list_shapes()[0]
    return spread(out.reshape(-1, *[1] * (len(weight.shape) - 2)), shape)


def _convolve_groups(
    tracer: "Tracer", weight: Reference, channels: np.ndarray, groups: int, transposed: bool
) -> np.ndarray:
    """Tie the inputs of every group to its columns; inputs and outputs move inside their group."""
    units = tracer.units
    inputs = len(channels) // groups
    outputs = weight.shape[1] if transposed else weight.shape[0] // groups
    if inputs == outputs == 1:
        units.tie(tracer.slots.get(weight, 0), channels)
        return units.find(channels)
    blocks = units.allocate((tracer.algebra.node_name, "groups"), groups)
    out: list[np.ndarray] = []
    for group in range(groups):
        ours = channels[group * inputs : (group + 1) * inputs]
        span = (group * inputs, (group + 1) * inputs) if transposed else (group * outputs, (group + 1) * outputs)
        if transposed:
            tracer.units.tie(ours, tracer.slots.get(weight, 0, role="in")[slice(*span)])
            rows = tracer.slots.get(weight, 1, span)
        else:
            rows = tracer.slots.get(weight, 0)[slice(*span)]
            if inputs > 1:
                tracer.units.tie(ours, tracer.slots.get(weight, 1, span, role="in"))
        out.append(rows)
        if (units.find(ours) == INVARIANT).any():
            units.freeze(blocks[[group]])
        units.link(ours, np.full(len(ours), blocks[group]))
        units.link(rows, np.full(len(rows), blocks[group]))
    return np.concatenate(out)


def apply_matmul(tracer: "Tracer", a: Arguments) -> Value:
    """Multiply two activations, or an activation and a weight."""
    first, second = (a["self"], a["other"]) if "other" in a else (a.get("self"), a.get("mat2"))
    added = None
    if tracer.operator in ("addmm", "baddbmm"):
        added = a["self"]
        first, second = (a["mat1"], a["mat2"]) if tracer.operator == "addmm" else (a["batch1"], a["batch2"])
    if isinstance(second, Reference) and len(second.shape) == 2 and isinstance(first, Value):
        slots = tracer.slots.get_matrix(second)
        if slots is None:
            raise NotTraceable("a weight put together in a way that is not known")
        result = project(tracer, first, len(first.shape) - 1, slots[0], slots[1], second)
        return result if added is None else tracer.algebra.combine(result, tracer.slots.read(added), 1)
    if isinstance(first, Reference) and len(first.shape) == 2 and isinstance(second, Value) and len(second.shape) > 1:
        slots = tracer.slots.get_matrix(first)
        if slots is None or added is not None:
            raise NotTraceable("a weight put together in a way that is not known")
        return project(tracer, second, len(second.shape) - 2, slots[1], slots[0], first)
    return apply_contract(tracer, [first, second], "matmul", added)


def apply_contract(tracer: "Tracer", operands: list[Any], kind: str, added: Any = None) -> Value:
    """Multiply two activations as matrices."""
    first, second = (tracer.slots.read(operand) for operand in operands)
    if min(len(first.shape), len(second.shape)) < 2:
        raise NotTraceable("a product with a vector")
    batch = "abcdefgh"[: max(len(first.shape), len(second.shape)) - 2]
    left = batch[len(batch) - len(first.shape) + 2 :] + "xy"
    right = batch[len(batch) - len(second.shape) + 2 :] + ("zy" if kind == "matmul_transposed" else "yz")
    result = tracer.algebra.contract(first, second, left, right, batch + "xz")
    return result if added is None else tracer.algebra.combine(result, tracer.slots.read(added), 1)


def apply_einsum(tracer: "Tracer", a: Arguments) -> Value:
    """Multiply two activations, or an activation and a matrix, by an equation."""
    equation = a["equation"].replace(" ", "")
    operands = a["tensors"]
    if len(operands) != 2 or "->" not in equation or "." in equation:
        raise NotTraceable("an equation of another form")
    inputs, output = equation.split("->")
    left, right = inputs.split(",")
    if any(len(set(term)) != len(term) for term in (left, right, output)):
        raise NotTraceable("an equation with repeated indices")
    if isinstance(operands[0], Reference):
        operands, left, right = operands[::-1], right, left
    first, second = operands
    shared = [letter for letter in right if letter in left]
    if isinstance(second, Reference) and len(right) == 2 and len(shared) == 1 and shared[0] not in output:
        slots = tracer.slots.get_matrix(second)
        if slots is None or isinstance(first, Reference):
            raise NotTraceable("a weight put together in a way that is not known")
        place = right.index(shared[0])
        axis = left.index(shared[0])
        result = project(tracer, first, axis, slots[place], slots[1 - place], second)
        letters = left.replace(shared[0], right[1 - place])
        if sorted(letters) != sorted(output):
            raise NotTraceable("an equation of another form")
        return Value(result.labels.permute([letters.index(letter) for letter in output]))
    return tracer.algebra.contract(tracer.slots.read(first), tracer.slots.read(second), left, right, output)


def apply_attention(tracer: "Tracer", a: Arguments) -> Value:
    """Scaled dot-product attention: softmax(q k^T) v."""
    query, key, value = (tracer.slots.read(a[name]) for name in ("query", "key", "value"))
    if a.get("enable_gqa") or not len(query.shape) == len(key.shape) == len(value.shape):
        raise NotTraceable("heads that share keys")
    batch = "abcdefgh"[: len(query.shape) - 2]
    scores = tracer.algebra.contract(query, key, f"{batch}xd", f"{batch}yd", f"{batch}xy")
    if a.get("attn_mask") is not None:
        scores = tracer.algebra.combine(scores, tracer.slots.read(a["attn_mask"]), 1)
    scores = tracer.algebra.combine(scores, tracer.algebra.reduce(scores, [len(scores.shape) - 1]), 2)
    return tracer.algebra.contract(scores, value, f"{batch}xy", f"{batch}ye", f"{batch}xe")
