"""Two of survival.py's cases, which conftest.py runs beside the other tests.

`make slurm-matrix` runs them all.
"""

import pytest
from tests.slurm.survival import BESIDE


@pytest.mark.parametrize("case", BESIDE)
def test_what_survived_is_what_an_undisturbed_run_leaves(case, survived):
    assert survived[case].endswith(": as undisturbed"), survived[case]
