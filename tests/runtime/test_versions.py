"""Versions of packages, also if jaxdepth runs from its source, not installed."""

from importlib import metadata

import numpy as np
import pytest

from jaxdepth import workdir
from jaxdepth.commands.report import page as page_lib
from jaxdepth.data.sources import ReadOptions
from jaxdepth.data.store.writer import Job, Packing
from jaxdepth.runtime import versions
from tests.data.memory import Memory, frame


@pytest.fixture
def uninstalled(monkeypatch):
    original = metadata.version

    def version(package):
        if package == "jaxdepth":
            raise metadata.PackageNotFoundError(package)
        return original(package)

    monkeypatch.setattr(metadata, "version", version)


def test_packages_that_are_not_installed_have_no_version():
    assert versions.version("numpy") == np.__version__
    assert versions.version("no-such-package") is None
    assert versions.installed(["no-such-package", "numpy"]) == {"numpy": np.__version__}


def test_results_record_the_version_of_jaxdepth():
    assert workdir.environment()["versions"]["jaxdepth"] == metadata.version("jaxdepth")


@pytest.mark.usefixtures("uninstalled")
def test_results_of_a_source_checkout_record_the_other_versions():
    recorded = workdir.environment()["versions"]
    assert "jaxdepth" not in recorded and recorded["numpy"] == np.__version__


@pytest.mark.usefixtures("uninstalled")
def test_a_source_checkout_writes_a_store(tmp_path):
    job = Job(Memory([frame()]), Packing((12, 16)), ReadOptions())
    assert job.write(tmp_path / "s")["versions"]["numpy"] == np.__version__


@pytest.mark.usefixtures("uninstalled")
def test_a_source_checkout_writes_a_report():
    page = page_lib.render(title="", runs=[], sections=[], tables={}, metric="rmse")
    assert "version (not installed)" in page
