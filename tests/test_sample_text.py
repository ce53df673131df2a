"""The sample is the same prose on every machine, made without a network."""

import hashlib
import sys

import pytest

from stages import sample_text as sample
from stages.lm.core.errors import UserError
from stages.sample_text import SAMPLE_SHA256, sample_text


@pytest.fixture(scope="module")
def made():
    """The sample, and whether making it left its source as it was: imported before, or not."""
    imported = "networkx" in sys.modules
    return sample_text().encode("utf-8"), ("networkx" in sys.modules) is imported


def test_the_sample_is_always_the_same_bytes(made):
    data, _ = made
    assert len(data) == 2_005_993 and hashlib.sha256(data).hexdigest() == SAMPLE_SHA256


def test_the_source_is_read_and_never_imported(made):
    _, unimported = made
    assert unimported


def test_another_version_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sample, "version", lambda name: "2.0")
    with pytest.raises(UserError, match=r"networkx .*version 2\.0 is installed.*pip install -r"):
        sample_text()


def test_a_missing_source_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setattr(sample, "SOURCE", "no_such_package_here")
    with pytest.raises(UserError, match=r"none is installed.*data/input/"):
        sample_text()
