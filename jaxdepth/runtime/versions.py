"""Versions of installed packages, recorded in results and stores."""

from collections.abc import Iterable
from importlib import metadata


def version(package: str) -> str | None:
    """Return a package's version; None if it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    versions = {package: version(package) for package in packages}
    return {name: value for name, value in versions.items() if value is not None}
