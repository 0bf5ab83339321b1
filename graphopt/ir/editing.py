"""Carry out an edit: check it against the graph first, then change the graph."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_graphsurgeon as gs

from graphopt.errors import EditError
from graphopt.ir.edit import Edit, NewNode
from graphopt.ir.scopes import Scopes, bodies

__all__ = ["can_replace", "check", "perform", "prune", "rename"]


def can_replace(scopes: Scopes, old: str, new: str) -> bool:
    """Whether uses of `old` may go to `new` while the names of outputs survive.

    An output's name can move to the new tensor only if some node of the same scope produces it
    and it is not an output itself.
    """
    if not scopes.is_output(old):
        return True
    target = scopes.tensors[new]
    if not target.inputs or scopes.is_output(new):
        return False
    source = scopes.tensors[old]
    return not source.inputs or scopes.of(source.inputs[0]) is scopes.of(target.inputs[0])


def check(scopes: Scopes, edit: Edit) -> None:
    """Raise EditError if the edit would leave a reader without its tensor, or a name made twice."""
    for node in edit.remove:
        scopes.of(node)
    inner = [node for owner in edit.remove for node in _inside(owner)]
    going = {id(node) for node in (*edit.remove, *inner)}
    made = {name for node in edit.add for name in node.outputs if name}
    kept = {"", *made, *edit.constants, *edit.replace}
    lost = {tensor.name for node in edit.remove for tensor in node.outputs} - kept
    for name in lost:
        readers = [node for node in scopes.tensors[name].outputs if not _goes(scopes, node, going)]
        if readers or scopes.is_output(name):
            raise EditError(f"edit: {name!r} is still read, and nothing would produce it")
    lost |= {tensor.name for node in inner for tensor in node.outputs} - kept
    _check_new(scopes, edit, going, lost)
    for old, new in edit.replace.items():
        if old not in scopes.tensors:
            raise EditError(f"edit: {old!r} cannot be replaced, there is no such tensor")
        if new not in made and (new not in scopes.tensors or new in lost):
            raise EditError(f"edit: {old!r} cannot be replaced by {new!r}, which is not there")
        if new not in made and not can_replace(scopes, old, new):
            raise EditError(f"edit: output {old!r} cannot take the place of {new!r}")
    renamed = [new for old, new in edit.replace.items() if scopes.is_output(old)]
    if len(set(renamed)) < len(renamed):
        raise EditError("edit: two outputs cannot both take the place of one tensor")
    for name in edit.constants:
        tensor = scopes.tensors.get(name)
        if tensor is None or isinstance(tensor, gs.Constant):
            continue
        if not tensor.inputs or id(tensor.inputs[0]) not in going or scopes.is_output(name):
            raise EditError(f"edit: {name!r} is an input, an output or computed, so no constant")


def _inside(node: gs.Node) -> Iterator[gs.Node]:
    """The nodes of a node's bodies, and of theirs."""
    for body in bodies(node):
        for inner in body.nodes:
            yield inner
            yield from _inside(inner)


def _goes(scopes: Scopes, node: gs.Node, going: set[int]) -> bool:
    """Whether a node is removed, by itself or with a body that holds it."""
    if id(node) in going:
        return True
    scope = scopes.of(node)
    owner = scopes.owner(scope)
    return owner is not None and _goes(scopes, owner, going)


def _check_new(scopes: Scopes, edit: Edit, going: set[int], lost: set[str]) -> None:
    available = set(edit.constants)
    for new in edit.add:
        for name in new.inputs:
            if not isinstance(name, str) or not name or name in available:
                continue
            if name not in scopes.tensors or name in lost:
                raise EditError(f"edit: new {new.op} reads {name!r}, which is not there")
        for name in new.outputs:
            if not name:
                continue
            tensor = scopes.tensors.get(name)
            if name in available or (
                tensor is not None
                and (
                    isinstance(tensor, gs.Constant)
                    or any(id(n) not in going for n in tensor.inputs)
                )
            ):
                raise EditError(f"edit: {name!r} would be produced twice")
            available.add(name)


def perform(scopes: Scopes, edit: Edit) -> set[str]:
    """Change the graph; return the names whose inferred shapes may no longer hold."""
    anchor = edit.remove[0] if edit.remove else edit.scope_of
    scope = scopes.top if anchor is None else scopes.of(anchor)
    rank = max(
        (scopes.rank(node) for node in edit.remove if scopes.of(node) is scope), default=None
    )
    if rank is None:
        rank = -1.0 if anchor is None else scopes.rank(anchor)
    dropped = [tensor.name for node in edit.remove for tensor in node.outputs if tensor.name]
    read = [tensor.name for node in edit.remove for tensor in _reads(node)]
    for node in edit.remove:
        if scopes.holds(node):
            scopes.remove(node)
    for name, array in edit.constants.items():
        _set_constant(scopes, name, array)
    for new in edit.add:
        node = _build(scopes, new)
        for inner in _inside(node):
            _link(inner)  # a body that moves here has been cut off where it was
        scopes.add(node, scope, rank)
    pairs = [(old, scopes.tensors[name]) for old, name in edit.replace.items()]
    for old, target in pairs:
        _redirect(scopes, old, target)
    made = {name for new in edit.add for name in new.outputs}
    for name in (*dropped, *read):
        _forget_unused(scopes, name)
    return {*(set(dropped) ^ made), *edit.constants, *edit.replace}


