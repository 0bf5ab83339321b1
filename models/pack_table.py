"""Packed models beside general compressors: `python -m models.pack_table MODEL.onnx ...`.

Bytes, megabytes restored per second of processor time, and peak memory over the model's own size
(Linux only).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import click
import zstandard

from graphopt.packed import pack

__all__ = ["main", "restored"]

# In a process of its own, so that its peak is that of restoring. The loader is all it imports.
_RESTORE = """
import importlib.util, json, sys, time
spec = importlib.util.spec_from_file_location("loader", sys.argv[1])
loader = importlib.util.module_from_spec(spec)
sys.modules["loader"] = loader
spec.loader.exec_module(loader)
def peak():  # getrusage tells that of the parent if it is larger
    return int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) * 1024
before = peak()
began = time.process_time()
model = loader.restore(sys.argv[2])[""]
seconds = time.process_time() - began
memory = peak() - before
same = model == open(sys.argv[3], "rb").read() if len(sys.argv) > 3 else None
print(json.dumps({"bytes": len(model), "seconds": seconds, "peak": memory, "same": same}))
"""


def restored(packed: Path, original: Path) -> tuple[float, float, bool]:
    """Megabytes per second, peak memory over the model's size, and whether it is the same."""
    loader = Path(__file__).parent.parent / "graphopt" / "packed" / "loader.py"
    done = subprocess.run(
        [sys.executable, "-c", _RESTORE, str(loader), str(packed), str(original)],
        capture_output=True,
        check=True,
    )
    found = json.loads(done.stdout)
    return found["bytes"] / 1e6 / found["seconds"], found["peak"] / found["bytes"], found["same"]


@click.command()
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--no-others", is_flag=True, help="Leave out zip and zstd, which are slow.")
def main(models: tuple[Path, ...], no_others: bool) -> None:
    """Pack each of MODELS and restore it."""
    click.echo(f"{'model':44} {'ONNX':>11} {'packed':>11} {'zip -9':>11} {'zstd -19':>11} "
               f"{'pack s':>6} {'MB/s':>5} {'peak':>5} same")  # fmt: skip
    for model in models:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "model.gopt"
            began = time.process_time()
            size = pack(model, target).size
            seconds = time.process_time() - began
            speed, peak, same = restored(target, model)
        zipped = zstd = "-"
        if not no_others:
            raw = model.read_bytes()
            zipped = f"{len(zlib.compress(raw, 9)):,}"
            zstd = f"{len(zstandard.ZstdCompressor(19).compress(raw)):,}"
        click.echo(
            f"{model.name:44} {model.stat().st_size:11,} {size:11,} {zipped:>11} {zstd:>11} "
            f"{seconds:6.1f} {speed:5.0f} {peak:5.2f} {same}"
        )


if __name__ == "__main__":
    main()
