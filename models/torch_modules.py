"""Turn a graph into a torch module of ordinary layers, as tools that look for layers expect it.

The trainable view calls functions on bare parameters; here every convolution, dense layer, layer
normalisation and PRelu with weights of its own becomes the layer of torch that a person would
have written, so that a tool for PyTorch modules meets an ONNX file at its best.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping

import torch
from torch import fx, nn
from torch.nn import functional

from graphopt.ir import Graph
from graphopt.lens import lower

__all__ = ["as_layers"]

_CONVOLUTIONS: Mapping[object, type[nn.Module]] = {
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
}
_TRANSPOSED: Mapping[object, type[nn.Module]] = {
    functional.conv_transpose1d: nn.ConvTranspose1d,
    functional.conv_transpose2d: nn.ConvTranspose2d,
    functional.conv_transpose3d: nn.ConvTranspose3d,
}


def as_layers(graph: Graph) -> tuple[fx.GraphModule, dict[str, str]]:
    """A module that computes what a graph does, and the weight of each of its layers by name.

    Layers are called after nothing in the graph; the second result maps the path of each layer to
    the name of the initializer that became its weight. Raises UnsupportedOp as the view does.
    """
    module = lower(graph)
    names: dict[str, str] = {}
    for node in list(module.graph.nodes):
        found = _layer(module, node)
        if found is None:
            continue
        layer, source, weight, last = found
        path = f"layer{len(names)}"
        module.add_submodule(path, layer)
        with module.graph.inserting_before(last):
            call = module.graph.call_module(path, (source,))
        last.replace_all_uses_with(call)
        names[path] = module.binding[weight]
    module.graph.eliminate_dead_code()
    module.delete_all_unused_submodules()
    _drop_unused(module)
    _flatten_by_rank(module)
    module.recompile()
    return module, names


_Found = tuple[nn.Module, fx.Node, str, fx.Node]
"""A layer, what it reads, the path of its weight, and the node whose result it gives."""


def _layer(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    row = _ROWS.get(node.target) if node.op == "call_function" else None
    return None if row is None else row(module, node)


def _own(module: fx.GraphModule, value: object) -> nn.Parameter | None:
    """The parameter that a value is, if one node alone reads it."""
    if not isinstance(value, fx.Node) or value.op != "get_attr" or len(value.users) != 1:
        return None
    return module.get_parameter(str(value.target)) if _is_parameter(module, value) else None


def _is_parameter(module: fx.GraphModule, value: fx.Node) -> bool:
    return str(value.target) in dict(module.named_parameters(remove_duplicate=False))


def _convolution(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    source, held, bias, stride, padding, *rest = node.args
    weight, shift = _own(module, held), _own(module, bias)
    if weight is None or (bias is not None and shift is None):
        return None
    transposed = node.target in _TRANSPOSED
    if transposed:
        extra, groups, dilation = rest
    else:
        dilation, groups = rest
    assert isinstance(groups, int), "the number of groups is known"
    wide, narrow = weight.shape[0], weight.shape[1] * groups
    widths = (wide, narrow) if transposed else (narrow, wide)
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options["output_padding"] = extra
    table = _TRANSPOSED if transposed else _CONVOLUTIONS
    kernel = tuple(weight.shape[2:])
    layer = table[node.target](*widths, kernel, bias=shift is not None, **options)
    return _filled(layer, weight, shift), _node(source), _path(held), node


def _linear(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    source, held, bias = (*node.args, None)[:3]
    weight, shift = _own(module, held), _own(module, bias)
    turned = held if isinstance(held, fx.Node) and held.target is torch.t else None
    if turned is not None:
        held = turned.args[0]
        weight = _own(module, held)
        weight = None if weight is None else nn.Parameter(weight.detach().t().contiguous())
    if weight is None or (bias is not None and shift is None):
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=shift is not None)
    return _filled(layer, weight, shift), _node(source), _path(held), node


def _product(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    """A matrix product with a weight, and the bias that is added to it."""
    source, held = node.args
    weight = _own(module, held)
    if weight is None or weight.dim() != 2:
        return None
    last, shift = node, None
    if len(node.users) == 1:
        after = next(iter(node.users))
        if after.target is torch.add or after.target is operator.add:
            others = [value for value in after.args if value is not node]
            found = _own(module, others[0]) if len(others) == 1 else None
            if found is not None and tuple(found.shape) == tuple(weight.shape[1:]):
                last, shift = after, found
    layer = nn.Linear(weight.shape[0], weight.shape[1], bias=shift is not None)
    turned = nn.Parameter(weight.detach().t().contiguous())
    return _filled(layer, turned, shift), _node(source), _path(held), last


def _layer_norm(module: fx.GraphModule, node: fx.Node) -> _Found | None:
    source, shape, scale, shift, epsilon = node.args
    weight, bias = _own(module, scale), _own(module, shift)
    if weight is None or bias is None:
        return None
    assert isinstance(shape, list | tuple), "the axes it normalises over are known"
    assert isinstance(epsilon, float)
    layer = nn.LayerNorm(shape, eps=epsilon)
    return _filled(layer, weight, bias), _node(source), _path(scale), node


_ROWS: Mapping[object, Callable[[fx.GraphModule, fx.Node], _Found | None]] = {
    **dict.fromkeys((*_CONVOLUTIONS, *_TRANSPOSED), _convolution),
    functional.layer_norm: _layer_norm,
    functional.linear: _linear,
    torch.matmul: _product,
}


_POOLS = (torch.mean, functional.avg_pool2d, functional.adaptive_avg_pool2d)


def _filled(layer: nn.Module, weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Module:
    layer.register_parameter("weight", weight)
    if bias is not None:
        layer.register_parameter("bias", bias)
    return layer.eval()


def _flatten_by_rank(module: fx.GraphModule) -> None:
    """Let a Reshape of pooled images to rows count its columns by itself, not by a constant."""
    for node in module.graph.nodes:
        sizes = node.args[1] if node.target is torch.reshape else None
        if isinstance(sizes, tuple | list) and len(sizes) == 2 and sizes[0] == -1:
            source = node.args[0]
            if isinstance(source, fx.Node) and source.target in _POOLS:
                node.target, node.args = torch.flatten, (source, 1)


def _node(value: object) -> fx.Node:
    assert isinstance(value, fx.Node), "a layer reads what the module computes"
    return value


def _path(value: object) -> str:
    assert isinstance(value, fx.Node), "a weight is read from the module"
    return str(value.target)


def _drop_unused(module: fx.GraphModule) -> None:
    """Forget parameters and buffers of the module itself that no call reads any more."""
    read = {str(node.target) for node in module.graph.nodes if node.op == "get_attr"}
    own = [name for name, _ in module.named_parameters(recurse=False)]
    own += [name for name, _ in module.named_buffers(recurse=False)]
    for name in own:
        if name not in read:
            delattr(module, name)
