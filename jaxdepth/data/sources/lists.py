"""Text lists of frames, one line per frame, in the formats of published data sets.

A list is parsed as CSV. The separator is a tab if all lines have one, a semicolon or a
comma if half of the lines have one, else whitespace; names that contain the separator
are quoted. The text is UTF-8 or UTF-16, with or without a byte-order mark. Empty lines
and lines that start with # are skipped. A heading is not part of the rows.
"""

import csv
import dataclasses
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from jaxdepth.runtime import regular
from jaxdepth.runtime.errors import UserError, printable

SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list")
LARGEST = 1 << 26  # bytes; longer than any published list
PEEK = 1 << 14  # bytes read to recognise a list
NO_FILE = "None"  # in place of a frame's missing depth file, as in KITTI's lists
# Folders of KITTI's annotated depth: its lists name depth relative to one of them, and
# images relative to another folder.
DEPTH_FOLDERS = tuple(
    f"data_depth_annotated{inner}" for inner in ("", "/train", "/val")
)
Part = Literal["train", "val", "test"]
PART_WORDS: dict[str, Part] = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "eval": "val", "dev": "val",
    "test": "test", "testing": "test",
}  # fmt: skip


class Row(NamedTuple):
    """One line of a list: its number, from 1, and its columns, stripped."""

    line: int
    columns: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Listing:
    """A parsed list.

    Attributes:
      file: the path of the list.
      heading: the names of the columns, in lower case; () if the list has no heading.
      rows: one per frame; a row can have any number of columns.
    """

    file: Path
    heading: tuple[str, ...]
    rows: tuple[Row, ...]

    def where(self, row: Row) -> str:
        """The file and line of a row, for messages."""
        return f"{self.file}, line {row.line}"


def read(file: Path) -> Listing:
    """Read a list.

    Raises: UserError if the file can't be read as text, or a quotation mark is not
      closed; the message names the line.
    """
    try:
        regular.check(file)
        with open(file, "rb") as stream:
            content = stream.read(LARGEST + 1)
    except OSError as error:
        raise UserError(f"{file} can't be read: {error.strerror or error}") from None
    if len(content) > LARGEST:
        raise UserError(
            f"{file} is too large for a list: at most {LARGEST >> 20} MiB are read"
        )
    try:
        text = _decode(content)
    except UnicodeDecodeError:
        raise UserError(
            f"{file} is not text in UTF-8 or UTF-16, so it lists no frames"
        ) from None
    return _parse(file, text)


def peek(file: Path) -> Listing | None:
    """Read the first lines of a list; None if the file is not text. Never raises."""
    try:
        regular.check(file)
        with open(file, "rb") as stream:
            head = stream.read(PEEK)
        text = _decode(head, complete=len(head) < PEEK)
        if len(head) == PEEK:  # the last line is cut off
            text = text[: max(text.rfind("\n"), text.rfind("\r")) + 1] or text
        return _parse(file, text)
    except (OSError, ValueError, UserError):
        return None


def is_list(path: Path) -> bool:
    """Whether the path is a file with the suffix of a list."""
    try:
        return path.suffix.lower() in SUFFIXES and path.is_file()
    except OSError:
        return False


def part_of(path: str | os.PathLike[str]) -> Part | None:
    """The part of a split that a path names, by whole words.

    The file name takes precedence over its folders, and an inner folder over an outer
    one: lists/latest_train.txt is "train", test/rgb/valid.png "val". The result is None
    if the first name with such a word has words of two parts: train_test_split.txt.
    """
    pure = PurePosixPath(str(path).replace("\\", "/"))
    for name in (pure.stem, *(folder.name for folder in pure.parents)):
        words = re.findall(r"[a-z]+", name.lower())
        parts: set[Part] = {PART_WORDS[word] for word in words if word in PART_WORDS}
        if len(parts) == 1:
            return parts.pop()
        if parts:
            return None
    return None


