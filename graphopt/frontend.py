"""PyTorch modules in: a module becomes a graph whose weights keep their state_dict names."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import torch
from torch import nn

from graphopt.data import load_function, user_code
from graphopt.errors import DataError, ModelError
from graphopt.ir import Array, Edit, Graph, NewNode, rename_values
from graphopt.runtime import Session

__all__ = ["load_model", "trace"]

Dynamic = bool | Mapping[str, Mapping[int, str]]
"""Which sizes vary: the first of every input (or none), or names by input and axis."""

_TOLERANCE = 1e-4
"""Of the output's range: float32 in another order of summation, through a deep network."""


def trace(
    module: nn.Module,
    example_inputs: torch.Tensor | Sequence[torch.Tensor],
    *,
    dynamic: Dynamic = True,
    input_names: Sequence[str] | None = None,
    output_names: Sequence[str] | None = None,
) -> Graph:
    """Turn a PyTorch module into a graph, in eval mode, with BatchNormalization kept.

    `dynamic` lets the first axis of every input vary, named "batch"; False fixes all sizes; a
    mapping {"input": {axis: "name"}} says which ones vary. Raises ModelError with the exporter's
    reason, or if the graph's outputs differ from the module's.
    """
    inputs = (example_inputs,) if isinstance(example_inputs, torch.Tensor) else example_inputs
    inputs = tuple(inputs)
    if dynamic is True:
        inputs = tuple(_several(value) for value in inputs)
    with _evaluating(module), torch.no_grad():
        expected = _flat(module(*inputs))
        model = _export(module, inputs, dynamic, input_names, output_names)
    _strip(model)
    graph = Graph.load(model)
    _drop_zero_biases(graph)
    graph.prune()
    _compare(graph, inputs, expected)
    return graph


def load_model(spec: str) -> Graph:
    """Trace what the `file.py:factory` of the user's returns: (module, example inputs).

    A module alone will do if it has its inputs as an attribute `example_inputs`.
    """
    factory = load_function(spec, "model")
    with user_code(spec, "model"):
        made = factory()
        if isinstance(made, nn.Module):
            made = (made, vars(made).get("example_inputs"))
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[0], nn.Module):
            raise DataError(
                f"model: {spec} gave a {type(made).__name__}; return (module, example inputs)"
            )
        module, inputs = made
        tensors = [inputs] if isinstance(inputs, torch.Tensor) else inputs
        if not isinstance(tensors, list | tuple) or not tensors:
            raise DataError(
                f"model: {spec} gave no example inputs; return (module, tuple of tensors)"
            )
        return trace(module, tuple(tensors))


def _several(value: torch.Tensor) -> torch.Tensor:
    """A batch of one twice: the exporter takes a size of 1 for a fixed one."""
    return torch.cat([value, value]) if value.dim() and value.shape[0] == 1 else value


@contextlib.contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Put every part of a module in eval mode, and back as it was."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _flat(made: object) -> list[torch.Tensor]:
    """The tensors of a module's result, in the order that an exporter lists them."""
    if isinstance(made, torch.Tensor):
        return [made]
    if isinstance(made, Mapping):
        return [tensor for value in made.values() for tensor in _flat(value)]
    if isinstance(made, list | tuple):
        return [tensor for value in made for tensor in _flat(value)]
    return []


def _export(
    module: nn.Module,
    inputs: tuple[torch.Tensor, ...],
    dynamic: Dynamic,
    input_names: Sequence[str] | None,
    output_names: Sequence[str] | None,
) -> onnx.ModelProto:
    with _quiet():
        # Under names that nothing inside has: the exporter itself does not make room for others.
        asked = (_unlike("input", input_names), _unlike("output", output_names))
        try:
            program = torch.onnx.export(
                module,
                inputs,
                dynamo=True,
                optimize=False,
                verbose=False,
                input_names=list(asked[0]),
                output_names=list(asked[1]),
                dynamic_shapes=_shapes(inputs, dynamic, input_names),
            )
        except torch.onnx.OnnxExporterError as error:
            raise ModelError(
                f"trace: torch cannot export {type(module).__name__}: {_reason(error)}"
            ) from error
    assert program is not None, "the exporter returns a program when it writes no file"
    model: onnx.ModelProto = program.model_proto
    rename_values(model.graph, {**asked[0], **asked[1]})
    return model


