"""Write environment.yml, the conda user's view of requirements.lock.

The lock is the one source of pins. Conda brings Python and pip, and pip installs every pin of the
lock with its environment marker: the tools of the `dev` extra too, so that a conda environment can
run what `make test` and `make lint` run. Hashes stay in the lock: pip would then refuse this
package, installed editable beside them.

Usage: python tools/environment.py [--check]
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements.lock"
ENVIRONMENT = ROOT / "environment.yml"

HEADER = """\
# Generated from requirements.lock by tools/environment.py (make lock): don't edit.
#   conda env create -f environment.yml && conda activate cda
#   pip install --no-deps --no-build-isolation -e .
name: cda
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python=3.12  # 3.11 and 3.13 will do as well
  - pip
  - pip:
"""


def pins(lock: str) -> list[str]:
    r"""Every requirement of a lock's text, with its marker and without its hashes.

    >>> pins("a==1 \\\n    --hash=sha256:00\nb==2 ; os_name == 'nt' \\\n    --hash=sha256:00\n")
    ['a==1', "b==2 ; os_name == 'nt'"]
    """
    return re.findall(r"^([\w.-]+(?:\[.*\])?==.*?) *\\?$", lock, flags=re.MULTILINE)


def environment(lock: str) -> str:
    """The text of environment.yml for a lock's text."""
    return HEADER + "".join(f'      - "{pin}"\n' for pin in pins(lock))


def main(arguments: list[str]) -> int:
    """Write the file or, with `--check`, only report whether it is current."""
    if arguments not in ([], ["--check"]):
        print("usage: python tools/environment.py [--check]", file=sys.stderr)
        return 2
    text = environment(LOCK.read_text(encoding="utf-8"))
    if not arguments:
        ENVIRONMENT.write_text(text, encoding="utf-8")
    elif not ENVIRONMENT.exists() or ENVIRONMENT.read_text(encoding="utf-8") != text:
        print(
            "environment.yml does not follow from requirements.lock: run tools/environment.py",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
