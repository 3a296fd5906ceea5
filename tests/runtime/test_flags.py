"""Flags from dataclasses: values, mistakes, help, plugins."""

import dataclasses
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth.runtime import flags
from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.flags import flag


@dataclasses.dataclass(frozen=True)
class Inner:
    """Inner section."""

    rate: float = flag(0.5, above=0, at_most=2)
    """Rate of
    something, 100% of it."""
    kind: Literal["a", "bc"] = "a"
    """Kind."""
    name: str = flag("x", name="inner", choices=("x", "y"))
    """Name of the inner thing."""


@dataclasses.dataclass(frozen=True)
class Outer:
    """Do something.

    Second paragraph.
    """

    files: tuple[str, ...] = flag(positional=True)
    """Files to read."""
    inner: Inner = Inner()
    count: int | Literal["auto"] = flag("auto", at_least=1, below=10)
    """Count."""
    path: str | None = None
    """Path."""
    dry: bool = False
    """Dry run."""


def parse(*argv: str) -> Outer:
    return flags.parse(Outer, argv, prog="tool")


def test_values_reach_their_sections():
    got = parse("f", "--rate=1", "--count", "3", "g", "--inner=y", "--dry", "--path=p")
    assert got == Outer(("f", "g"), Inner(1.0, "a", "y"), 3, "p", True)


def test_defaults_none_and_negated_booleans():
    assert parse("f") == Outer(("f",))
    assert parse("f", "--path=none", "--count=auto", "--dry", "--no_dry") == Outer(
        ("f",)
    )


@pytest.mark.parametrize(
    ("words", "dry"),
    [
        (["--dry"], True),
        (["--dry=true"], True),
        (["--dry=True"], True),
        (["--dry=false"], False),
        (["--no_dry"], False),
        (["--dry=true", "--dry=false"], False),
        (["--dry=false", "--dry"], True),
    ],
)
def test_booleans_are_words_or_values(words, dry):
    assert parse("f", *words).dry is dry
    # A word after the flag is not its value.
    assert parse(*words, "f", "false") == Outer(("f", "false"), dry=dry)


def test_dashes_count_as_underscores():
    assert parse("f", "--no-dry").dry is False


@given(st.floats(0.001, 2), st.integers(1, 9))
def test_numbers_are_read_as_written(rate, count):
    got = parse("f", f"--rate={rate!r}", f"--count={count}")
    assert (got.inner.rate, got.count) == (rate, count)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["f", "--rat=1"], "unknown flag --rat; did you mean --rate?"),
        (["f", "--rate=fast"], "--rate=fast: expected a number"),
        (["f", "--count=1.5"], "--count=1.5: expected a whole number or auto"),
        (["f", "--kind=c"], "--kind=c: expected one of a, bc"),
        (["f", "--inner=z"], "--inner=z: expected one of x, y"),
        (["f", "--rate"], "--rate: give a value, as in --rate=VALUE"),
        (["f", "--dry=yes"], "--dry=yes: expected true or false"),
        (["f", "--dry="], "--dry=: expected true or false"),
        (["f", "--no_dry=true"], "unknown flag --no_dry; did you mean --dry?"),
        ([], "FILES: missing (Files to read.); see tool --help"),
        (["f", "--plugin=none.py"], "--plugin=none.py: there is no such file"),
    ],
)
def test_a_mistake_is_one_line(argv, message):
    with pytest.raises(UserError) as caught:
        parse(*argv)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rate": 0.0}, "--rate=0.0: must be above 0"),
        ({"rate": 3.0}, "--rate=3.0: must be at most 2"),
        ({"rate": float("nan")}, "--rate=nan: must be a finite number"),
        ({"count": 0}, "--count=0: must be at least 1"),
        ({"count": 10}, "--count=10: must be below 10"),
        ({"kind": "z"}, "--kind=z: expected one of a, bc"),
    ],
)
def test_bounds_and_choices_hold_for_values_as_well(values, message):
    with pytest.raises(UserError, match=message):
        flags.validate(flags.from_flat(Outer, {"files": ()} | values))


def test_flat_and_back():
    config = flags.from_flat(Outer, {"files": ("a",), "rate": 1.5, "inner": "y"})
    assert flags.from_flat(Outer, flags.as_flat(config)) == config
    with pytest.raises(TypeError, match="Outer has no speed"):
        flags.from_flat(Outer, {"speed": 1})


def test_help_has_examples_first_sections_and_100_columns(capsys):
    with pytest.raises(SystemExit) as stop:
        flags.parse(Outer, ["--help"], prog="tool", examples=("tool a", "tool b"))
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.index("tool a") < text.index("Do something.") < text.index("Inner sec")
    assert "Rate of something, 100% of it (default: 0.5)" in text
    assert "[a, bc]" in text and "--plugin FILE.py" in text
    assert max(map(len, text.splitlines())) <= 100
    assert not set(text) & set("╭╮╰╯│─") and "{None}" not in text


def test_a_renamed_flag_is_refused_with_its_new_name():
    @dataclasses.dataclass(frozen=True)
    class Renamed:
        ema: float = 0.0

    with pytest.raises(UserError, match="--average was renamed: use --ema"):
        flags.parse(Renamed, ["--average=0.9"], prog="tool")


def test_a_plugin_is_imported_once_and_its_failure_is_one_line(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text("import sys\nsys.imported = getattr(sys, 'imported', 0) + 1\n")
    one = flags.load_plugin(file)
    assert flags.load_plugin(str(file)) is one
    assert vars(one)["sys"].imported == 1
    del vars(one)["sys"].imported
    bad = tmp_path / "bad.py"
    bad.write_text("\n\n1 / 0\n")
    with pytest.raises(UserError, match=r"bad\.py line 3: ZeroDivisionError"):
        flags.load_plugin(bad)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shared:
    """Shared flags."""

    shared: int = 1
    """Shared by two commands."""


@dataclasses.dataclass(frozen=True)
class Sharing(Shared):
    """Do something else."""

    files: tuple[str, ...] = flag(positional=True)
    """Files to read."""
    own: int = 2
    """Flag of this command."""


def test_inherited_keyword_only_flags_follow_those_of_the_class(capsys):
    assert list(flags.flags_of(Sharing)) == ["files", "own", "shared"]
    got = flags.parse(Sharing, ["f", "--shared=3"], prog="tool")
    assert got == Sharing(("f",), 2, shared=3)
    with pytest.raises(SystemExit):
        flags.parse(Sharing, ["--help"], prog="tool")
    assert "Shared by two commands" in capsys.readouterr().out
