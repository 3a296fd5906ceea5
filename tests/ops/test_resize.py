import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxdepth.ops import resize as ops

LENGTHS = st.integers(1, 17)
SIZES = st.tuples(LENGTHS, LENGTHS)


def literal_overlap(n_in, n_out):
    """The share of output cell k that pixel i covers, in float64."""
    weights = np.zeros((n_out, n_in))
    for k, i in np.ndindex(n_out, n_in):
        begin, end = k * n_in / n_out, (k + 1) * n_in / n_out
        weights[k, i] = max(0.0, min(end, i + 1) - max(begin, i)) / (end - begin)
    return weights


def literal_area(x, size):
    rows, columns = (literal_overlap(*n) for n in zip(x.shape[1:3], size, strict=True))
    y = np.zeros((x.shape[0], *size, *x.shape[3:]))
    for i, j in np.ndindex(*size):
        for a, b in np.ndindex(*x.shape[1:3]):
            y[:, i, j] += rows[i, a] * columns[j, b] * x[:, a, b]
    return y


def image(shape, seed=0):
    return np.random.default_rng(seed).uniform(0.5, 9, shape).astype(np.float32)


def test_bilinear_by_hand():
    # Enlarged twice: centres at -1/4 (edge repeated), 1/4, 3/4, 5/4, ...
    x = np.array([[[0.0, 4.0, 8.0]]], np.float32)
    expected = [[[0, 1, 3, 5, 7, 8]]]
    np.testing.assert_allclose(ops.resize_bilinear(x, (1, 6)), expected)


def test_bilinear_does_not_smooth_when_shrinking():
    # Reduced to a third: centres at 1, 4, 7, which are positions of entries.
    x = np.arange(9.0, dtype=np.float32)[None, None] ** 2
    np.testing.assert_allclose(ops.resize_bilinear(x, (1, 3)), [[[1, 16, 49]]])


@pytest.mark.parametrize("size", [(10, 14), (3, 4), (5, 7), (1, 1), (13, 3)])
def test_bilinear_equals_pytorch(size):
    torch = pytest.importorskip("torch", reason="parity with PyTorch needs torch")
    x = image((2, 5, 7, 3))
    expected = torch.nn.functional.interpolate(
        torch.from_numpy(x).permute(0, 3, 1, 2),
        size,
        mode="bilinear",
        align_corners=False,
    ).permute(0, 2, 3, 1)
    for array in (x, jnp.array(x)):
        got = ops.resize_bilinear(array, size)
        np.testing.assert_allclose(got, expected.numpy(), atol=5e-5)


def test_area_by_hand():
    # Three pixels to two cells: the middle one overlaps both.
    x = np.array([[[3.0, 6.0, 9.0]]], np.float32)
    np.testing.assert_allclose(ops.resize_area(x, (1, 2)), [[[4, 8]]], rtol=1e-6)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_area_equals_pillows_box_at_integer_factors(factor):
    x = image((3 * factor, 5 * factor))
    expected = Image.fromarray(x).resize((5, 3), Image.Resampling.BOX)
    got = ops.resize_area(x[None], (3, 5))[0]
    np.testing.assert_allclose(got, np.asarray(expected), rtol=1e-5)


@pytest.mark.parametrize("size", [(3, 4), (4, 5), (7, 9), (6, 7), (1, 1), (9, 2)])
def test_area_equals_the_literal_loop_at_fractional_cells(size):
    x = image((2, 6, 7, 2))
    for array in (x, jnp.array(x)):
        got = ops.resize_area(array, size)
        np.testing.assert_allclose(got, literal_area(x, size), rtol=1e-5)


@given(SIZES, SIZES)
def test_constants_are_preserved(size_in, size_out):
    x = np.full((1, *size_in), 3.7, np.float32)
    for resize in (ops.resize_area, ops.resize_bilinear):
        np.testing.assert_allclose(resize(x, size_out), 3.7, rtol=1e-5)


@given(SIZES, SIZES, st.integers(0, 99))
def test_area_preserves_the_mean(size_in, size_out, seed):
    x = image((1, *size_in), seed)
    got = ops.resize_area(x, size_out).mean(dtype=np.float64)
    np.testing.assert_allclose(got, x.mean(dtype=np.float64), rtol=1e-5)


@given(LENGTHS, LENGTHS)
def test_area_matrix_has_rows_that_sum_to_one(n_in, n_out):
    matrix = ops.area_matrix(n_in, n_out)
    assert (matrix.shape, matrix.dtype) == ((n_out, n_in), np.float32)
    assert matrix.min() >= 0
    np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-5)


