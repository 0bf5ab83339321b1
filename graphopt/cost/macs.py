"""Multiply-accumulates of one node, one row per operator.

One multiplication with its addition counts as 1. Only products with weights or between activations
that are summed up count (convolutions, matrix products, recurrent cells, attention); what works
element by element, moves data, pools or normalises is listed as free. An operator in neither list
is unknown, and is reported so.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

__all__ = ["FREE", "MACS", "Call", "UnknownSize", "operator"]


class UnknownSize(Exception):
    """A size that a row needs is not known."""


def operator(node: gs.Node) -> str:
    """Return the operator's name, with its domain in front unless that is the standard one."""
    return node.op if node.domain in (None, "", "ai.onnx") else f"{node.domain}:{node.op}"


@dataclass(frozen=True)
class Call:
    """A node with the sizes of what it reads and writes."""

    node: gs.Node
    shape: Callable[[str], tuple[int, ...] | None]

    def has(self, index: int) -> bool:
        return index < len(self.node.inputs) and bool(self.node.inputs[index].name)

    def given(self, index: int) -> tuple[int, ...]:
        """The shape of input `index`; raises UnknownSize where it is not fully known."""
        return self._known(self.node.inputs, index)

    def made(self, index: int = 0) -> tuple[int, ...]:
        """The shape of output `index`; raises UnknownSize where it is not fully known."""
        return self._known(self.node.outputs, index)

    def number(self, key: str, default: int = 0) -> int:
        return int(self.node.attrs.get(key, default))

    def _known(self, tensors: list[gs.Tensor], index: int) -> tuple[int, ...]:
        shape = self.shape(tensors[index].name) if index < len(tensors) else None
        if shape is None:
            raise UnknownSize
        return shape


_Row = Callable[[Call], int]


def _convolution(weight: int) -> _Row:
    """Weight is (out, in / group, *kernel): every output element sums over all but the first."""
    return lambda call: math.prod(call.made()) * math.prod(call.given(weight)[1:])


def _transposed_convolution(call: Call) -> int:
    """Weight is (in, out / group, *kernel): each input element is spread over all but the first."""
    return math.prod(call.given(0)) * math.prod(call.given(1)[1:])


def _product(right: int = 1) -> _Row:
    """A matrix product of input 0 with input `right`, either of them transposed if it says so.

    Reads the inputs alone, for ONNX infers no shapes of other domains' operators.
    """

    def row(call: Call) -> int:
        a, b = call.given(0), call.given(right)
        batch = math.prod(np.broadcast_shapes(a[:-2], b[:-2]))
        columns = b[-2 if call.number("transB") else -1] if len(b) > 1 else 1
        return batch * math.prod(a[-2:]) * columns

    return row


def _packed_product(call: Call) -> int:
    """A matrix product with packed weights, whose columns are the attribute N."""
    return math.prod(call.given(0)) * call.number("N")


def _recurrent(call: Call) -> int:
    """Per step and direction the gates' input and recurrent matrices, each used once."""
    steps_and_batch = math.prod(call.given(0)[:2])
    return steps_and_batch * (math.prod(call.given(1)) + math.prod(call.given(2)))


def _einsum(call: Call) -> int:
    """One or two operands: the product of all axes' sizes, or nothing if no two are multiplied."""
    left = str(call.node.attrs["equation"]).replace(" ", "").split("->")[0]
    terms = left.split(",")
    if len(terms) == 1:
        return 0
    if len(terms) > 2:
        raise UnknownSize  # depends on the order of contraction
    sizes: dict[str, int] = {}
    for index, term in enumerate(terms):
        shape = call.given(index)
        for label, size in zip(_labels(term, len(shape)), shape, strict=True):
            sizes[label] = max(size, sizes.get(label, 1))
    return math.prod(sizes.values())


def _labels(term: str, rank: int) -> list[str]:
    """One label per axis; those under an ellipsis are numbered from the right, as they align."""
    before, dots, after = term.partition("...")
    hidden = rank - len(before) - len(after)
    return [*before, *(f".{i}" for i in range(hidden, 0, -1) if dots), *after]


def _attention(call: Call) -> int:
    """Scores and their product with the values, over all query heads (onnx's Attention)."""
    query, key, value = (call.given(index) for index in range(3))
    # The present key, where there is one, has the past's length in it.
    length = call.made(1)[2] if call.has(4) else key[-2]
    if len(query) == 4:
        return math.prod(query[:3]) * length * (query[-1] + value[-1])
    width = value[-1] // call.number("kv_num_heads") * call.number("q_num_heads")
    return math.prod(query[:2]) * length * (query[-1] + width)


def _projected_attention(call: Call) -> int:
    """The joint projection (in, 3 * hidden), then the scores and the product with the values."""
    batch, length, _ = call.given(0)
    if call.has(4):
        raise UnknownSize  # a past of its own length
    weight, hidden = call.given(1), call.made()[-1]
    return batch * length * (math.prod(weight) + 2 * length * hidden)


def _separate_attention(call: Call) -> int:
    """Scores and their product with the values; all three inputs are (batch, length, hidden)."""
    query, key, value = (call.given(index) for index in range(3))
    if len(query) != 3 or len(key) != 3 or call.has(6):
        raise UnknownSize  # packed, or with a past of its own length
    return math.prod(query[:2]) * key[1] * (query[-1] + value[-1])


def _linear_model(call: Call) -> int:
    """Every row is multiplied with all coefficients."""
    rows = call.given(0)[0] if len(call.given(0)) > 1 else 1
    return rows * len(call.node.attrs["coefficients"])


