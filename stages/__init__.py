"""The pipeline: one module a stage, each run as `python -m stages.NAME` from `dvc.yaml`."""
