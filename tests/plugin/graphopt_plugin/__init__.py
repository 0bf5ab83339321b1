"""The table of passes that this distribution offers."""

from __future__ import annotations

CATALOG = {
    "relabel-nodes": "graphopt_plugin.relabel:RelabelNodes",
    "wait-for": "graphopt_plugin.wait:WaitFor",
}
