"""Command-line flags from dataclasses: parsing, validation and help.

A flag is a field of a dataclass. Its help is the docstring under the field, its type
the annotation, its choices and bounds the arguments of `flag`. A field that is a
dataclass itself is a section: its fields are flags of the same flat name space, grouped
in the help under the section's docstring.
"""

import argparse
import ast
import dataclasses
import functools
import importlib.util
import inspect
import itertools
import math
import operator
import sys
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from jaxdepth.runtime.errors import UserError, nearest, unknown_choice
from jaxdepth.runtime.registry import Choices, resolve_choices

T = TypeVar("T")
WIDTH = 100  # columns of the help
RENAMED = {"average": "ema"}  # flags of earlier versions, and their present names
_NUMBERS = {int: "a whole number", float: "a number"}


@dataclasses.dataclass(frozen=True)
class _Info:
    name: str | None = None
    choices: Choices | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    positional: bool = False


def flag(
    default: Any = dataclasses.MISSING,
    *,
    name: str | None = None,
    choices: Choices | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    positional: bool = False,
) -> Any:
    """Create a dataclass field that is a flag with constraints.

    Args:
      default: default value; a field without one must be given.
      name: name of the flag; default: the name of the field.
      choices: allowed values, see `runtime.registry.Choices`.
      at_least, above, at_most, below: bounds of a number.
      positional: the value is given without a flag name.
    """
    info = _Info(name, choices, at_least, above, at_most, below, positional)
    return dataclasses.field(default=default, metadata={"flag": info})


@dataclasses.dataclass(frozen=True)
class Flag:
    """A flag as the command line knows it.

    Attributes:
      name: without dashes.
      path: names of the nested fields, from the outermost dataclass.
      hint: annotated type.
      default: default value, `dataclasses.MISSING` if it must be given.
      help: its docstring.
      info: constraints.
      section: the dataclass of the field.
    """

    name: str
    path: tuple[str, ...]
    hint: Any
    default: Any
    help: str
    info: _Info
    section: type

    @property
    def choices(self) -> tuple[str, ...] | None:
        """The allowed values; None if they are not listed."""
        if self.info.choices is not None:
            return resolve_choices(self.info.choices)
        if typing.get_origin(self.hint) is typing.Literal:
            return tuple(str(option) for option in typing.get_args(self.hint))
        return None

    @property
    def options(self) -> tuple[Any, ...]:
        """The members of a union type; any other type alone."""
        if typing.get_origin(self.hint) in (typing.Union, types.UnionType):
            return typing.get_args(self.hint)
        return (self.hint,)

    @property
    def words(self) -> tuple[str, ...]:
        """Words allowed in place of a number or text: "auto", "none"."""
        literals = [w for option in self.options for w in typing.get_args(option)]
        words = [word for word in literals if isinstance(word, str)]
        return (*words, *(["none"] if type(None) in self.options else []))

    def convert(self, text: str) -> Any:
        """Convert command-line text. Raises UserError if it is not allowed."""
        if (choices := self.choices) is not None:
            self.check_choice(text, choices)
            return text
        if text.lower() in self.words:
            return None if text.lower() == "none" else text.lower()
        if bool in self.options:
            if text.lower() not in ("true", "false"):
                raise UserError(f"--{self.name}={text}: expected true or false")
            return text.lower() == "true"
        kinds = [kind for kind in _NUMBERS if kind in self.options]
        try:
            return kinds[0](text) if kinds else text
        except ValueError:
            expected = " or ".join([*(_NUMBERS[kind] for kind in kinds), *self.words])
            raise UserError(f"--{self.name}={text}: expected {expected}") from None

    def check_choice(self, value: Any, choices: Sequence[str]) -> None:
        """Raise UserError unless `value` is one of the choices."""
        if value not in choices:
            raise unknown_choice(self.name, value, choices)

    def check(self, value: Any) -> None:
        """Raise UserError if a value is not among the choices or out of bounds."""
        if (choices := self.choices) is not None:
            self.check_choice(value, choices)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return
        if not math.isfinite(value):
            raise UserError(f"--{self.name}={value}: must be a finite number")
        info = self.info
        for bound, satisfied, words in (
            (info.at_least, operator.ge, "at least"),
            (info.above, operator.gt, "above"),
            (info.at_most, operator.le, "at most"),
            (info.below, operator.lt, "below"),
        ):
            if bound is not None and not satisfied(value, bound):
                raise UserError(f"--{self.name}={value}: must be {words} {bound}")


