"""Hypothesis, or where it is not installed a stand-in under which its tests are skipped."""

from __future__ import annotations

import pytest

__all__ = ["assume", "given", "settings", "st"]

try:
    from hypothesis import assume, given, settings
    from hypothesis import strategies as st
except ModuleNotFoundError:
    from unittest.mock import MagicMock

    def given(*_, **__):
        return pytest.mark.skip(reason="hypothesis is not installed")

    def settings(**_):
        return lambda test: test

    assume, st = MagicMock(), MagicMock()
else:
    # The same examples on every run: a failure in CI is one that anybody can repeat.
    settings.register_profile("repeatable", derandomize=True, deadline=None)
    settings.load_profile("repeatable")
