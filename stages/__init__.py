"""The pipeline: one module a stage, each run as `python -m stages.NAME` from `dvc.yaml`."""

from .lm.core import inputs  # noqa: F401  (first of all: it digests the code that is about to run)
