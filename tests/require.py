"""What some tests need of the machine. Where it is missing they are skipped; where the environment
variable CDA_REQUIRE names it, as in CI, they fail instead.
"""

import os

import pytest


def require(name: str, found: bool, what: str) -> None:
    """Skip or fail the test unless it was found; `what` it is and how a user installs it."""
    if found:
        return
    reason = f"needs {what}"
    if name in os.environ.get("CDA_REQUIRE", "").split(","):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)
