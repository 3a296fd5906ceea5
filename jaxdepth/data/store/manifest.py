"""A store's manifest: its version, its checksum and consistency checks."""

import hashlib
import json
import math
from collections.abc import Callable
from typing import Any

from jaxdepth.data import units

VERSION = 2
# Of stores whose `depth_unit` is not 1000: earlier releases, which take all codes for
# millimetres, refuse this version.
OTHER_UNIT = 3
KINDS = ("filled", "raw")
LARGEST = 1 << 16  # height or width of a frame, pixels


def version_of(depth_unit: int) -> int:
    """The version of a store with this `depth_unit`."""
    return VERSION if depth_unit == 1000 else OTHER_UNIT


def sealed(manifest: dict[str, Any]) -> dict[str, Any]:
    """Return the manifest with `checksum`, a digest of its other content."""
    return {**manifest, "checksum": checksum(manifest)}


def checksum(manifest: dict[str, Any]) -> str:
    """SHA-256 of the manifest without its `checksum`, as JSON with sorted keys."""
    content = {name: value for name, value in manifest.items() if name != "checksum"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def check(manifest: dict[str, Any]) -> None:
    """Check the values that readers rely on, and the checksum.

    Raises: ValueError that names the first wrong value; KeyError for a missing one.
    """
    for name, is_right in _CHECKS.items():
        if not is_right(manifest[name]):
            raise ValueError(f"{name} has an invalid value")
    # Stores of earlier versions have none of these.
    if not _optional(_is_number)(manifest.get("depth_scale")):
        raise ValueError("depth_scale has an invalid value")
    _check_cameras(manifest)
    unit = manifest.get("depth_unit", 1000)
    if unit not in units.DEPTH_UNITS or manifest["version"] != version_of(unit):
        raise ValueError("depth_unit has an invalid value")
    for summary in dict(manifest.get("read", {})).values():
        units.Summary.from_dict(summary)
    frames = range(len(manifest["frames"]))
    if not sum(manifest["shards"]) == len(frames) == manifest["count"]:
        raise ValueError("shards and frames differ in number")
    for stem, rows in _row_lists(manifest):
        if any(row not in frames for row in rows):
            raise ValueError(f"{stem!r} has rows beyond the {len(frames)} frames")
    stems = [f"train-{k:05d}" for k, n in enumerate(manifest["shards"]) if n]
    for stem in (*stems, *manifest["full"]):
        for kind in ("rgb", *manifest["depths"]):
            if f"{stem}.{kind}.npy" not in manifest["files"]:
                raise ValueError(f"no shard {stem!r} of {kind}")
    if manifest.get("checksum", found := checksum(manifest)) != found:
        raise ValueError("its checksum differs")


def _check_cameras(manifest: dict[str, Any]) -> None:
    """Raise ValueError unless each frame's camera is one of `cameras`, or unknown."""
    cameras = manifest.get("cameras", [])
    if not _list_of(_is_camera)(cameras):
        raise ValueError("cameras has an invalid value")
    for frame in manifest["frames"]:
        index = frame.get("camera")
        if index is not None and not (_is_count(index) and index < len(cameras)):
            raise ValueError(f"the camera of {frame['name']!r} is not in cameras")


def _row_lists(manifest: dict[str, Any]) -> list[tuple[str, list[int]]]:
    parts = [
        (f"{name} {part}", split[part])
        for name, split in manifest["splits"].items()
        for part in ("train", "eval")
    ]
    return [*parts, *manifest["full"].items()]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and math.isfinite(value)


def _is_camera(value: Any) -> bool:
    """Whether the value is fx, fy, cx, cy, with positive focal lengths."""
    return _list_of(_is_number)(value) and len(value) == 4 and min(value[:2]) > 0


def _list_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(is_right, value))


def _dict_of(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))


def _with(**fields: Callable[[Any], bool]) -> Callable[[Any], bool]:
    """Return a check that a dict has at least these keys, with valid values."""

    def is_right(value: Any) -> bool:
        return isinstance(value, dict) and all(
            name in value and check(value[name]) for name, check in fields.items()
        )

    return is_right


def _is_size(value: Any) -> bool:
    sides = _list_of(lambda n: _is_count(n) and 0 < n <= LARGEST)
    return sides(value) and len(value) == 2


def _is_kinds(value: Any) -> bool:
    kinds = _list_of(lambda kind: kind in KINDS)
    return kinds(value) and 0 < len(value) == len(set(value))


def _optional(is_right: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: value is None or is_right(value)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "name": _is_text,
    "size": _is_size,
    "depths": _is_kinds,
    "count": _is_count,
    "frames": _list_of(
        _with(
            name=_is_text,
            scene=_optional(_is_text),
            official_index=_optional(_is_count),
        )
    ),
    "shards": _list_of(_is_count),
    "splits": _dict_of(_with(train=_list_of(_is_count), eval=_list_of(_is_count))),
    "full": _dict_of(_list_of(_is_count)),
    "files": _dict_of(_with(bytes=_is_count, sha256=_is_text)),
    "notes": _list_of(_is_text),
    "left_out": _list_of(_is_text),
    "broken": _list_of(_with(name=_is_text, reason=_is_text)),
}
