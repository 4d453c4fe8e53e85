"""How a run ends, for people and for scripts; the same for the load test and the benchmarks."""

from __future__ import annotations

PASS, FAIL, INVALID = "PASS", "FAIL", "INVALID"

EXIT_CODES = {PASS: 0, FAIL: 1, INVALID: 2}

HARNESS_FAILED = 3
"""The harness failed, or did not understand what was asked: there is no verdict."""