@functools.cache
def flags_of(cls: type) -> dict[str, Flag]:
    """Return the flags of a dataclass and its sections, by flat name, in order."""
    flags: dict[str, Flag] = {}
    hints = typing.get_type_hints(cls)
    helps = _field_docs(cls)
    # As in `__init__`, fields that are keyword-only come last.
    for field in sorted(dataclasses.fields(cls), key=lambda f: bool(f.kw_only)):
        hint = hints[field.name]
        if dataclasses.is_dataclass(hint) and isinstance(hint, type):
            for name, inner in flags_of(hint).items():
                path = (field.name, *inner.path)
                flags[name] = dataclasses.replace(inner, path=path)
            continue
        info = field.metadata.get("flag", _Info())
        name = info.name or field.name
        doc = helps.get(field.name, "")
        flags[name] = Flag(name, (field.name,), hint, field.default, doc, info, cls)
    return flags


def _field_docs(cls: type) -> dict[str, str]:
    """Read the docstrings of the fields of a dataclass and its bases, as one line."""
    docs: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(base)))
        except (OSError, TypeError):  # created at run time, without source
            continue
        body = typing.cast(ast.ClassDef, tree.body[0]).body
        for node, after in itertools.pairwise(body):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(node.target, ast.Name)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
                and isinstance(after.value.value, str)
            ):
                docs[node.target.id] = " ".join(after.value.value.split())
    return docs


def get(config: Any, flag: Flag) -> Any:
    """Return the value of a flag in a dataclass."""
    return functools.reduce(getattr, flag.path, config)


def as_flat(config: Any) -> dict[str, Any]:
    """Return all values of a dataclass and its sections, by flag name."""
    return {name: get(config, flag) for name, flag in flags_of(type(config)).items()}


def from_flat(cls: type[T], values: Mapping[str, Any]) -> T:
    """Create an instance of a dataclass with sections from values by flag name.

    Raises: TypeError for an unknown name, UserError for a value that is not allowed.
    """
    flags = flags_of(cls)
    if unknown := set(values) - set(flags):
        raise TypeError(f"{cls.__name__} has no {', '.join(sorted(unknown))}")
    nested: dict[str, Any] = {}
    for name, value in values.items():
        *sections, last = flags[name].path
        inner = nested
        for section in sections:
            inner = inner.setdefault(section, {})
        inner[last] = value
    return _build(cls, nested)


def _build(cls: type[T], values: Mapping[str, Any]) -> T:
    hints = typing.get_type_hints(cls)
    return cls(
        **{
            name: _build(hints[name], value)
            if dataclasses.is_dataclass(hints[name])
            else value
            for name, value in values.items()
        }
    )


def validate(config: Any) -> None:
    """Raise UserError for the first value that is not allowed."""
    for name, value in as_flat(config).items():
        flags_of(type(config))[name].check(value)


