"""The import order of the packages, and what importing the package costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxdepth

PACKAGE = Path(jaxdepth.__file__).parent
# A module imports from its own layer or earlier ones.
LAYERS = [
    ("runtime",),
    (
        "camera",
        "config",
        "depth",
        "image_arrays",
        "images",
        "plots",
        "recipes",
        "workdir",
    ),
    ("ops",),
    ("losses",),
    ("models",),
    ("weights",),
    ("data",),
    ("evaluation",),
    ("training",),
    ("predictor",),
    ("commands", "__main__"),
]
RANKS = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def imports(tree: ast.Module) -> set[str]:
    """Names in jaxdepth that a module imports when it is imported itself."""
    names = set()
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue  # imported on use
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        waiting += ast.iter_child_nodes(node)
    return {name for name in names if name.startswith("jaxdepth.")}


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_modules_import_from_earlier_packages_only(path):
    layer = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if layer == "__init__":
        return
    for name in imports(ast.parse(path.read_text())):
        imported = name.split(".")[1]
        assert RANKS[imported] <= RANKS[layer], f"{layer} imports {name}"


def test_importing_the_package_imports_neither_jax_nor_tensorflow_nor_matplotlib():
    code = (
        "import sys, jaxdepth\n"
        "print({'jax', 'tensorflow', 'matplotlib'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


@pytest.mark.parametrize("module", ["jaxdepth.config", "jaxdepth.runtime.flags"])
def test_the_configuration_is_free_of_jax(module):
    code = f"import sys, {module}; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr


@pytest.mark.parametrize("name", jaxdepth.__all__)
def test_public_names_are_documented(name):
    assert getattr(jaxdepth, name).__doc__


def test_other_names_are_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        getattr(jaxdepth, "no" + "thing")
