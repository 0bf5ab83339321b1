"""The methods: one module each, found by name through the `graphopt.passes` entry point."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CATALOG"]

CATALOG: Mapping[str, str] = {
    "convolve-affine": "passes.convolve_affine:ConvolveAffine",
    "factor-gates": "passes.factor_gates:FactorGates",
    "fold-affine": "passes.fold_affine:FoldAffine",
    "fold-batch-norm": "passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "passes.fold_constants:FoldConstants",
    "fold-shapes": "passes.fold_shapes:FoldShapes",
    "fold-shuffle": "passes.fold_shuffle:FoldShuffle",
    "fuse-activations": "passes.fuse_activations:FuseActivations",
    "fuse-gemm": "passes.fuse_gemm:FuseGemm",
    "fuse-hard-activations": "passes.fuse_hard_activations:FuseHardActivations",
    "fuse-norms": "passes.fuse_norms:FuseNorms",
    "fuse-pad": "passes.fuse_pad:FusePad",
    "fuse-relus": "passes.fuse_relus:FuseRelus",
    "inline-branches": "passes.inline_branches:InlineBranches",
    "inline-functions": "passes.inline_functions:InlineFunctions",
    "merge-affine": "passes.merge_affine:MergeAffine",
    "merge-chains": "passes.merge_chains:MergeChains",
    "merge-duplicates": "passes.merge_duplicates:MergeDuplicates",
    "merge-layers": "passes.merge_layers:MergeLayers",
    "merge-reshapes": "passes.merge_reshapes:MergeReshapes",
    "merge-slices": "passes.merge_slices:MergeSlices",
    "remove-channels": "passes.remove_channels:RemoveChannels",
    "remove-dead-code": "passes.remove_dead_code:RemoveDeadCode",
    "remove-identities": "passes.remove_identities:RemoveIdentities",
    "sink-transposes": "passes.sink_transposes:SinkTransposes",
}
"""Pass name -> "module:Class"; listing passes imports none of them."""
