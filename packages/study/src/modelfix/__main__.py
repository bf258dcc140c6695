"""Run the command as ``python -m modelfix``."""

import sys

from modelfix.cli import main

sys.exit(main())
