"""The settings: one frozen dataclass for each section of `params.yaml`, over one loader."""
