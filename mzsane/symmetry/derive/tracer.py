"""An exported graph run on labels instead of numbers: which hidden unit each element belongs to.

Rules of the operators (`operators`) tie, freeze and nest units (`units`) until nothing changes any more.
"""

import operator
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from mzsane.symmetry.derive import operators
from mzsane.symmetry.derive.algebra import Algebra
from mzsane.symmetry.derive.slots import Slots
from mzsane.symmetry.derive.units import Units
from mzsane.symmetry.derive.values import NotTraceable, Reference, Value, build_invariant, shrink

_MOST_PASSES = 20


class Tracer:
    """Runs an exported graph on labels until nothing changes any more.

    Attributes:
        units: all units.
        slots: the units along tensor axes.
        algebra: the steps that rules are made of.
        notes: warnings by node or tensor.
        operator: ATen name of the operator of the current node, without the underscore of its in-place version.
    """

    def __init__(self, program: torch.export.ExportedProgram, network: nn.Module, moving: Collection[str]) -> None:
        self._program, self._moving = program, moving
        self.units = Units()
        self.slots = Slots(self.units)
        self.algebra = Algebra(self.units)
        self.notes: dict[str, str] = {}
        self.operator = ""
        self._env: dict[fx.Node, Any] = {}
        self._inputs = self._name_inputs(network)

    def _name_inputs(self, network: nn.Module) -> dict[str, tuple[str, Tensor | None]]:
        """Return for each placeholder the name of its parameter or statistic, or "" and its constant."""
        signature = self._program.graph_signature
        tensors: dict[str, Tensor] = {
            **dict(network.named_parameters(remove_duplicate=False)),
            **dict(network.named_buffers(remove_duplicate=False)),
        }
        first_names: dict[int, str] = {}  # of tied parameters and shared modules
        for name, value in tensors.items():
            first_names.setdefault(id(value), name)
        inputs: dict[str, tuple[str, Tensor | None]] = {}
        for placeholder, name in signature.inputs_to_parameters.items():
            inputs[placeholder] = (first_names[id(tensors[name])], None)
        for placeholder, name in signature.inputs_to_buffers.items():
            moves = name in self._moving
            inputs[placeholder] = (first_names[id(tensors[name])], None) if moves else ("", tensors[name])
        for placeholder, name in signature.inputs_to_lifted_tensor_constants.items():
            inputs[placeholder] = ("", self._program.constants[name])
        return inputs

    def run(self) -> None:
        """Pass over the graph until no unit is tied or frozen any more.

        The first pass only ties what certainly belongs together: what it sees early (a class token beside patch tokens)
        is often the same unit by later layers.
        """
        for _ in range(_MOST_PASSES):
            self.units.changed = False
            self._run_pass()
            if self.algebra.settled and not self.units.changed:
                self.slots.place_elements()
                if not self.units.changed:
                    self.notes |= self.slots.notes
                    return
            self.algebra.settled = True
        self.units.freeze(np.arange(len(self.units.frozen_U)))
        self.notes["passes"] = "the units did not settle, so none of them moves"

    def _run_pass(self) -> None:
        self._env = {}
        self.units.links_L2 = np.zeros((0, 2), dtype=np.int64)
        for node in self._program.graph.nodes:
            self._node, self.algebra.node_name = node, node.name
            if node.op == "placeholder":
                self._env[node] = self._read_placeholder(node)
            elif node.op == "output":
                for leaf in self.list_leaves(self._take(node.args)):
                    self.units.freeze(shrink(self.slots.read(leaf), self.units))
            elif node.target is operator.getitem:
                self._env[node] = self._env[node.args[0]][node.args[1]]
            else:
                self._env[node] = self._run_operator(node)

    def _read_placeholder(self, node: fx.Node) -> Value | Reference:
        shape = tuple(node.meta["val"].shape)
        name, constant = self._inputs.get(node.name, ("", None))
        if name:
            return Reference(name, shape, shape)
        return build_invariant(shape, None if constant is None else constant.detach().clone())

    def _take(self, item: Any) -> Any:
        return fx.node.map_arg(item, lambda node: self._env[node])

    def _run_operator(self, node: fx.Node) -> Any:
        if not isinstance(node.target, torch._ops.OpOverload):
            self.operator = str(getattr(node.target, "__name__", node.target))
            return self._give_up(self.list_leaves([self._take(node.args), self._take(node.kwargs)]))
        schema = node.target._schema
        self.operator = schema.name.rpartition("::")[2]
        self._is_pointwise = torch.Tag.pointwise in node.target.tags
        if schema.is_mutable:
            self.operator = self.operator.rstrip("_")
        a = {argument.name: argument.default_value for argument in schema.arguments if argument.has_default_value()}
        a |= dict(zip((argument.name for argument in schema.arguments), self._take(node.args), strict=False))
        a |= self._take(node.kwargs)
        leaves = self.list_leaves(a)
        if self._is_constant(node, leaves):
            return self._compute_constant(node, a)
        rule = operators.RULES.get(self.operator)
        if self._is_pointwise and self.operator not in operators.IDENTITY:
            rule = operators.apply_pointwise
        if schema.is_mutable:
            self._forget_constant(a["self"])
        if rule is None:
            return self._give_up(leaves)
        self.algebra.pinned = 0
        try:
            result = rule(self, a)
        except NotTraceable as reason:
            return self._give_up(leaves, str(reason))
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # An overload or a mixture of operands that the rule was not written for.
            return self._give_up(leaves, f"not understood ({type(error).__name__})")
        if self.algebra.pinned:
            self.note(f"meets values that tell its units apart; its {self.algebra.pinned} units stay in place")
        self._limit_flags(a, leaves)
        return self._write_in_place(a["self"], result) if schema.is_mutable else result

    def _is_constant(self, node: fx.Node, leaves: list[Value | Reference]) -> bool:
        random = torch.Tag.nondeterministic_seeded in node.target.tags  # type: ignore[union-attr]
        return not random and all(isinstance(leaf, Value) and leaf.constant is not None for leaf in leaves)

    def _compute_constant(self, node: fx.Node, a: dict[str, Any]) -> Any:
        values = pytree.tree_map(lambda leaf: leaf.constant if isinstance(leaf, Value) else leaf, a)
        computed = self.call(values)

        def wrap(leaf: Any) -> Any:
            return build_invariant(tuple(leaf.shape), leaf) if isinstance(leaf, Tensor) else leaf

        return [wrap(leaf) for leaf in computed] if isinstance(computed, list | tuple) else wrap(computed)

    def _write_in_place(self, target: Any, result: Value) -> Any:
        """Allow an in-place operator that leaves every label as it is: other views of the memory are then right."""
        read = self.slots.read(target)
        if read.shape == result.shape:
            before, after = np.broadcast_arrays(shrink(read, self.units), shrink(result, self.units))
            if (before == after).all():
                return result
        return self._give_up([target, result])

    def _give_up(self, leaves: list[Value | Reference], reason: str = "not known") -> Any:
        """Keep in place whatever an operator touches; its result is then in place too."""
        touched: set[int] = set()
        for leaf in leaves:
            if isinstance(leaf, Reference):
                self.slots.pin(leaf.name)
            else:
                touched.update(self.units.list_roots(shrink(leaf, self.units)).tolist())
        parameters = sum(isinstance(leaf, Reference) for leaf in leaves)
        if touched or parameters:
            parts = [f"{len(touched)} units"] * bool(touched) + [f"{parameters} parameters"] * bool(parameters)
            self.note(f"{reason}; its {' and '.join(parts)} stay in place")
        self.units.freeze(np.array(sorted(touched), dtype=np.int64))
        return self.build_outputs()

    def _forget_constant(self, target: Any) -> None:
        """Stop reading a constant, and its views, once something that is no constant is written into it."""
        if not isinstance(target, Value) or target.constant is None:
            return
        memory = target.constant.untyped_storage().data_ptr()
        for node, value in self._env.items():
            constant = value.constant if isinstance(value, Value) else None
            if constant is not None and constant.untyped_storage().data_ptr() == memory:
                self._env[node] = build_invariant(value.shape)

    def _limit_flags(self, a: dict[str, Any], leaves: list[Value | Reference]) -> None:
        """Note for the units that meet an operator whether it commutes with their sign and scale."""
        name = self.operator
        if name in operators.LINEAR:
            return
        read = [leaf if isinstance(leaf, Value) or not self._is_pointwise else self.slots.read(leaf) for leaf in leaves]
        values = [value for value in read if isinstance(value, Value)]
        labelled = [labels for labels in (shrink(value, self.units) for value in values) if labels.any()]
        if name in ("matmul", "mm", "addmm", "einsum") and len(values) < len(leaves):
            return  # an activation and a weight
        sign, scale = name in operators.ODD, name in operators.HOMOGENEOUS
        if name in ("add", "sub"):
            sign = scale = len(labelled) == len(read) == 2 and np.array_equal(labelled[0], labelled[1])
        if name == "mul" or (name == "div" and a["self"] is values[0]):
            sign = scale = len(labelled) == 1 and bool(shrink(values[0], self.units).any() or name == "mul")
        for labels in labelled:
            self.units.limit(labels, sign, scale)

    def list_leaves(self, item: Any) -> list[Value | Reference]:
        """Return the values and references among arguments."""
        return [leaf for leaf in pytree.tree_leaves(item) if isinstance(leaf, Value | Reference)]

    def list_shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of the current node's outputs."""
        outputs = pytree.tree_leaves(self._node.meta.get("val"))
        return [tuple(leaf.shape) for leaf in outputs if isinstance(leaf, Tensor)]

    def has_many_outputs(self) -> bool:
        """Tell whether the current node returns a list."""
        return isinstance(self._node.meta.get("val"), list | tuple)

    def find_dtype(self) -> torch.dtype:
        """Return the type of the current node's first operand."""
        first = self._node.args[0]
        assert isinstance(first, fx.Node)
        dtype: torch.dtype = first.meta["val"].dtype
        return dtype

    def build_outputs(self) -> Any:
        """Return outputs that no permutation moves."""
        outputs = [build_invariant(shape) for shape in self.list_shapes()]
        return outputs if self.has_many_outputs() else (outputs[0] if outputs else None)

    def call(self, arguments: dict[str, Any]) -> Any:
        """Call the current node's operator."""
        target = self._node.target
        assert isinstance(target, torch._ops.OpOverload)
        positional = [arguments[item.name] for item in target._schema.arguments if not item.kwarg_only]
        keywords = {item.name: arguments[item.name] for item in target._schema.arguments if item.kwarg_only}
        return target(*positional, **keywords)

    def note(self, text: str) -> None:
        """Keep a warning about the current node."""
        stack = list(self._node.meta.get("nn_module_stack", {}).values())
        layer = (stack[-1][0] if stack else "") or "the network"
        self.notes.setdefault(self._node.name, f"{layer} (aten.{self.operator}): {text}")

    def hash_occurrences(self) -> np.ndarray:
        """Return a number for each unit that is equal for units with equally many elements in every value, uint64."""
        generator = np.random.default_rng(0)
        hashes = np.zeros(len(self.units.frozen_U), dtype=np.uint64)
        for leaf in self.list_leaves(list(self._env.values())):
            if isinstance(leaf, Value):
                numbers, counts = np.unique(shrink(leaf, self.units), return_counts=True)
                repeats = int(np.prod(leaf.shape, dtype=np.int64)) // max(1, int(counts.sum()))
                factor = generator.integers(1, 2**63, dtype=np.uint64)
                hashes[numbers] += factor * (counts * repeats).astype(np.uint64)
        return hashes
