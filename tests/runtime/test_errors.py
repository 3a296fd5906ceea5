"""Texts of errors."""

from jaxdepth.runtime.errors import printable


def test_control_characters_are_escaped():
    assert printable("a\x1b[2Jb\n.png") == r"a\x1b[2Jb\n.png"
    assert printable("x" * 500) == "x" * 117 + "..."
    assert printable("x" * 500, None) == "x" * 500
    # Overrides of the direction, and bytes that are not UTF-8, which can't be printed.
    assert printable("a\u202egpj.exe \udce9") == r"a\u202egpj.exe \udce9"
    assert printable("Zürich 東京.jpg") == "Zürich 東京.jpg"
