"""Versions of packages, with jaxdepth run from its source and not installed."""

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
    known = metadata.version

    def version(package):
        if package == "jaxdepth":
            raise metadata.PackageNotFoundError(package)
        return known(package)

    monkeypatch.setattr(metadata, "version", version)


def test_what_is_absent_has_no_version():
    assert versions.version("numpy") == np.__version__
    assert versions.version("no-such-package") is None
    assert versions.installed(["no-such-package", "numpy"]) == {"numpy": np.__version__}


def test_an_installed_package_is_named():
    assert workdir.environment()["versions"]["jaxdepth"] == metadata.version("jaxdepth")


@pytest.mark.usefixtures("uninstalled")
def test_results_of_a_checkout_name_the_others():
    found = workdir.environment()["versions"]
    assert "jaxdepth" not in found and found["numpy"] == np.__version__


@pytest.mark.usefixtures("uninstalled")
def test_a_checkout_packs_a_store(tmp_path):
    job = Job(Memory([frame()]), Packing((12, 16)), ReadOptions())
    assert job.write(tmp_path / "s")["versions"]["numpy"] == np.__version__


@pytest.mark.usefixtures("uninstalled")
def test_a_checkout_writes_a_page():
    page = page_lib.render(title="", runs=[], sections=[], tables={}, metric="rmse")
    assert "jaxdepth (not installed)" in page
