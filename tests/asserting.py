"""The assertions that carry the suite: structure, refusal, equal outputs, validity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnx.parser
import onnx.printer
import onnxruntime as ort

from graphopt.ir import Graph
from graphopt.passbase import Context, Pass

__all__ = [
    "apply_pass",
    "assert_rewrites",
    "assert_same_outputs",
    "assert_unchanged",
    "assert_valid",
    "canonical",
    "parse",
    "run_model",
]


def parse(text: str, *, seed: int = 0, opset: int = 17) -> onnx.ModelProto:
    """Parse ONNX text; a text without a header gets IR version 10 and the given operator set.

    Tensors declared between the signature and the body, `<float[4,3,3,3] w>`, that no node
    produces become initializers drawn at random; those with "var" in their name are positive.
    """
    if not text.lstrip().startswith("<"):
        text = f'<ir_version: 10, opset_import: ["" : {opset}]>\n{text}'
    model = onnx.parser.parse_model(text)
    rng = np.random.default_rng(seed)
    made = {name for node in model.graph.node for name in node.output}
    for info in model.graph.value_info:
        if info.name in made:
            continue
        array = rng.standard_normal([dim.dim_value for dim in info.type.tensor_type.shape.dim])
        if "var" in info.name:
            array = np.abs(array) + 0.5
        dtype = onnx.helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        values = np.asarray(array).astype(dtype)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, info.name))
    del model.graph.value_info[:]
    return model


def apply_pass(model: onnx.ModelProto, *passes: Pass) -> Graph:
    """Load a model and run passes over it, without a manager."""
    graph = Graph.load(model)
    original = graph.clone()
    for step in passes:
        step.run(graph, Context(original=original))
    graph.prune()
    return graph


def canonical(model: onnx.ModelProto) -> str:
    """The model as text, with intermediate tensors and constants renamed by order of use."""
    model = onnx.ModelProto.FromString(model.SerializeToString())
    graph = model.graph
    kept = {info.name for info in (*graph.input, *graph.output)}
    names: dict[str, str] = {"": ""}
    for node in graph.node:
        for name in (*node.input, *node.output):
            names.setdefault(name, name if name in kept else f"t{len(names)}")
        node.input[:] = [names[name] for name in node.input]
        node.output[:] = [names[name] for name in node.output]
        node.name = ""
    for tensor in graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    shapes = sorted((t.name, tuple(t.dims), t.data_type) for t in graph.initializer)
    for node in graph.node:
        node.attribute.sort(key=lambda attribute: attribute.name)
    del graph.initializer[:], graph.value_info[:]
    return "\n".join([*(onnx.printer.to_text(node) for node in graph.node), str(shapes)])


def run_model(model: onnx.ModelProto | Graph, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """Run in ONNX Runtime without its optimizer, so that two optimizers are not compared."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    data = model.to_bytes() if isinstance(model, Graph) else model.SerializeToString()
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feeds)))


def random_inputs(model: onnx.ModelProto, seed: int = 0, size: int = 2) -> dict[str, np.ndarray]:
    """Random feeds for a model's inputs; unknown dimensions become `size`."""
    rng = np.random.default_rng(seed)
    known = {tensor.name for tensor in model.graph.initializer}
    feeds = {}
    for info in model.graph.input:
        if info.name in known:
            continue
        tensor = info.type.tensor_type
        shape = [dim.dim_value or size for dim in tensor.shape.dim]
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        feeds[info.name] = np.asarray(rng.standard_normal(shape)).astype(dtype)
    return feeds


def assert_same_outputs(
    before: onnx.ModelProto,
    after: onnx.ModelProto | Graph,
    *,
    tolerance: float = 1e-5,
    feeds: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Outputs agree to `tolerance` of their largest magnitude; integers and shapes exactly."""
    feeds = random_inputs(before) if feeds is None else feeds
    for want, got in zip(run_model(before, feeds), run_model(after, feeds), strict=True):
        assert want.shape == got.shape, (want.shape, got.shape)
        assert want.dtype == got.dtype, (want.dtype, got.dtype)
        if want.dtype.kind != "f":
            np.testing.assert_array_equal(want, got)
            continue
        scale = float(np.max(np.abs(want), initial=0.0)) or 1.0
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * scale)


def assert_valid(graph: Graph) -> None:
    """The graph passes `verify`, the full checker accepts it, and it survives save and load."""
    graph.verify()
    model = graph.to_model()
    if all(entry.domain in ("", "ai.onnx") for entry in model.opset_import):
        onnx.checker.check_model(model, full_check=True)
    assert Graph.load(model).to_bytes() == graph.to_bytes(), "load and save are not a fixed point"


def assert_rewrites(before: str, after: str, *passes: Pass, opset: int = 17) -> Graph:
    """`passes` turn `before` into the structure of `after`, and outputs stay equal."""
    model = parse(before, opset=opset)
    graph = apply_pass(model, *passes)
    expected = Graph.load(parse(after, opset=opset)).to_model()
    assert canonical(graph.to_model()) == canonical(expected)
    assert_valid(graph)
    assert_same_outputs(model, graph)
    return graph


def assert_unchanged(text: str, *passes: Pass, opset: int = 17) -> Graph:
    """`passes` leave the model exactly as it was."""
    model = parse(text, opset=opset)
    before = Graph.load(model)
    after = apply_pass(model, *passes)
    assert canonical(before.to_model()) == canonical(after.to_model())
    return after


def operators(graph: Graph) -> Sequence[str]:
    """The operators of the main scope, in order."""
    return [node.op for node in graph.nodes]
