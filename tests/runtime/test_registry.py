"""Registries and the choices that flags take from them."""

import pytest

from jaxdepth.runtime.errors import UserError
from jaxdepth.runtime.registry import Registry, resolve_choices

ANIMALS: Registry[int] = Registry("animal")
ANIMALS.register("cat", 1)
ANIMALS.register("dog", 2)


def test_a_registry_is_a_mapping_in_order_of_registration():
    assert list(ANIMALS) == ["cat", "dog"] and dict(ANIMALS) == {"cat": 1, "dog": 2}
    assert ANIMALS["dog"] == 2 and "cow" not in ANIMALS and len(ANIMALS) == 2


def test_an_unknown_name_is_an_error_that_lists_the_names():
    with pytest.raises(KeyError, match="animal 'cow': expected one of cat, dog"):
        ANIMALS["cow"]
    with pytest.raises(UserError, match=r"^--animal=cta: .* of cat, dog; did"):
        ANIMALS.named("cta")
    with pytest.raises(UserError, match=r"^--pet=cow: expected one of cat, dog"):
        ANIMALS.named("cow", flag="pet")


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="animal 'cat' is registered already"):
        ANIMALS.register("cat", 3)
    assert ANIMALS["cat"] == 1


@pytest.mark.parametrize("name", ["", " a", "a b", "a=b", "a,b", "a|b"])
def test_a_name_must_be_usable_as_a_flag_value(name):
    with pytest.raises(ValueError, match="expected a name without spaces"):
        ANIMALS.register(name, 3)


def test_choices_follow_the_registry():
    place = f"auto|{__name__}:ANIMALS"
    assert resolve_choices(("a", "b")) == ("a", "b")
    assert resolve_choices(place) == ("auto", "cat", "dog")
    ANIMALS.register("cow", 3)
    try:
        assert resolve_choices(place) == ("auto", "cat", "dog", "cow")
    finally:
        ANIMALS.unregister("cow")
    assert resolve_choices(place) == ("auto", "cat", "dog")
