"""The README and the pages in docs/ against the code: links, commands and flags."""

import contextlib
import functools
import importlib
import io
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest

import jaxdepth
from jaxdepth.commands import main
from jaxdepth.config import Config
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
COMMAND = re.compile(r"(?:^|\.venv/bin/)jaxdepth ((?:[a-z][a-z0-9-]*)|COMMAND)(.*)")
FLAG = re.compile(r"(?<!\S)--([a-z][a-z0-9_-]*)")

RENAMED = frozenset({"average"})  # the FAQ states its new name
OF_OTHER_PROGRAMS = frozenset({"accelerator-type", "spot"})  # gcloud

# `tables` also takes the flags of `run`; its help does not list them.
TAKES_RUN_FLAGS = ("tables",)
BENCHMARKS = ("train", "infer", "upconv", "data", "cpu", "gpu")


def commands_in(page: Path) -> list[tuple[str, str]]:
    """(command, arguments) of each `jaxdepth COMMAND` in code of a page."""
    text = page.read_text(encoding="utf-8")
    lines = [line for _, block in FENCE.findall(text) for line in block.splitlines()]
    lines += CODE_SPAN.findall(FENCE.sub("", text))
    matches = [COMMAND.search(line.strip()) for line in lines]
    return [(m[1], m[2]) for m in matches if m and m[1] != "COMMAND"]


@functools.cache
def flags_of(command: str, subcommand: str | None = None) -> frozenset[str]:
    """The flags that the help of a command lists."""
    argv = [command, *([subcommand] if subcommand else []), "--help"]
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.suppress(SystemExit):
        main.command(argv)
    return frozenset(FLAG.findall(output.getvalue().replace("│", " ")))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_and_images_exist(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    links = [link.partition("#")[0] for link in LINK.findall(text) if "://" not in link]
    missing = [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_commands_exist(page):
    unknown = {name for name, _ in commands_in(page)} - set(main.COMMANDS)
    assert not unknown


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_documented_flags_exist(page):
    unknown = []
    for name, arguments in commands_in(page):
        words = arguments.split()
        subcommand = words[0] if name == "benchmark" and words else None
        flags = flags_of(name, subcommand)
        if name in TAKES_RUN_FLAGS:
            flags |= flags_of("run")
        unknown += [f"{name} --{f}" for f in FLAG.findall(arguments) if f not in flags]
    assert not unknown


def all_flags() -> frozenset[str]:
    """The flags of every command."""
    commands = [(name, None) for name in main.COMMANDS if name != "benchmark"]
    commands += [("benchmark", name) for name in BENCHMARKS]
    return frozenset().union(*(flags_of(*names) for names in commands))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_flags_named_in_text_exist(page):
    spans = CODE_SPAN.findall(FENCE.sub("", page.read_text(encoding="utf-8")))
    named = {flag for span in spans for flag in FLAG.findall(span)}
    assert not named - all_flags() - RENAMED - OF_OTHER_PROGRAMS


def registries() -> dict[str, Registry[Any]]:
    """All registries by name, without modules that need packages that are absent."""
    named: dict[str, Registry[Any]] = {}
    for info in pkgutil.walk_packages(jaxdepth.__path__, "jaxdepth."):
        if info.name.endswith("__main__"):
            continue
        try:
            module = importlib.import_module(info.name)
        except ModuleNotFoundError as error:
            assert error.name is not None and not error.name.startswith("jaxdepth")
            continue
        named |= {k: v for k, v in vars(module).items() if isinstance(v, Registry)}
    return named


def test_every_registry_is_documented_with_its_flag():
    page = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    named = registries()
    assert {"LOSSES", "OPTIMIZERS", "SCHEDULES", "SOURCES"} <= named.keys()
    for name, registry in named.items():
        assert f"`{name}`" in page
        assert f"`--{registry.kind}`" in page


def test_help_on_plugins_names_what_they_can_register():
    text = flags_lib.flags_of(Config)["plugin"].help.rstrip(".")
    assert text == flags_lib.PLUGIN_HELP
    for word in (
        "losses", "networks", "protocols", "metrics", "data formats", "optimizers",
        "learning rate schedules",
    ):  # fmt: skip
        assert word in text


def test_readme_is_short():
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 150
    assert len(text.split()) <= 1100


def test_readme_has_one_run_and_one_test_command():
    text = README.read_text(encoding="utf-8")
    lines = [x for x in text.splitlines() if x.startswith("python3 -m venv .venv && ")]
    run, test = lines
    assert run.endswith(".venv/bin/python -m experiments.run --arch=upproj --loss=si")
    # .ci/run takes this line from the README.
    assert test.endswith("'.[test]' && .venv/bin/python -m pytest -n 2")


def test_readme_links_every_page():
    text = README.read_text(encoding="utf-8")
    unlinked = [p.name for p in PAGES[2:] if f"(docs/{p.name})" not in text]
    assert not unlinked