def test_changing_an_area_matrix_does_not_change_the_cache():
    ops.area_matrix(4, 2)[:] = 0
    np.testing.assert_array_equal(ops.area_matrix(4, 2)[0], [0.5, 0.5, 0, 0])


def test_area_matrix_is_exactly_zero_where_cells_only_touch():
    # 240 to 228 pixels, and other sizes with edges that are not binary fractions.
    for n_in, n_out in [(240, 228), (480, 57), (7, 3), (49, 21)]:
        expected = literal_overlap(n_in, n_out) > 1e-9
        np.testing.assert_array_equal(ops.area_matrix(n_in, n_out) > 0, expected)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("resize", [ops.resize_area, ops.resize_bilinear])
def test_numpy_stays_numpy_and_jax_stays_jax(make, resize):
    for shape in [(1, 4, 6), (1, 4, 6, 3)]:
        x = make(np.full(shape, 200, np.uint8))
        y = resize(x, (2, 9))
        assert isinstance(y, np.ndarray) == isinstance(x, np.ndarray)
        assert (y.shape, y.dtype) == ((1, 2, 9, *shape[3:]), np.float32)
        np.testing.assert_allclose(y, 200, rtol=1e-5)


def test_float64_is_resized_in_float64():
    x = np.random.default_rng(0).uniform(size=(1, 6, 7))
    got = ops.resize_area(x, (4, 5))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, literal_area(x, (4, 5)), rtol=1e-13)


def test_other_ranks_are_refused():
    with pytest.raises((ValueError, TypeError)):
        ops.resize_area(np.zeros((1, 2, 3, 4, 5), np.float32), (2, 2))


def literal_masked(depth, valid, size):
    rows, columns = (
        literal_overlap(*n) for n in zip(valid.shape[1:], size, strict=True)
    )
    mean = np.zeros((len(depth), *size))
    is_valid = np.zeros((len(depth), *size), bool)
    for n, i, j in np.ndindex(len(depth), *size):
        total = area = 0.0
        for a, b in np.ndindex(*valid.shape[1:]):
            weight = rows[i, a] * columns[j, b]
            if valid[n, a, b] and weight > 1e-9:
                total += weight * float(depth[n, a, b])
                area += weight
        if area:
            mean[n, i, j], is_valid[n, i, j] = total / area, True
    return mean, is_valid


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
@pytest.mark.parametrize("size", [(3, 4), (4, 5), (6, 8), (9, 11)])
def test_masked_area_equals_the_literal_loop(size, make):
    depth = image((2, 6, 8))
    valid = np.random.default_rng(1).uniform(size=depth.shape) < 0.3
    depth = np.where(valid, depth, np.nan)  # must not be used
    got, is_valid = ops.masked_area(make(depth), make(valid), size)
    expected, expected_valid = literal_masked(depth, valid, size)
    assert not is_valid.all() and is_valid.any()
    np.testing.assert_array_equal(is_valid, expected_valid)
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert (got.dtype, is_valid.dtype) == (np.float32, np.bool_)


@given(SIZES, SIZES, st.floats(0, 1), st.integers(0, 99))
def test_masked_area_stays_within_the_valid_depths(size_in, size_out, share, seed):
    depth = image((1, *size_in), seed)
    valid = np.random.default_rng(seed).uniform(size=depth.shape) < share
    got, is_valid = ops.masked_area(depth, valid, size_out)
    assert is_valid.any() == valid.any()
    assert (got[~is_valid] == 0).all()
    if is_valid.any():
        rounding = 1e-5
        assert got[is_valid].min() >= depth[valid].min() * (1 - rounding)
        assert got[is_valid].max() <= depth[valid].max() * (1 + rounding)


def test_masked_area_without_holes_equals_the_area_mean():
    depth = image((1, 6, 7))
    got, is_valid = ops.masked_area(depth, np.ones_like(depth, bool), (4, 5))
    assert is_valid.all()
    np.testing.assert_allclose(got, ops.resize_area(depth, (4, 5)), rtol=1e-5)


def test_masked_area_accepts_integers_and_jit():
    depth = np.array([[[1000, 0], [3000, 2000]]], np.uint16)
    resize = jax.jit(ops.masked_area, static_argnames="size")
    got, is_valid = resize(jnp.array(depth), jnp.array(depth > 0), size=(1, 1))
    assert is_valid.all()
    np.testing.assert_allclose(got, [[[2000.0]]])
