"""What some tests need of the machine. Where it is missing they are skipped; where the environment
variable CDA_REQUIRE names it, as in CI, they fail instead.
"""

import os

import pytest


def require(what: str, found: bool, how: str) -> None:
    """Skip or fail the test unless `what` was found; `how` a user has it."""
    if found:
        return
    reason = f"needs {what}; {how}"
    if what in os.environ.get("CDA_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
