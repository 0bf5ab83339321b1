"""Run a model in ONNX Runtime."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.capi import onnxruntime_pybind11_state as errors

from graphopt.errors import RuntimeUnavailable
from graphopt.ir import Graph
from graphopt.packed import is_packed, restored
from graphopt.runtime.values import (
    RAW_TYPES,
    feed_value,
    from_ort,
    lent_value,
    port_dtype,
    to_ort,
)

__all__ = ["Model", "Optimize", "Port", "Session"]

Model = Graph | str | Path | bytes | onnx.ModelProto
Optimize = Literal["none", "basic", "all"]

_LEVELS: Mapping[Optimize, ort.GraphOptimizationLevel] = {
    "none": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}

# ONNX Runtime's own exceptions share no base below Exception; pybind adds the builtin ones.
_ORT_ERRORS = (
    errors.EPFail,
    errors.EngineError,
    errors.Fail,
    errors.InvalidArgument,
    errors.InvalidGraph,
    errors.InvalidProtobuf,
    errors.ModelLoaded,
    errors.NoModel,
    errors.NoSuchFile,
    errors.NotImplemented,
    errors.RuntimeException,
    IndexError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)

_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_PROTOBUF_LIMIT = 2**31 - 1
_REASON_LENGTH = 400
# "/path/file.cc:12 return type Class::function(arguments) text", or "file.cc:12 function text".
_SOURCE_LOCATION = re.compile(
    r"/\S+\.(?:cc|h):\d+ .*?\(.*?\)(?: const)?(?:::<lambda.*?>\))? (?=\S)|\b\w+\.(?:cc|h):\d+ \w+ "
)


@dataclass(frozen=True)
class Port:
    """One input or output of a model; `dtype` is None where the value is not a tensor."""

    name: str
    shape: tuple[int | str | None, ...]
    dtype: np.dtype | None
    kind: str


class Session:
    """One model loaded in ONNX Runtime; release it with `close`, or use it as a context.

    Values are numpy arrays throughout, also sequences and maps (see graphopt.runtime.values).
    """

    def __init__(self, session: ort.InferenceSession, held: tuple[object, ...] = ()) -> None:
        self._session: ort.InferenceSession | None = session
        self._held = held  # memory that the session uses in place
        self.inputs = tuple(_port(arg) for arg in session.get_inputs())
        self.outputs = tuple(_port(arg) for arg in session.get_outputs())
        self._has_raw_types = any(port.dtype in RAW_TYPES for port in self.inputs + self.outputs)

    @classmethod
    def open(
        cls,
        model: Model,
        *,
        threads: int = 1,
        optimize: Optimize = "all",
        providers: tuple[str, ...] = ("CPUExecutionProvider",),
        spin: bool = True,
        profile: str | None = None,
    ) -> Self:
        """Load `model`; `threads=0` means all cores, `optimize` is ONNX Runtime's own optimizer.

        A Graph's weights are lent, not copied, when nothing is optimized (otherwise ONNX Runtime
        makes its own, packed copies). `spin=False` lets idle worker threads sleep at once. Where
        `profile` begins a path, every kernel is timed into a file (see `profile`).

        Raises RuntimeUnavailable with ONNX Runtime's reason.
        """
        options = _options(threads, optimize, spin=spin)
        if profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = profile
        with ExitStack() as loading:
            source, held = _source(model, options, loading, lend=optimize == "none")
            try:
                session = ort.InferenceSession(source, options, providers=list(providers))
            except _ORT_ERRORS as error:
                raise RuntimeUnavailable(
                    f"onnxruntime: cannot load the model: {_reason(error)}"
                ) from error
        return cls(session, held)

    def run(self, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Return the outputs in declared order; raises RuntimeUnavailable if they cannot be had."""
        try:
            return [from_ort(value) for value in self.bind(feeds)()]
        except _ORT_ERRORS as error:
            raise RuntimeUnavailable(
                f"onnxruntime: cannot run the model: {_reason(error)}"
            ) from error

    def bind(self, feeds: Mapping[str, np.ndarray]) -> Callable[[], list[object]]:
        """Return a call that runs on `feeds` with the least work around it, for timing.

        It gives ONNX Runtime's values and lets ONNX Runtime's exceptions through.
        """
        assert self._session is not None, "the session is closed"
        session = self._session
        if self._has_raw_types:
            values = {name: feed_value(array) for name, array in feeds.items()}
            return lambda: list(session.run_with_ort_values(None, values))
        arrays = {name: to_ort(array) for name, array in feeds.items()}
        return lambda: list(session.run(None, arrays))

    def profile(self) -> str:
        """End the timing of kernels and return the path of what it wrote."""
        assert self._session is not None, "the session is closed"
        return str(self._session.end_profiling())

    def close(self) -> None:
        """Free the model; closing twice is harmless."""
        self._session = None
        self._held = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _options(threads: int, optimize: Optimize, *, spin: bool) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 4  # what fails is raised; the log would say it twice
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.graph_optimization_level = _LEVELS[optimize]
    if optimize == "none":
        options.add_session_config_entry("session.disable_prepacking", "1")
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _source(
    model: Model, options: ort.SessionOptions, loading: ExitStack, *, lend: bool
) -> tuple[str | bytes, tuple[object, ...]]:
    """What to load, and the memory that must live as long as the session."""
    if isinstance(model, bytes):
        return model, ()
    if isinstance(model, str | Path):
        return _restored(model, options) if is_packed(model) else (os.fspath(model), ())
    if isinstance(model, onnx.ModelProto):
        if model.ByteSize() > _PROTOBUF_LIMIT:
            raise RuntimeUnavailable(
                "onnxruntime: a model in memory must be below 2 GiB; give its path or a Graph"
            )
        return model.SerializeToString(), ()
    data, arrays = model.skeleton()
    values = {name: lent_value(array) for name, array in arrays.items()}
    if values and not (lend and _lent(data, values, options, loading)):
        options.add_external_initializers(list(values), list(values.values()))
    return data, (arrays, values)