def with_parts(paths: Sequence[Path]) -> tuple[list[Path], list[str]]:
    """Leave out lists whose paths name no part of a split if others name one.

    They may repeat the frames of the others. All lists are used if none names a part.

    Args:
      paths: relative to the data's folder.

    Returns: the paths of the lists to use, and a one-line note for each other list.
    """
    unnamed = [path for path in paths if part_of(path) is None]
    if len(unnamed) == len(paths):
        return list(paths), []
    return [path for path in paths if path not in unnamed], [
        f"ignored the list {path}: its name contains none of the words train, val and "
        "test, and the names of other lists do"
        for path in unnamed
    ]


class Root:
    """The folder that the names in a list are resolved against.

    Names are relative to the folder, even with a leading slash, as in the lists of BTS.
    For an absolute path from another machine, leading folders are dropped until the
    rest is a file in the folder; the same number is dropped for all absolute paths.

    Args:
      folder: the folder of the names.
      allow_outside: accept files outside the folder, by absolute names, "..", or links.
      within: the data's folder, which files may not leave; default: `folder`.
      also: other folders, for names that are not in the first one.
    """

    def __init__(
        self,
        folder: Path,
        *,
        allow_outside: bool = False,
        within: Path | None = None,
        also: Sequence[Path] = (),
    ):
        self.folder = folder
        options: dict[str, Any] = {"allow_outside": allow_outside, "within": within}
        self._also = [Root(other, **options) for other in also]
        self._allow_outside = allow_outside
        self._real = (within or folder).resolve()
        self._inside: dict[Path, bool] = {}
        self._dropped: int | None = None  # leading folders of absolute names

    def find(self, name: str) -> Path | None:
        """The path of a listed file; None if there is none.

        Raises: UserError for a file outside the folder, unless `allow_outside`.
        """
        name = name.replace("\\", "/")
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if not parts:
            return None
        if ".." in parts:
            return self._outside(name, self.folder / name.lstrip("/"))
        path = self.folder.joinpath(*parts)
        if not _is_file(path):
            others = (other.find(name) for other in self._also)
            if (listed := next(filter(None, others), None)) is not None:
                return listed
        if not _is_file(path) and re.match(r"/|[a-zA-Z]:", name):
            path = self._tail(parts) or Path(name)
        if not _is_file(path):
            return None
        return path if self._is_inside(path) else self._outside(name, path)

    def path(self, name: str) -> Path:
        """The path of a listed file, which need not exist. Raises as `find` does."""
        existing = self.find(name)
        return existing or self.folder / name.replace("\\", "/").lstrip("/")

    def _tail(self, parts: list[str]) -> Path | None:
        """Find a file in the folder by an absolute path without its leading folders."""
        choices = range(1, len(parts)) if self._dropped is None else [self._dropped]
        for dropped in choices:
            path = self.folder.joinpath(*parts[dropped:])
            if dropped < len(parts) and _is_file(path):
                self._dropped = dropped
                return path
        return None

    def _outside(self, name: str, path: Path) -> Path | None:
        if not _is_file(path):
            return None
        if self._allow_outside or self._is_inside(path):
            return path
        raise UserError(
            f"{printable(name)} is outside {self.folder}: give --allow_outside to read "
            "such files"
        )

    def _is_inside(self, path: Path) -> bool:
        parent = path.parent
        if parent not in self._inside:
            self._inside[parent] = parent.resolve().is_relative_to(self._real)
        if not path.is_symlink():
            return self._inside[parent]
        return path.resolve().is_relative_to(self._real)


