"""Numbers say what they were measured by."""

import pytest

from jaxdepth.commands import summary as summary_lib

ENTRY = {
    "protocol": "laina", "averaging": "pooled", "truth": "filled", "data": "nyu",
    "split": "tune", "size": "228x304", "flip_average": False,
    "metrics": {"delta1": 0.5, "abs_rel": None, "rmse": 1.25},
}  # fmt: skip


@pytest.mark.parametrize(("flip", "words"), [(False, ""), (True, ", mirror-averaged")])
def test_a_line_says_whether_the_mirrored_image_was_asked_too(flip, words):
    line = summary_lib.summary({**ENTRY, "flip_average": flip})
    assert line == (
        "delta1 0.500, abs_rel undefined, rmse 1.250 "
        f"(laina, pooled{words}, filled truth, nyu, split tune, trained at 228x304)"
    )
