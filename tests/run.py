"""Run every check of the project: format, lint, types, layers, tests. Exits 1 if one fails."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TREES = ["graphopt", "passes", "models", "tests"]
CHECKS = {
    "format": ["-m", "ruff", "format", "--check", *TREES],
    "lint": ["-m", "ruff", "check", *TREES],
    "types": ["-m", "mypy", *TREES],
    "layers": ["-c", "from importlinter.cli import lint_imports_command as c; c()"],
    "tests": ["-m", "pytest", "-q", "-n", "2", "--durations=10"],
}


def main() -> int:
    failed = []
    for name, arguments in CHECKS.items():
        print(f"== {name}", flush=True)
        began = time.monotonic()
        if subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode:
            failed.append(name)
        print(f"== {name}: {time.monotonic() - began:.0f} s", flush=True)
    print(f"failed: {', '.join(failed)}" if failed else "all checks passed", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
