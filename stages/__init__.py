"""The pipeline: one module a stage, each run as `python -m stages.NAME` from `dvc.yaml`."""

import sys

from .lm.core import own_code  # noqa: F401  (first: it digests the code that is about to run)
from .lm.core.console import begin_command

if sys.argv[0] == "-m":  # so Python calls itself until it has found the module to run
    begin_command()
