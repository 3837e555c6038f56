"""Some of survival.py's cases. `make slurm-matrix` runs them all."""

import pytest
from tests.slurm.survival import TESTED


@pytest.mark.slurm
@pytest.mark.parametrize("case", TESTED)
def test_an_interrupted_run_leaves_what_an_undisturbed_one_leaves(case, survived):
    assert survived[case].endswith(": as undisturbed"), survived[case]
