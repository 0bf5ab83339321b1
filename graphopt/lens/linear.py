"""Lowerings of matrix products."""

from __future__ import annotations

import operator
from collections.abc import Mapping

import torch
from torch import fx
from torch.nn import functional

from graphopt.lens.site import Row, Site

__all__ = ["ROWS"]


def _matmul(site: Site) -> fx.Node:
    return site.call(torch.matmul, site.arg(0), site.arg(1))


def _gemm(site: Site) -> fx.Node:
    alpha, beta = site.number("alpha", 1.0), site.number("beta", 1.0)
    left, right = site.arg(0), site.arg(1)
    if site.flag("transA"):
        left = site.call(torch.t, left)
    bias = site.optional(2)
    plain = alpha == 1.0 and (bias is None or beta == 1.0)
    if plain and (bias is None or site.rank(2) == 1) and site.is_float(0):
        weight = right if site.flag("transB") else site.call(torch.t, right)
        if bias is None or _spans_outputs(site):
            return site.call(functional.linear, left, weight, bias)
    if site.flag("transB"):
        right = site.call(torch.t, right)
    out = site.call(torch.matmul, left, right)
    if alpha != 1.0:
        out = site.call(operator.mul, out, alpha)
    if bias is None or beta == 0.0:
        return out
    if beta != 1.0:
        bias = site.call(operator.mul, bias, beta)
    return site.call(operator.add, out, bias)


def _spans_outputs(site: Site) -> bool:
    """Whether the bias has one entry per output, and is not one number for all."""
    bias, weight = site.graph.shape(site.name(2)), site.graph.shape(site.name(1))
    if bias is None or weight is None:
        return False
    return bias[0] == weight[0 if site.flag("transB") else 1]


def _einsum(site: Site) -> fx.Node:
    equation = site.text("equation", "").replace(" ", "")
    return site.call(torch.einsum, equation, *site.args())


ROWS: Mapping[str, Row] = {"Einsum": _einsum, "Gemm": _gemm, "MatMul": _matmul}
