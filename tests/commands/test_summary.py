"""The one-line summary of an evaluation, and the columns of tables."""

import pytest

from jaxdepth.commands import summary as summary_lib
from jaxdepth.evaluation import describe

ENTRY = {
    "protocol": "laina", "averaging": "pooled", "truth": "filled", "data": "nyu",
    "split": "tune", "size": "228x304", "flip_average": False,
    "metrics": {"delta1": 0.5, "abs_rel": None, "rmse": 1.25},
}  # fmt: skip


@pytest.mark.parametrize(("flip", "words"), [(False, ""), (True, ", flip TTA")])
def test_summary_names_the_conditions(flip, words):
    line = describe.summary({**ENTRY, "flip_average": flip})
    assert line == (
        "delta1 0.500, abs_rel undefined, rmse 1.250 "
        f"(laina, pooled{words}, filled truth, nyu, split tune, trained at 228x304)"
    )


def test_columns_of_the_tables():
    expected = ("delta1", "delta2", "delta3", "abs_rel", "rmse", "log10")
    assert summary_lib.columns() == expected
