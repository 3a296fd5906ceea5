"""Arrays of several libraries, types and layouts as images in 8 bits."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxdepth import image_arrays
from jaxdepth.runtime.errors import UserError

sizes = st.tuples(st.integers(5, 9), st.integers(5, 9))


def colours(size=(6, 8), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (*size, channels), np.uint8)


class Tensor:
    """A tensor as PyTorch has it: on a device, with a gradient, channels first."""

    def __init__(self, array, place="cuda", grad=True, dtype="torch.float32"):
        self.array, self.place, self.grad, self.dtype = array, place, grad, dtype
        self.shape, self.ndim = array.shape, array.ndim

    def detach(self):
        return Tensor(self.array, self.place, False, self.dtype)

    def cpu(self):
        return Tensor(self.array, "cpu", self.grad, self.dtype)

    def float(self):
        return Tensor(self.array.astype(np.float32), self.place, self.grad)

    def __array__(self, dtype=None, copy=None):
        if self.place != "cpu" or self.grad or self.dtype == "torch.bfloat16":
            raise TypeError("can't convert")
        return np.asarray(self.array, dtype)


@given(size=sizes, seed=st.integers(0, 99))
def test_the_same_picture_in_any_type_and_layout(size, seed):
    rgb = colours(size, seed=seed)
    first = np.moveaxis(rgb, -1, 0)
    alpha = colours(size, channels=1, seed=seed + 1)
    for same in (
        first,
        rgb[:, ::-1][:, ::-1],  # not contiguous
        np.dstack([rgb, alpha]),
        np.moveaxis(np.dstack([rgb, alpha]), -1, 0),
        rgb.astype(np.uint16) * 257,
        (rgb.astype(np.uint16) * 257).astype(">u2"),
        rgb / 255,
        (rgb / 255).astype(np.float32),
        (rgb / 255).astype(np.float16),
        (first / 255).astype(np.float32),
        jnp.asarray(first),
        jnp.asarray(rgb / 255, jnp.float32),
        Tensor(first),
        Tensor((first / 255).astype(np.float32), place="mps"),
    ):
        found = image_arrays.to_rgb(same)
        assert found.dtype == np.uint8
        np.testing.assert_array_equal(found, rgb)
    # These numbers have 8 bits, one of them for the sign.
    rounded = image_arrays.to_rgb((rgb / 255).astype(ml_dtypes.bfloat16))
    assert np.abs(rounded.astype(int) - rgb).max() <= 1
    tensor = Tensor((first / 255).astype(np.float32), dtype="torch.bfloat16")
    np.testing.assert_array_equal(image_arrays.to_rgb(tensor), rgb)


@given(size=sizes)
def test_grey_images_become_three_equal_channels(size):
    grey = colours(size, channels=1)
    for same in (grey[..., 0], grey, np.moveaxis(grey, -1, 0), grey[..., 0] / 255):
        found = image_arrays.to_rgb(same)
        np.testing.assert_array_equal(found, np.concatenate([grey] * 3, -1))


def test_16_bits_are_rounded_to_the_nearest_of_8():
    values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(values / 257.0)
    np.testing.assert_array_equal(image_arrays.to_rgb(values)[..., 0], expected)


@pytest.mark.parametrize("shape", [(3, 90, 3), (4, 3, 3), (1, 7, 4), (1, 1, 1)])
def test_channels_are_last_where_both_are_possible(shape):
    array = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = image_arrays.to_rgb(array)
    assert found.shape == (*shape[:2], 3)
    np.testing.assert_array_equal(found[..., 0], array[..., 0])


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (np.zeros((2, 4, 5, 3), np.uint8), r"shape \(2, 4, 5, 3\): expected \(H, W\)"),
        (np.zeros((6, 5, 7), np.uint8), r"shape \(6, 5, 7\)"),
        (np.zeros((4, 4, 2), np.uint8), None),  # 4 channels first
        (np.zeros((5, 5, 2), np.uint8), r"shape \(5, 5, 2\)"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros(4, np.uint8), r"shape \(4,\)"),
        (np.uint8(4), r"shape \(\)"),
        (np.full((5, 5), 255.0), "values from 255 to 255: .* give image / 255"),
        (np.full((5, 5), 4095.0), "give image / 65535"),
        (
            np.array([[-0.02, 1.02]]),
            r"from -0.02 to 1.02: .* give np.clip\(image, 0, 1",
        ),
        (np.array([[-2.1, 2.6]]), r"undo its normalisation"),
        (np.array([[0.1, np.nan]]), "float64 holds NaN or infinite values: .*nan_to_"),
        (np.array([[0.1, np.inf]], np.float32), "float32 holds NaN or infinite"),
        (np.zeros((5, 5), np.int64), r"int64: .* give image.astype\(np.uint8\)"),
        (
            np.zeros((5, 5), np.uint32),
            "type uint32: expected uint8, uint16, or floating",
        ),
        (np.zeros((5, 5), bool), "type bool"),
        (np.zeros((5, 5), complex), "type complex128"),
        (np.zeros((5, 5), object), "type object"),
    ],
)
def test_other_arrays_are_errors_with_the_fix(image, words):
    if words is None:
        assert image_arrays.to_rgb(image).shape == (4, 2, 3)
        return
    with pytest.raises(UserError, match=words) as error:
        image_arrays.to_rgb(image)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("above", [np.nextafter(1, 2), 1.5, 255.0])
def test_the_smallest_excess_is_an_error(above):
    image = np.full((5, 5), 0.5)
    image[2, 3] = above
    with pytest.raises(UserError, match="floating-point images range from 0 to 1"):
        image_arrays.to_rgb(image)
    image[2, 3] = 1.0
    assert image_arrays.to_rgb(image).max() == 255


def test_what_a_library_refuses_is_an_error_in_one_line():
    class Refusing:
        shape, dtype = (4, 5), "float32"

        def __array__(self, dtype=None, copy=None):
            raise RuntimeError("no implicit\nconversion: call get()")

    with pytest.raises(
        UserError, match=r"Refusing can't be converted .* call get"
    ) as e:
        image_arrays.to_rgb(Refusing())
    assert "\n" not in str(e.value)
    assert image_arrays.is_array(Refusing()) and not image_arrays.is_array([1, 2])


def test_8_bit_values_in_16_bits_are_noted(caplog):
    image_arrays.to_rgb(np.full((5, 5), 200, np.uint16))
    assert "no value of the uint16 image is above 255" in caplog.text
    caplog.clear()
    image_arrays.to_rgb(np.full((5, 5), 256, np.uint16))
    assert not caplog.text


def test_tensors_of_pytorch():
    torch = pytest.importorskip("torch", reason="extra torch is absent")
    rgb = colours()
    tensor = torch.from_numpy(np.moveaxis(rgb, -1, 0).copy())
    with_gradient = (tensor.float() / 255).requires_grad_()
    for same in (tensor, with_gradient, with_gradient.permute(1, 2, 0)):
        np.testing.assert_array_equal(image_arrays.to_rgb(same), rgb)
    half = image_arrays.to_rgb((tensor.float() / 255).bfloat16())
    assert np.abs(half.astype(int) - rgb).max() <= 1
