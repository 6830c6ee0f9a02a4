"""Every fault, injected for real: the database opens again, and no acknowledged record is lost.

The numbers of the short run are small; the long one is `pytest -m long tests/chaos`, or `python tests/chaos/run.py --long`,
which prints the table.
"""

from __future__ import annotations

import sys

import pytest
from run import plan

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="children are forked, and watched through /proc"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", plan(long=False))
def test_a_fault_loses_nothing(stage, fault):
    """A few times each: every acknowledged write is there with its vector, and nothing else is half there."""
    row = plan(long=False)[fault](stage)
    assert row.is_good, (row, row.failures)


@pytest.mark.long
@pytest.mark.timeout(4 * 3600)
@pytest.mark.parametrize("fault", plan(long=True))
def test_a_fault_loses_nothing_however_often(stage, fault):
    """The same, in the numbers that the README names."""
    row = plan(long=True)[fault](stage)
    print(f"\n{row}")
    assert row.is_good, (row, row.failures)