def _unlike(kind: str, names: Sequence[str] | None) -> dict[str, str]:
    """The names asked for, by others that no tensor of an exporter's has."""
    return {f"graphopt_{kind}_{place}": name for place, name in enumerate(names or ())}


def _shapes(
    inputs: tuple[torch.Tensor, ...], dynamic: Dynamic, names: Sequence[str] | None
) -> tuple[dict[int, torch.export.Dim], ...] | None:
    """Which axes of which input vary, as torch.export wants to hear it."""
    dims: dict[str, torch.export.Dim] = {}

    def named(name: str) -> torch.export.Dim:
        return dims.setdefault(name, torch.export.Dim(name))

    if isinstance(dynamic, Mapping):
        if names is None or not set(dynamic) <= set(names):
            raise ModelError(
                f"trace: dynamic names {sorted(dynamic)}, input_names are {list(names or ())}; "
                f"give input_names that contain them"
            )
        axes = [dynamic.get(name, {}) for name in names]
        return tuple({axis: named(name) for axis, name in given.items()} for given in axes)
    if not dynamic:
        return None
    return tuple({0: named("batch")} if value.dim() else {} for value in inputs)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's warnings and notices off the screen: what matters is raised."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _reason(error: BaseException) -> str:
    """The first line of the innermost cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def _strip(model: onnx.ModelProto) -> None:
    """Drop the exporter's notes on where everything came from."""
    del model.metadata_props[:], model.graph.metadata_props[:]
    model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        del value.metadata_props[:]
    for tensor in model.graph.initializer:
        del tensor.metadata_props[:]


def _drop_zero_biases(graph: Graph) -> None:
    """The exporter gives a convolution without bias one that it computes: zeros."""
    doomed = [
        node
        for node in graph.nodes
        if node.op in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and _is_zero(graph, node)
    ]
    for node in doomed:
        names = tuple(tensor.name for tensor in node.inputs[:2])
        outputs = tuple(tensor.name for tensor in node.outputs)
        plain = NewNode(node.op, names, outputs, dict(node.attrs), name=node.name)
        graph.apply(Edit(remove=(node,), add=(plain,)))


def _is_zero(graph: Graph, conv: gs.Node) -> bool:
    """Whether the bias is zeros spread by the exporter."""
    name = conv.inputs[2].name
    node = graph.producer(name)
    while node is not None and node.op in ("Cast", "CastLike", "Expand"):
        name = node.inputs[0].name
        node = graph.producer(name)
    array = graph.constant(name)
    return name != conv.inputs[2].name and array is not None and not array.any()


def _compare(
    graph: Graph, inputs: tuple[torch.Tensor, ...], expected: Sequence[torch.Tensor]
) -> None:
    """Raise ModelError if the graph does not give what the module gave."""
    feeds = dict(zip(graph.inputs, (_array(value) for value in inputs), strict=False))
    if len(feeds) != len(graph.inputs):
        raise ModelError(
            f"trace: the graph has inputs {list(graph.inputs)}, the module was given "
            f"{len(inputs)}; pass tensors only"
        )
    with Session.open(graph, optimize="none") as session:
        results = session.run(feeds)
    for name, got, tensor in zip(graph.outputs, results, expected, strict=False):
        want = _array(tensor)
        scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
        if want.shape != got.shape or not np.allclose(got, want, rtol=0, atol=_TOLERANCE * scale):
            raise ModelError(
                f"trace: output {name!r} of the exported graph differs from the module's; does the "
                f"module draw random numbers in eval mode, or depend on values in Python?"
            )


def _array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu().numpy())
