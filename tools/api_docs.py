"""Write docs/api.md from the docstrings of the public API: python tools/api_docs.py

Uses griffe2md, which reads the source without importing it (`pip install -e '.[dev]'`).
"""

import importlib.metadata
import sys
from pathlib import Path

# Also runs in a checkout that is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import griffe
import griffe2md

import jaxdepth

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "api.md"
HEAD = """# API

`import jaxdepth` gives these names. Arrays are `pred, target` in this order, in metres.
This page is generated from the docstrings by `python tools/api_docs.py` with
griffe2md {version}.
"""
CONFIG = griffe2md.ConfigDict(
    **griffe2md.default_config
    | {
        "show_signature_annotations": True,
        "heading_level": 2,
        "docstring_style": "google",
        "filters": ["!^_"],
        "show_submodules": False,
    }
)


def version() -> str:
    """The installed version of griffe2md."""
    return importlib.metadata.version("griffe2md")


def page() -> str:
    """The text of docs/api.md."""
    package = griffe.load("jaxdepth", search_paths=[ROOT], submodules=True)
    parts = [HEAD.format(version=version())]
    # Modules come last.
    for name in sorted(jaxdepth.__all__, key=lambda n: (n in jaxdepth._SUBMODULES, n)):
        path = f"{jaxdepth._MODULES[name]}.{name}"
        target = package[path.removeprefix("jaxdepth.")]
        parts.append(griffe2md.render_object_docs(target, CONFIG))
    lines = "\n\n".join(parts).splitlines()
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE.relative_to(ROOT)}")
