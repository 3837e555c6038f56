"""`python -m cda` is `cda`."""

import sys

from cda.cli import main

sys.exit(main())