def root_of(
    start: Path,
    names: Sequence[str],
    *,
    below: Sequence[str] = ("",),
    allow_outside: bool = False,
) -> Root | None:
    """Find the folder that the names of a list are relative to; None if not found.

    Searches the folders `below` in `start`, then in each of its parents, for any of a
    sample of the names. `DEPTH_FOLDERS` beside that folder are searched for files that
    are not in it.
    """
    sampled = names[:: max(1, len(names) // 8)][:16]
    for base in (start, *start.absolute().parents):
        for inner in below:
            options: dict[str, Any] = {"allow_outside": allow_outside, "within": base}
            root = Root(base / inner, **options)
            if any(root.find(name) is not None for name in sampled):
                also = [base / name for name in DEPTH_FOLDERS if (base / name).is_dir()]
                return Root(base / inner, also=also, **options)
    return None


def _decode(content: bytes, *, complete: bool = True) -> str:
    """Decode UTF-8 or UTF-16. Raises UnicodeDecodeError."""
    head = content[:1024]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")):
        encoding = "utf-16"
    elif head[1::2].count(0) > len(head) // 4:
        encoding = "utf-16-le"
    elif head[::2].count(0) > len(head) // 4:
        encoding = "utf-16-be"
    else:
        encoding = "utf-8-sig"
    text = content.decode(encoding, errors="strict" if complete else "ignore")
    if "\0" in text:  # binary data
        raise UnicodeDecodeError("utf-8", content[:1], 0, 1, "null character")
    return text


def _parse(file: Path, text: str) -> Listing:
    lines = [
        (number, line.strip())
        for number, line in enumerate(re.split(r"\r\n|\r|\n", text), 1)
    ]
    lines = [(number, line) for number, line in lines if line and line[0] != "#"]
    separator = _separator([line for _, line in lines])
    rows = [Row(n, tuple(_columns(file, n, line, separator))) for n, line in lines]
    rows = [row for row in rows if any(row.columns)]
    heading: tuple[str, ...] = ()
    if len(rows) > 1 and _is_heading(rows[0].columns, rows[1:]):
        heading, rows = tuple(c.lower() for c in rows[0].columns), rows[1:]
    return Listing(file, heading, tuple(rows))


def _separator(lines: Sequence[str]) -> str:
    """Detect the separator, by the share of lines that have it outside quotes."""
    lines = [re.sub(r'"[^"]*"', "", line) for line in lines]
    for separator, share in ("\t", 1.0), (";", 0.5), (",", 0.5):
        if lines and sum(separator in line for line in lines) >= share * len(lines):
            return separator
    return " "


def _columns(file: Path, number: int, line: str, separator: str) -> Iterator[str]:
    if separator == " ":
        line = line.replace("\t", " ")
    try:
        (columns,) = csv.reader(
            [line], delimiter=separator, skipinitialspace=True, strict=True
        )
    except csv.Error as error:
        raise UserError(f"{file}, line {number}: {error}") from None
    return (column.strip() for column in columns)


def _is_heading(first: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether the first line is a heading: no path or number in it, paths below it."""
    if any(_is_path(cell) or is_number(cell) for cell in first):
        return False
    same = [row for row in rows if len(row.columns) == len(first)]
    return any(map(_is_path, (cell for row in same[:20] for cell in row.columns)))


def without_index(listing: Listing) -> Listing:
    """Remove a first column that numbers the lines, such as the index of pandas."""
    if not _numbers_lines(listing.heading, listing.rows):
        return listing
    rows = tuple(Row(row.line, row.columns[1:]) for row in listing.rows)
    return Listing(listing.file, listing.heading[1:], rows)


def _numbers_lines(heading: Sequence[str], rows: Sequence[Row]) -> bool:
    """Whether the first column holds consecutive integers from 0 or 1."""
    if not rows or any(len(row.columns) < 3 for row in rows):
        return False
    if heading and heading[0] not in (
        "",
        "index",
        "id",
        "idx",
        "#",
        "no",
        "unnamed: 0",
    ):
        return False
    first = rows[0].columns[0]
    if first not in ("0", "1") or (len(rows) == 1 and not heading):
        return False
    start = int(first)
    return all(row.columns[0] == str(start + k) for k, row in enumerate(rows))


def _is_path(cell: str) -> bool:
    """Whether a cell looks like the name of a file: it has a suffix or a slash."""
    return not is_number(cell) and re.search(r"[/\\]|\.\w{1,6}$", cell) is not None


def is_number(cell: str) -> bool:
    """Whether a cell is a number."""
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that the file system does not allow
        return False
