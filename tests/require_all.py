"""pytest plugin: under REQUIRE_ALL=1 a skipped test is a failed one, except for a missing GPU.

A suite that skips what it cannot run looks green on a machine where it ran nothing. CI therefore
installs everything and sets REQUIRE_ALL=1; a developer without nginx or Chromium sees skips with
their reasons. Loaded by `-p tests.require_all` in pyproject.toml.
"""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

REQUIRED = os.environ.get("REQUIRE_ALL", "") not in ("", "0")
HAS_GPU = Path("/dev/nvidiactl").exists()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips what is marked `gpu` where the NVIDIA driver is absent."""
    if item.get_closest_marker("gpu") and not HAS_GPU:
        pytest.skip("no NVIDIA GPU")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skipped test into a failed one."""
    report = yield
    expected = item.get_closest_marker("gpu") or hasattr(report, "wasxfail")
    if REQUIRED and report.skipped and not expected:
        _fail(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Turns a module that skips itself, as `importorskip` does, into a collection error."""
    report = yield
    if REQUIRED and report.skipped:
        _fail(report)
    return report


def _fail(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Changes the outcome in place; pytest gives a skip's reason as (file, line, reason)."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    report.outcome = "failed"
    report.longrepr = f"REQUIRE_ALL=1 allows no skip: {reason}"