def _restored(
    model: str | Path, options: ort.SessionOptions
) -> tuple[bytes, tuple[dict[str, bytes]]]:
    """A packed model's bytes; its external data go to ONNX Runtime in memory too."""
    beside = restored(model)
    source = beside.pop("")
    if beside:
        lengths = [len(content) for content in beside.values()]
        options.add_external_initializers_from_files_in_memory(
            list(beside), list(beside.values()), lengths
        )
    return source, (beside,)


def _lent(
    data: bytes,
    values: Mapping[str, ort.OrtValue],
    options: ort.SessionOptions,
    loading: ExitStack,
) -> bool:
    """Let a model that is loaded while `loading` is open use `values` in place; say if it can.

    `add_external_initializers` copies them; `add_initializer` does not, but wants the external
    file to exist, of which it reads nothing: a hole of the right size will do. It must not serve
    where ONNX Runtime optimizes, for what that has folded into a weight would be lost.
    """
    model = onnx.ModelProto.FromString(data)
    entries = (entry for tensor in model.graph.initializer for entry in tensor.external_data)
    locations = {entry.value for entry in entries if entry.key == "location"}
    try:
        folder = loading.enter_context(tempfile.TemporaryDirectory(prefix="graphopt-"))
        for location in locations:
            with (Path(folder) / location).open("wb") as hole:
                hole.truncate(max(value.tensor_size_in_bytes() for value in values.values()))
    except OSError:
        return False  # nowhere to put a file: copied weights do as well
    options.add_session_config_entry(_EXTERNAL_FOLDER, folder)
    for name, value in values.items():
        options.add_initializer(name, value)
    return True


def _port(arg: ort.NodeArg) -> Port:
    shape = tuple(None if isinstance(d, int) and d < 0 else d for d in arg.shape)
    return Port(arg.name, shape, port_dtype(arg.type), arg.type)


def _reason(error: BaseException) -> str:
    """Return ONNX Runtime's message in one line, without its own source locations."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : (\w+) : ", r"\1: ", str(error))
    text = " ".join(_SOURCE_LOCATION.sub("", text).split()) or type(error).__name__
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 3] + "..."
