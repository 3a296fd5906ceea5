"""docs/api.md against the docstrings."""

import re

import pytest

pytest.importorskip("griffe2md", reason="griffe2md is not installed: see [test]")

from tools import api_docs


def test_the_page_is_up_to_date():
    text = api_docs.PAGE.read_text(encoding="utf-8")
    written = re.search(r"griffe2md (\S+?)\.\n", text)
    assert written is not None
    if written[1] != api_docs.version():
        pytest.skip(f"docs/api.md was written with griffe2md {written[1]}")
    assert text == api_docs.page(), "run python tools/api_docs.py"