def parse(
    cls: type[T], argv: Sequence[str], *, prog: str, examples: Sequence[str] = ()
) -> T:
    """Create an instance of dataclass `cls` from command-line words.

    Flags are written --name=value or --name value; dashes in names count as
    underscores. Boolean flags are --name, --no_name, --name=true or --name=false.
    `--plugin=FILE.py` is imported first; `--help` prints the help.

    Raises: UserError for the first mistake; SystemExit after `--help`.
    """
    argv = load_plugins(argv)
    flags = flags_of(cls)
    if "plugin" not in flags:
        argv = without(argv, "plugin")
    if asks_help(argv):
        _parser(cls, flags, prog=prog, examples=examples).print_help()
        raise SystemExit(0)
    check(cls, argv)
    parser = _parser(cls, flags, prog=prog)
    words = _booleans(_normalized(argv), flags)
    texts = vars(parser.parse_intermixed_args(words))
    values: dict[str, Any] = {}
    for name, text in texts.items():
        if text is None or name not in flags:  # --help and --plugin: handled above
            continue
        if isinstance(text, bool):
            values[name] = text
        elif isinstance(text, list):
            values[name] = tuple(text)
        else:
            values[name] = flags[name].convert(text)
    for name, flag in flags.items():
        if flag.default is dataclasses.MISSING and not values.get(name):
            raise UserError(_missing(flag, prog))
    return from_flat(cls, values)


def _missing(flag: Flag, prog: str) -> str:
    name = flag.name.upper() if flag.info.positional else f"--{flag.name}="
    return f"{name}: missing ({flag.help or 'required'}); see {prog} --help"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        text = message.removeprefix("argument ")
        text = text.replace("unrecognized arguments: ", "unexpected word ")
        raise UserError(f"{text} ({self.prog} --help lists the flags)")


def _parser(
    cls: type,
    flags: Mapping[str, Flag],
    *,
    prog: str,
    examples: Sequence[str] = (),
) -> argparse.ArgumentParser:
    about = inspect.cleandoc(cls.__doc__ or "")
    if examples:
        lines = "\n".join(f"  {line}" for line in examples)
        about = f"examples:\n{lines}\n\n{about}"
    positional = [f.name.upper() for f in flags.values() if f.info.positional]
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *positional, "[--flag=value ...]"]),
        description=about,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26, width=WIDTH
        ),
        allow_abbrev=False,
        add_help=False,
    )
    groups: dict[type, Any] = {}
    for flag in flags.values():
        if flag.section not in groups:
            groups[flag.section] = parser.add_argument_group(_title(cls, flag))
        _add(groups[flag.section], flag)
    general = parser.add_argument_group("every command")
    general.add_argument("--help", action="store_true", default=None, help="show this")
    if "plugin" not in flags:
        general.add_argument("--plugin", metavar="FILE.py", help=PLUGIN_HELP)
    return parser


PLUGIN_HELP = (
    "Python file to import first: it registers networks, losses, metrics, protocols, "
    "data formats, optimizers or learning rate schedules"
)


def _title(cls: type, flag: Flag) -> str:
    if flag.section is cls:
        return "flags"
    return inspect.cleandoc(flag.section.__doc__ or "").split("\n")[0].rstrip(".")


def _add(group: Any, flag: Flag) -> None:
    text = flag.help.rstrip(".")
    if (choices := flag.choices) is not None:
        text += f" [{', '.join(choices)}]"
    if flag.default not in (dataclasses.MISSING, None, "", False, ()):
        text += f" (default: {flag.default})"
    text = text.replace("%", "%%")
    if flag.info.positional:
        many = typing.get_origin(flag.hint) is tuple
        group.add_argument(
            flag.name,
            nargs="*" if many else "?",
            metavar=flag.name.upper(),
            help=text,
        )
    elif flag.hint is bool:
        group.add_argument(
            f"--{flag.name}", action="store_true", default=None, help=text
        )
        group.add_argument(
            f"--no_{flag.name}",
            dest=flag.name,
            action="store_false",
            default=None,
            help=argparse.SUPPRESS,
        )
    else:
        group.add_argument(f"--{flag.name}", metavar=_metavar(flag), help=text)


def _metavar(flag: Flag) -> str:
    if flag.choices is not None:
        return "NAME"
    kind = next((k for k in (int, float) if k in flag.options), str)
    word = {int: "N", float: "X", str: "TEXT"}[kind]
    return "|".join([word, *(w for w in flag.words if w != "none")])


def _normalized(argv: Sequence[str]) -> list[str]:
    """Replace dashes in the names of flags by underscores."""
    words = []
    for word in argv:
        key, equals, value = word.partition("=")
        if key.startswith("--") and len(key) > 2:
            key = "--" + key[2:].replace("-", "_")
        words.append(f"{key}{equals}{value}")
    return words


