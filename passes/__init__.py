"""The methods: one module each, found by name through the `graphopt.passes` entry point."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CATALOG"]

CATALOG: Mapping[str, str] = {
    "fold-batch-norm": "passes.fold_batch_norm:FoldBatchNorm",
}
"""Pass name -> "module:Class"; listing passes imports none of them."""