MACS: Mapping[str, _Row] = {
    "Attention": _attention,
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "ConvTranspose": _transposed_convolution,
    "DeformConv": _convolution(1),
    "Einsum": _einsum,
    "GRU": _recurrent,
    "Gemm": _product(),
    "LSTM": _recurrent,
    "MatMul": _product(),
    "MatMulInteger": _product(),
    "QLinearConv": _convolution(3),
    "QLinearMatMul": _product(3),
    "RNN": _recurrent,
    "ai.onnx.ml:LinearClassifier": _linear_model,
    "ai.onnx.ml:LinearRegressor": _linear_model,
    "com.microsoft:Attention": _projected_attention,
    "com.microsoft:ConvTransposeWithDynamicPads": _transposed_convolution,
    "com.microsoft:DynamicQuantizeLSTM": _recurrent,
    "com.microsoft:DynamicQuantizeMatMul": _product(),
    "com.microsoft:FusedConv": _convolution(1),
    "com.microsoft:FusedGemm": _product(),
    "com.microsoft:FusedMatMul": _product(),
    "com.microsoft:FusedMatMulActivation": _product(),
    "com.microsoft:GemmFastGelu": _product(),
    "com.microsoft:MatMulBnb4": _packed_product,
    "com.microsoft:MatMulInteger16": _product(),
    "com.microsoft:MatMulIntegerToFloat": _product(),
    "com.microsoft:MatMulNBits": _packed_product,
    "com.microsoft:MultiHeadAttention": _separate_attention,
    "com.microsoft:NhwcConv": _convolution(1),
    "com.microsoft:NhwcFusedConv": _convolution(1),
    "com.microsoft:QAttention": _projected_attention,
    "com.microsoft:QGemm": _product(3),
    "com.microsoft:QLinearConv": _convolution(3),
    "com.microsoft:TransposeMatMul": _product(),
}

_FREE_STANDARD = """
    Abs Acos Acosh Add AffineGrid And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool
    BatchNormalization Bernoulli BitCast BitShift BitwiseAnd BitwiseNot BitwiseOr BitwiseXor
    BlackmanWindow Cast CastLike Ceil Celu CenterCropPad Clip Col2Im Compress Concat
    ConcatFromSequence Constant ConstantOfShape Cos Cosh CumProd CumSum DepthToSpace
    DequantizeLinear Det Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand EyeLike Flatten
    Floor Gather GatherElements GatherND Gelu GlobalAveragePool GlobalLpPool GlobalMaxPool Greater
    GreaterOrEqual GridSample GroupNormalization HammingWindow HannWindow HardSigmoid HardSwish
    Hardmax Identity ImageDecoder InstanceNormalization IsInf IsNaN LRN LayerNormalization
    LeakyRelu Less LessOrEqual Log LogSoftmax LpNormalization LpPool Max MaxPool MaxRoiPool
    MaxUnpool Mean MeanVarianceNormalization MelWeightMatrix Min Mish Mod Mul Multinomial Neg
    NegativeLogLikelihoodLoss NonMaxSuppression NonZero Not OneHot Optional OptionalGetElement
    OptionalHasElement Or PRelu Pad Pow QuantizeLinear RMSNormalization RandomNormal
    RandomNormalLike RandomUniform RandomUniformLike Range Reciprocal ReduceL1 ReduceL2
    ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
    ReduceSumSquare RegexFullMatch Relu Reshape Resize ReverseSequence RoiAlign RotaryEmbedding
    Round Scatter ScatterElements ScatterND Selu SequenceAt SequenceConstruct SequenceEmpty
    SequenceErase SequenceInsert SequenceLength Shape Shrink Sigmoid Sign Sin Sinh Size Slice
    Softmax SoftmaxCrossEntropyLoss Softplus Softsign SpaceToDepth Split SplitToSequence Sqrt
    Squeeze StringConcat StringNormalizer StringSplit Sub Sum SwiGLU Swish Tan Tanh TensorScatter
    TfIdfVectorizer ThresholdedRelu Tile TopK Transpose Trilu Unique Unsqueeze Upsample Where Xor
"""
_FREE_ML = """
    ArrayFeatureExtractor Binarizer CastMap CategoryMapper DictVectorizer FeatureVectorizer Imputer
    LabelEncoder Normalizer OneHotEncoder Scaler TreeEnsemble TreeEnsembleClassifier
    TreeEnsembleRegressor ZipMap
"""
_FREE_MICROSOFT = """
    BiasAdd BiasDropout BiasGelu BiasSoftmax BiasSplitGelu DequantizeLinear EmbedLayerNormalization
    ExpandDims FastGelu GatherBlockQuantized GatherND Gelu GridSample GroupNorm IsAllFinite
    MaxpoolWithMask MulInteger NhwcMaxPool Pad QEmbedLayerNormalization QLinearAdd
    QLinearAveragePool QLinearConcat QLinearGlobalAveragePool QLinearLeakyRelu QLinearMul
    QLinearReduceMean QLinearSigmoid QLinearSoftmax QLinearWhere QuantizeLinear QuickGelu Range
    ReduceSumInteger RelativePositionBias RotaryEmbedding SimplifiedLayerNormalization
    SkipGroupNorm SkipLayerNormalization SkipSimplifiedLayerNormalization SwiGLU Tokenizer Trilu
    Unique
"""
FREE = frozenset(
    [
        *_FREE_STANDARD.split(),
        *(f"ai.onnx.ml:{name}" for name in _FREE_ML.split()),
        *(f"com.microsoft:{name}" for name in _FREE_MICROSOFT.split()),
        "SimplifiedLayerNormalization",  # ONNX Runtime's own, registered as a standard operator
    ]
)
"""Operators without multiply-accumulates, each named; resizing counts as moving data."""
