"""The methods: one module each, found by name through the `graphopt.passes` entry point."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["CATALOG"]

CATALOG: Mapping[str, str] = {
    "align-channels": "passes.align_channels:AlignChannels",
    "convolve-affine": "passes.convolve_affine:ConvolveAffine",
    "distill": "passes.distill:Distill",
    "equalize": "passes.equalize:Equalize",
    "factor-gates": "passes.factor_gates:FactorGates",
    "factorize": "passes.factorize:Factorize",
    "finetune": "passes.finetune:Finetune",
    "fold-affine": "passes.fold_affine:FoldAffine",
    "fold-batch-norm": "passes.fold_batch_norm:FoldBatchNorm",
    "fold-constants": "passes.fold_constants:FoldConstants",
    "fold-permutations": "passes.fold_permutations:FoldPermutations",
    "fold-shapes": "passes.fold_shapes:FoldShapes",
    "fold-shortcut": "passes.fold_shortcut:FoldShortcut",
    "fold-shuffle": "passes.fold_shuffle:FoldShuffle",
    "fold-space-to-depth": "passes.fold_space_to_depth:FoldSpaceToDepth",
    "fold-zeros": "passes.fold_zeros:FoldZeros",
    "fuse-activations": "passes.fuse_activations:FuseActivations",
    "fuse-batch-norm": "passes.fuse_batch_norm:FuseBatchNorm",
    "fuse-gelu": "passes.fuse_gelu:FuseGelu",
    "fuse-gemm": "passes.fuse_gemm:FuseGemm",
    "fuse-hard-activations": "passes.fuse_hard_activations:FuseHardActivations",
    "fuse-norms": "passes.fuse_norms:FuseNorms",
    "fuse-pad": "passes.fuse_pad:FusePad",
    "fuse-relus": "passes.fuse_relus:FuseRelus",
    "hoist-scales": "passes.hoist_scales:HoistScales",
    "inline-branches": "passes.inline_branches:InlineBranches",
    "inline-functions": "passes.inline_functions:InlineFunctions",
    "merge-affine": "passes.merge_affine:MergeAffine",
    "merge-chains": "passes.merge_chains:MergeChains",
    "merge-duplicates": "passes.merge_duplicates:MergeDuplicates",
    "merge-layers": "passes.merge_layers:MergeLayers",
    "merge-reshapes": "passes.merge_reshapes:MergeReshapes",
    "merge-slices": "passes.merge_slices:MergeSlices",
    "quantize-dynamic": "passes.quantize_dynamic:QuantizeDynamic",
    "quantize-static": "passes.quantize_static:QuantizeStatic",
    "quantize-weights": "passes.quantize_weights:QuantizeWeights",
    "re-estimate-batch-norm": "passes.re_estimate_batch_norm:ReEstimateBatchNorm",
    "refit": "passes.refit:Refit",
    "remove-and-refit": "passes.remove_and_refit:RemoveAndRefit",
    "remove-channels": "passes.remove_channels:RemoveChannels",
    "remove-dead-code": "passes.remove_dead_code:RemoveDeadCode",
    "remove-identities": "passes.remove_identities:RemoveIdentities",
    "restore-batch-norm": "passes.restore_batch_norm:RestoreBatchNorm",
    "simplify-axes": "passes.simplify_axes:SimplifyAxes",
    "sink-transposes": "passes.sink_transposes:SinkTransposes",
    "to-float16": "passes.to_float16:ToFloat16",
}
"""Pass name -> "module:Class"; listing passes imports none of them."""
