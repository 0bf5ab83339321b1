"""Exact rewriting: rules and the driver that applies them, and what rules ask of a graph."""

from __future__ import annotations

from graphopt.rewrite.driver import Refusal, RewriteLog, Rule, rewrite

__all__ = ["Refusal", "RewriteLog", "Rule", "rewrite"]