def _reads(node: gs.Node) -> Iterator[gs.Tensor]:
    for reader in (node, *_inside(node)):
        yield from (tensor for tensor in reader.inputs if tensor.name)


def _link(node: gs.Node) -> None:
    """Enter a node with the tensors that it reads and produces, once per use."""
    pairs = [(tensor, tensor.outputs, node.inputs) for tensor in node.inputs]
    pairs += [(tensor, tensor.inputs, node.outputs) for tensor in node.outputs]
    for tensor, ends, tensors in pairs:
        uses = sum(other is tensor for other in tensors)
        if tensor.name and sum(end is node for end in ends) < uses:
            list.append(ends, node)


def _set_constant(scopes: Scopes, name: str, array: np.ndarray) -> None:
    tensor = scopes.tensors.get(name)
    if isinstance(tensor, gs.Constant):
        tensor.values = array
        return
    scopes.tensors[name] = gs.Constant(name, array)
    if tensor is not None:
        _hand_over(tensor, scopes.tensors[name])


def _build(scopes: Scopes, new: NewNode) -> gs.Node:
    inputs: list[gs.Tensor] = []
    for entry in new.inputs:
        if not isinstance(entry, str):
            name = scopes.fresh(f"{new.outputs[0]}_{len(inputs)}")
            scopes.tensors[name] = gs.Constant(name, entry)
            inputs.append(scopes.tensors[name])
        elif entry:
            inputs.append(scopes.tensors[entry])
        else:
            inputs.append(gs.Variable.empty())
    outputs = []
    for name in new.outputs:
        if name and name not in scopes.tensors:
            scopes.tensors[name] = gs.Variable(name)
        outputs.append(scopes.tensors[name] if name else gs.Variable.empty())
    name = scopes.fresh_node(new.name or new.outputs[0])
    return gs.Node(new.op, name, dict(new.attrs), inputs, outputs, new.domain or None)


def _hand_over(source: gs.Tensor, target: gs.Tensor) -> None:
    """Make all readers of one tensor read another, but for the node that produces that other."""
    for node in {id(node): node for node in source.outputs}.values():
        if any(tensor is target for tensor in node.outputs):
            continue
        for index, tensor in enumerate(node.inputs):
            if tensor is source:
                list.__setitem__(node.inputs, index, target)
                list.append(target.outputs, node)
        kept = [reader for reader in source.outputs if reader is not node]
        list.clear(source.outputs)
        list.extend(source.outputs, kept)


def _redirect(scopes: Scopes, old: str, target: gs.Tensor) -> None:
    source = scopes.tensors[old]
    _hand_over(source, target)
    if not scopes.is_output(old):
        return
    for scope in scopes.walk():
        for index, tensor in enumerate(scope.outputs):
            if tensor is source:
                scope.outputs[index] = target
    scopes.rename(source, scopes.fresh(f"{old}_before"))
    scopes.rename(target, old)


def _forget_unused(scopes: Scopes, name: str) -> None:
    tensor = scopes.tensors.get(name)
    if tensor is None or tensor.inputs or tensor.outputs:
        return
    if not scopes.is_output(name) and not scopes.is_input(name):
        scopes.forget(name)


def prune(scopes: Scopes) -> int:
    """Drop nodes none of whose outputs is read or returned, and constants nobody reads."""
    gone = 0
    for scope in list(scopes.walk())[::-1]:
        kept = {tensor.name for tensor in scope.outputs}
        for node in list(scopes.nodes(scope))[::-1]:
            if not any(t.outputs or t.name in kept for t in node.outputs if t.name):
                scopes.remove(node)
                gone += 1
    for name in list(scopes.tensors):
        _forget_unused(scopes, name)
    return gone


def rename(scopes: Scopes, old: str, new: str) -> None:
    """Give a tensor another name; raise EditError for one whose name a caller knows."""
    if new in scopes.tensors:
        raise EditError(f"rename: {old!r} cannot become {new!r}, which is there already")
    if old not in scopes.tensors or scopes.is_input(old) or scopes.is_output(old):
        raise EditError(f"rename: {old!r} is not there, or is an input or an output")
    scopes.rename(scopes.tensors[old], new)