def _booleans(words: Sequence[str], flags: Mapping[str, Flag]) -> list[str]:
    """Replace --name=true by --name and --name=false by --no_name, as argparse needs.

    Raises: UserError for any other value of a boolean flag.
    """
    replaced = []
    for word in words:
        key, equals, value = word.partition("=")
        flag = flags.get(key.removeprefix("--")) if key.startswith("--") else None
        if equals and flag is not None and flag.hint is bool:
            word = f"--{flag.name}" if flag.convert(value) else f"--no_{flag.name}"
        replaced.append(word)
    return replaced


def check(cls: type, argv: Sequence[str]) -> None:
    """Raise UserError for the first unknown flag, or value that is not allowed."""
    load_plugins(argv)
    flags = flags_of(cls)
    words = _normalized(argv)
    for k, word in enumerate(words):
        if not word.startswith("--") or word in ("--help", "--"):
            continue
        key, equals, value = word[2:].partition("=")
        if key.startswith("no_") and key[3:] in flags and not equals:
            continue
        if key not in flags:
            if key == "plugin":
                continue
            if key in RENAMED and RENAMED[key] in flags:
                raise UserError(f"--{key} was renamed: use --{RENAMED[key]}")
            hint = nearest(key, flags).replace("mean ", "mean --")
            raise UserError(f"unknown flag --{key}{hint} (--help lists them all)")
        if flags[key].hint is bool:
            if equals:
                flags[key].convert(value)
            continue
        following = words[k + 1] if k + 1 < len(words) else ""
        if not equals and not following:
            raise UserError(f"--{key}: give a value, as in --{key}=VALUE")
        flags[key].convert(value if equals else following)


def value_of(argv: Sequence[str], name: str) -> str | None:
    """Return the last value of `--name=value` or `--name value` in `argv`."""
    value = None
    for k, word in enumerate(argv):
        key, equals, rest = word.partition("=")
        if key.replace("-", "_") == f"__{name}":
            value = rest if equals else (argv[k + 1] if k + 1 < len(argv) else None)
    return value


def asks_help(argv: Sequence[str]) -> bool:
    """Whether the words contain -h or --help."""
    return bool({"-h", "--help"} & set(argv))


def without(argv: Sequence[str], name: str) -> list[str]:
    """Return the words without a flag and its value."""
    words, skip = [], False
    for word in argv:
        key, equals, _ = word.partition("=")
        if skip:
            skip = False
        elif key.replace("-", "_") == f"__{name}":
            skip = not equals
        else:
            words.append(word)
    return words


_loaded: dict[Path, types.ModuleType] = {}


def loaded_plugins() -> list[str]:
    """Return the paths of the plugins that this process has imported."""
    return [str(path) for path in _loaded]


def load_plugins(argv: Sequence[str]) -> list[str]:
    """Import the file that `--plugin` names, once; returns the words as a list."""
    if (path := value_of(argv, "plugin")) is not None and path.lower() != "none":
        load_plugin(path)
    return list(argv)


def load_plugin(path: str | Path) -> types.ModuleType:
    """Import a Python file that registers networks, losses or other choices.

    A file is imported once per process. Raises UserError if it can't be read or fails.
    """
    file = Path(path).expanduser().resolve()
    if file in _loaded:
        return _loaded[file]
    if not file.is_file():
        raise UserError(f"--plugin={path}: there is no such file")
    name = f"jaxdepth_plugin_{file.stem}"
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise UserError(f"--plugin={path}: not a Python file (.py)")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look modules up in it
    try:
        spec.loader.exec_module(module)
    except UserError:
        raise
    except Exception as error:
        lines = [f.lineno for f in inspect.trace() if f.filename == str(file)]
        where = f" line {lines[-1]}" if lines else ""
        raise UserError(
            f"--plugin={path}{where}: {type(error).__name__}: {error}"
        ) from error
    _loaded[file] = module
    return module
