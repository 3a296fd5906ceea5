"""Versions of the packages at work, which results and stores carry."""

from collections.abc import Iterable
from importlib import metadata


def version(package: str) -> str | None:
    """Of an installed package; None of one that is absent, or run from its source."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Versions of those packages that are there."""
    found = {package: version(package) for package in packages}
    return {package: known for package, known in found.items() if known is not None}
