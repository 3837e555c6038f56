"""Two of survival.py's cases, at once: what they wait for, they wait together. `make slurm-matrix` runs them all."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.slurm.flow import Flow, differences, plain
from tests.slurm.survival import CASES, started

HERE = ("scancel-recover", "snakemake-killed")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the stages leave where nothing happens, without SLURM and without Snakemake."""
    folder = tmp_path_factory.mktemp("survival") / "undisturbed"
    plain(folder)
    return folder


@pytest.fixture(scope="module")
def ended(undisturbed):
    """The cases, run on from the squeezed model; each a future, so that each fails for itself."""
    with started(undisturbed.parent) as cluster, ThreadPoolExecutor() as pool:
        flows = {case: Flow(undisturbed.parent / case, cluster, begun=undisturbed) for case in HERE}
        yield {case: pool.submit(CASES[case], flow) for case, flow in flows.items()}
        for flow in flows.values():
            flow.close()


@pytest.mark.parametrize("case", HERE)
def test_what_survived_is_what_an_undisturbed_run_leaves(case, ended, undisturbed):
    ended[case].result()
    assert differences(undisturbed.parent / case, undisturbed) == []
