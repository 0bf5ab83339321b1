"""The one graph: an onnx-graphsurgeon graph with names, shapes, edits and lossless files.

Every question is asked by tensor name, for names are unique over the whole model, the bodies of
If, Loop and Scan included. Every change goes through `apply`, `set_constant` or `set_attribute`:
they check first and then change, or raise and change nothing. Arrays are never written in place;
that is what lets clones share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from graphopt.errors import EditError, ModelError, TargetError
from graphopt.ir import convert, editing, normalise, shapes
from graphopt.ir.digest import digest
from graphopt.ir.edit import Edit
from graphopt.ir.facts import Facts
from graphopt.ir.reading import INLINE_BYTES, Array, read_model
from graphopt.ir.scopes import Scopes
from graphopt.ir.source import Source
from graphopt.ir.structure import check_nodes, count_nodes, straighten
from graphopt.ir.values import Known, known_array
from graphopt.ir.writing import noted, skeleton_tensor, write_model, written_size

__all__ = ["Graph"]


class Graph:
    """A model being optimized. Make one with `Graph.load` or `clone`."""

    def __init__(self, model: onnx.ModelProto, arrays: Mapping[str, Array]) -> None:
        """Take a skeleton and its large initializers, as `read_model` returns them."""
        overridable = straighten(model)
        self._frame = _frame(model)
        self._input_order = [info.name for info in model.graph.input]
        self._infos = dict(convert.declared(model.graph))
        self._scopes = Scopes(convert.import_scope(model), arrays, overridable)
        self._facts: Facts | None = None
        self._revision = 0
        self.source: Source | None = None

    @classmethod
    def load(cls, source: str | Path | bytes | onnx.ModelProto) -> Self:
        """Load a model and normalise it, so that results do not depend on who exported it.

        Raises ModelError if the source is not an ONNX model, or not one that can be carried.
        """
        path = None if isinstance(source, bytes | onnx.ModelProto) else Path(source)
        if isinstance(source, onnx.ModelProto):
            source = source.SerializeToString()
        model, arrays, external = read_model(source)
        size = written_size(model, arrays)
        if path is not None:  # an external file lies beside, and its bytes come on top
            size = max(size, path.stat().st_size)
        nodes = count_nodes(model.graph)
        try:
            graph = cls(model, arrays)
        except ModelError as error:
            raise ModelError(f"{path}: {error}" if path else str(error)) from error
        graph.source = Source(path, nodes, size, external)
        normalise.normalise(graph)
        return graph

    def clone(self) -> Self:
        """A copy with a structure of its own and the same arrays."""
        other = object.__new__(type(self))
        other._frame, other._input_order = self._frame, self._input_order
        other._infos = dict(self._infos)
        other._scopes = self._scopes.copy()
        other._facts = None if self._facts is None else self._facts.copy(other._scopes)
        other._revision = self._revision
        other.source = self.source
        return other

    def with_outputs(self, names: Sequence[str]) -> Self:
        """A copy that returns these computed tensors, in this order, and only what they need.

        Raises EditError for a tensor that no node of the main scope computes.
        """
        known = {n: convert.declaration(n, self._info(n)) for n in names if n in self}
        other = self.clone()
        other._scopes.expose(names)
        other._infos = known | other._infos
        other._revision += 1
        other.prune()
        return other

    def with_open_axes(self, axes: Mapping[str, int], symbol: str) -> Self:
        """A copy whose inputs have any size along one axis each; outputs' sizes are inferred."""
        other = self.clone()
        for name in (*axes, *self.outputs):
            info = onnx.ValueInfoProto()
            info.CopyFrom(other._infos[name])
            if name in axes:
                info.type.tensor_type.shape.dim[axes[name]].dim_param = symbol
            else:
                info.type.tensor_type.ClearField("shape")
            other._infos[name] = info
        other._facts = None
        other._revision += 1
        return other

    def adopt(self, other: Graph) -> None:
        """Become what `other` is; `other` must not be used any more."""
        self._frame, self._infos = other._frame, other._infos
        self._input_order = other._input_order
        self._scopes, self._facts = other._scopes, other._facts
        self._revision += 1

    # ---- what there is -------------------------------------------------------------------

    @property
    def opset(self) -> int:
        """The version of the standard operator set."""
        return self.domains.get("", 1)

    @property
    def domains(self) -> dict[str, int]:
        """Operator-set versions by domain; the standard domain is the empty name."""
        return {
            "" if entry.domain == "ai.onnx" else entry.domain: entry.version
            for entry in self._frame.opset_import
        }

    @property
    def metadata(self) -> dict[str, str]:
        return {entry.key: entry.value for entry in self._frame.metadata_props}

    def set_metadata(self, key: str, value: str | None) -> None:
        """Note something in the model; None takes it away."""
        self._frame = noted(self._frame, key, value)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of the model-local functions."""
        return tuple(function.name for function in self._frame.functions)

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self._scopes.top.inputs)

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(tensor.name for tensor in self._scopes.top.outputs)

    @property
    def nodes(self) -> list[gs.Node]:
        """Nodes of the main scope, in topological order. Read, do not change."""
        return self._scopes.nodes(self._scopes.top)

    def all_nodes(self) -> Iterator[gs.Node]:
        """Nodes of every scope, a body after the nodes before its owner."""
        for scope in self.scopes():
            yield from self._scopes.nodes(scope)

    def scopes(self) -> Iterator[gs.Graph]:
        """The main scope, then the bodies, outer before inner."""
        yield from self._scopes.walk()

    def scope_of(self, node: gs.Node) -> gs.Graph:
        return self._scopes.of(node)

    def holds(self, node: gs.Node) -> bool:
        """Whether a node is (still) part of this graph."""
        return self._scopes.holds(node)

    @property
    def revision(self) -> int:
        """How many edits there have been."""
        return self._revision

    def tensor(self, name: str) -> gs.Tensor:
        return self._scopes.tensors[name]

    def __contains__(self, name: str) -> bool:
        return name in self._scopes.tensors

    def producer(self, name: str) -> gs.Node | None:
        producers = self._scopes.tensors[name].inputs
        return producers[0] if producers else None

    def consumers(self, name: str) -> list[gs.Node]:
        """Nodes that read the tensor, in every scope, one entry per use."""
        return list(self._scopes.tensors[name].outputs)

    def is_output(self, name: str) -> bool:
        """Whether the tensor is an output of the main scope or of a body."""
        return self._scopes.is_output(name)

    def is_input(self, name: str) -> bool:
        """Whether the tensor is an input of the main scope or of a body."""
        return self._scopes.is_input(name)

    def constant(self, name: str) -> Array | None:
        """The value of a constant; None for what is computed or may be overridden by a caller."""
        tensor = self._scopes.tensors.get(name)
        return convert.values_of(tensor) if isinstance(tensor, gs.Constant) else None

    def default(self, name: str) -> Array | None:
        """What an overridable initializer holds for callers who give nothing else."""
        return self._scopes.defaults.get(name)

    def constants(self) -> dict[str, Array]:
        """All constants that some node reads or some scope returns."""
        return {
            name: convert.values_of(tensor)
            for name, tensor in self._scopes.tensors.items()
            if isinstance(tensor, gs.Constant)
        }

    def fresh(self, hint: str) -> str:
        """A name that no tensor has, made from `hint`."""
        return self._scopes.fresh(hint)

    # ---- shapes --------------------------------------------------------------------------

    def shape(self, name: str) -> shapes.Dims | None:
        return self._info(name).shape

    def dtype(self, name: str) -> np.dtype[np.generic] | None:
        return self._info(name).dtype

    def __repr__(self) -> str:
        """What people see who look at a graph in a session."""
        ports = f"{', '.join(self.inputs)} -> {', '.join(self.outputs)}"
        return f"<Graph of {len(self.nodes)} nodes: {ports}>"

    def is_float(self, name: str) -> bool:
        """Whether a tensor is known to hold floats."""
        dtype = self.dtype(name)
        return dtype is not None and np.issubdtype(dtype, np.floating)

    def known(self, name: str) -> Known | None:
        """What is known of an integer tensor's value, be it constant or computed from shapes."""
        return self._facts_now().known(name)

    def _info(self, name: str) -> shapes.TensorInfo:
        return self._facts_now().info(name)

    def _facts_now(self) -> Facts:
        if self._facts is None:
            self._facts = Facts.of(self._model(inline_bytes=INLINE_BYTES)[0], self._scopes)
        return self._facts

    def reshape_notice(self) -> None:
        """Drop every inferred shape: sizes have changed, not only structure."""
        self._facts = None

    # ---- changes -------------------------------------------------------------------------

    def can_replace(self, old: str, new: str) -> bool:
        """Whether every use of `old` can be redirected to `new` without an Identity in between."""
        return editing.can_replace(self._scopes, old, new)

    def apply(self, edit: Edit) -> None:
        """Change the structure. Raises EditError, with nothing changed, if that would break it."""
        editing.check(self._scopes, edit)
        touched = editing.perform(self._scopes, edit)
        self._revision += 1
        if self._facts is not None:
            self._facts.forget(touched)

    def set_constant(self, name: str, array: Array) -> None:
        """Give an existing constant a new value, for all who read it."""
        tensor = self._scopes.tensors.get(name)
        if not isinstance(tensor, gs.Constant):
            raise EditError(f"set_constant: {name!r} is not a constant")
        reshaped = convert.values_of(tensor).shape != array.shape
        tensor.values = array
        self._revision += 1
        if reshaped or known_array(array) is not None:
            self._facts = None

    def set_attribute(self, node: gs.Node, key: str, value: object | None) -> None:
        """Set an attribute, or remove it with None."""
        if value is None:
            node.attrs.pop(key, None)
        else:
            node.attrs[key] = value
        self._revision += 1

    def rename(self, old: str, new: str) -> None:
        """Give a tensor another name, wherever it is read; inputs and outputs keep theirs."""
        editing.rename(self._scopes, old, new)
        self._facts = None
        self._revision += 1

    def prune(self) -> int:
        """Drop nodes and tensors that reach no output; return how many nodes went."""
        gone = editing.prune(self._scopes)
        self._revision += gone > 0
        return gone

    # ---- files ---------------------------------------------------------------------------

    def _exporter(self) -> convert.Exporter:
        return convert.Exporter(self.domains, self._infos, self._scopes.placement())

    def _model(self, inline_bytes: int) -> tuple[onnx.ModelProto, dict[str, Array]]:
        """The model with initializers over `inline_bytes` left out, and those, by name."""
        model = onnx.ModelProto()
        model.CopyFrom(self._frame)
        exporter, arrays = self._exporter(), {}
        protos, uniform = [], []
        for constant in exporter.constants.get(id(self._scopes.top), ()):
            array = convert.values_of(constant)
            if normalise.is_uniform(array):
                node, shape = normalise.uniform_node(constant.name, array)
                uniform.append(node)
                protos.append(shape)
                continue
            protos.append(skeleton_tensor(constant.name, array, inline_bytes))
            if protos[-1].data_location == onnx.TensorProto.EXTERNAL:
                arrays[constant.name] = array
        for scope in self.scopes():
            self._scopes.nodes(scope)  # brings it into order
        protos.extend(skeleton_tensor(n, a, 2**62) for n, a in self._scopes.defaults.items())
        model.graph.MergeFrom(exporter.scope(self._scopes.top, uniform, protos))
        order = {name: place for place, name in enumerate(self._input_order)}
        model.graph.input.extend(self._infos[name] for name in self._scopes.defaults)
        model.graph.input.sort(key=lambda info: order[info.name])
        self._import_domains(model)
        return model, arrays

    def _import_domains(self, model: onnx.ModelProto) -> None:
        known = {"" if e.domain == "ai.onnx" else e.domain for e in model.opset_import}
        used = {node.domain or "" for node in self.all_nodes()} - {"ai.onnx"}
        for domain in sorted(used - known):
            model.opset_import.add(domain=domain, version=1)

    def skeleton(self, inline_bytes: int = 1024) -> tuple[bytes, dict[str, Array]]:
        """The model's bytes with larger initializers marked external, and their arrays.

        ONNX Runtime takes the two apart, so that no weight is copied to run a model.
        """
        model, arrays = self._model(inline_bytes)
        return model.SerializeToString(deterministic=True), arrays

    def size_bytes(self) -> int:
        """How large the saved file is, if it is one file."""
        return written_size(*self._model(INLINE_BYTES))

    def to_model(self) -> onnx.ModelProto:
        """The whole model as one protobuf message (under 2 GiB)."""
        return self._model(inline_bytes=2**62)[0]

    def to_bytes(self) -> bytes:
        return bytes(self.to_model().SerializeToString(deterministic=True))

    def save(self, path: str | Path, *, external_data: bool | None = None) -> None:
        """Write the file whole or not at all; over 2 GiB the weights go into `<name>.data`.

        Raises TargetError if the place cannot be written, or has weights of the loaded model.
        """
        target = Path(path)
        if target.is_dir():
            raise TargetError(f"{target}: is a directory; name a file")
        model, arrays = self._model(INLINE_BYTES)
        kept = () if self.source is None else self.source.kept(target)
        write_model(target, model, arrays, external=external_data, kept=kept)

    # ---- identity ------------------------------------------------------------------------

    def fingerprint(self) -> str:
        """A digest of the structure and of which arrays are held, for this process only."""
        return digest(*self._model(inline_bytes=64), by_content=False)

    def content_hash(self) -> str:
        """A digest of the structure and of every weight's bytes, equal wherever it is computed."""
        return digest(*self._model(inline_bytes=64), by_content=True)

    def verify(self) -> None:
        """Raise ModelError if the graph breaks a rule of ONNX that shows without running it.

        Every tensor read is produced before, no name is produced twice, outputs are produced, and
        ONNX's checker accepts each standard operator's inputs and attributes.
        """
        model, _ = self._model(INLINE_BYTES)
        straighten(model)
        check_nodes(model)


def _frame(model: onnx.ModelProto) -> onnx.ModelProto:
    """All of a model but its graph."""
    frame = onnx.ModelProto()
    frame.CopyFrom(model)
    frame.ClearField("graph")
    frame.graph.doc_string = model.graph.doc_string
    frame.graph.metadata_props.extend(model.graph.metadata_props)
    return frame
