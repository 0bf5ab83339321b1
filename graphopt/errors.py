"""The errors graphopt raises on purpose.

GraphoptError
├── ModelError            the model cannot be read, is broken, or is not supported
│   ├── NotFinite         a weight holds NaN or infinite values
│   └── UnsupportedOp     an operator that a step must understand and does not
├── DataError             inputs, labels or a data specification do not fit the model
├── RecipeError           a recipe, a pass name or an option is wrong
├── TargetError           the output cannot be written where it was asked for
├── EditError             an edit that would break the graph; the graph is unchanged
├── RuntimeUnavailable    ONNX Runtime cannot load or run a model
└── BudgetError           a target or budget cannot be met

Every message says who complains, which rule, what was found and what to do.
"""

from __future__ import annotations

__all__ = [
    "BudgetError",
    "DataError",
    "EditError",
    "GraphoptError",
    "ModelError",
    "NotFinite",
    "RecipeError",
    "RuntimeUnavailable",
    "TargetError",
    "UnsupportedOp",
]


class GraphoptError(Exception):
    """Base of every error raised on purpose."""


class ModelError(GraphoptError):
    """The model cannot be read, is broken, or is not supported."""


class NotFinite(ModelError):
    """A weight holds NaN or infinite values, so nothing can be measured."""


class UnsupportedOp(ModelError):
    """An operator that a step must understand and does not."""


class DataError(GraphoptError):
    """Inputs, labels or a data specification do not fit the model."""


class RecipeError(GraphoptError):
    """A recipe, a pass name or an option is wrong."""


class TargetError(GraphoptError):
    """The output cannot be written where it was asked for."""


class EditError(GraphoptError):
    """An edit that would break the graph; the graph is unchanged."""


class RuntimeUnavailable(GraphoptError):
    """ONNX Runtime cannot load or run a model."""


class BudgetError(GraphoptError):
    """A target or budget cannot be met."""
