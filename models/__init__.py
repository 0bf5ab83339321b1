"""Reference networks, the tasks they are trained on, and small trained files."""

from __future__ import annotations
