"""Copies of images are detected after common changes; different images are not."""

import io
import math

import numpy as np
import pytest
from PIL import Image

from jaxdepth.data.doctor import duplicates
from tests.data import painted


def fingerprints_of(images) -> duplicates.Fingerprints:
    fingerprints = duplicates.Fingerprints()
    for row, image in enumerate(images):
        fingerprints.add(row, image)
    return fingerprints


def encoded(image, quality=40):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def scaled(image, factor=0.5):
    size = [round(n * factor) for n in image.shape[1::-1]]
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


CHANGES = {
    "same": lambda image: image,
    "JPEG": encoded,
    "half the size": scaled,
    "twice the size": lambda image: scaled(image, 2),
    "brighter": lambda image: (image * 0.8 + 40).astype(np.uint8),
    "border cut": lambda image: image[1:, 1:],
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_detected(change):
    images = [painted.scene(seed)[0] for seed in range(20)]
    fingerprints = fingerprints_of([*images, CHANGES[change](images[7])])
    assert fingerprints.copies(range(21)) == [(20, 7)]
    assert fingerprints.copies([20], [5, 6, 7, 8]) == [(20, 7)]
    assert fingerprints.copies([20], [5, 6]) == [] == fingerprints.copies(range(20))


def test_the_hash_equals_a_literal_dct():
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    grey = image[..., 1].astype(float)
    waves = sorted(
        ((v, u) for v in range(12) for u in range(12)), key=lambda w: (sum(w), w)
    )
    bits = ""
    for v, u in waves[1:65]:
        total = sum(
            grey[y, x]
            * math.cos(math.pi * v * (y + 0.5) / 32)
            * math.cos(math.pi * u * (x + 0.5) / 32)
            for y in range(32)
            for x in range(32)
        )
        bits += str(int(total > 0))
    expected = int(bits, 2).to_bytes(8, "big")
    assert np.array([duplicates.hash64(image)]).tobytes() == expected


def test_areas_of_sizes_that_are_not_multiples():
    values = np.arange(7 * 10, dtype=np.float64).reshape(7, 10)
    means = duplicates._areas(values, (2, 3))
    rows, columns = (slice(0, 3), slice(3, 7)), (slice(0, 3), slice(3, 6), slice(6, 10))
    expected = [[values[r, c].mean() for c in columns] for r in rows]
    np.testing.assert_allclose(means, expected, rtol=1e-6)
    assert duplicates._areas(values[:1, :1], (2, 3)).shape == (2, 3)


def test_equal_hashes_of_different_images_are_not_copies(monkeypatch):
    monkeypatch.setattr(duplicates, "hash64", lambda rgb: np.uint64(7))
    assert (
        fingerprints_of([painted.scene(0)[0], painted.scene(1)[0]]).copies(range(2))
        == []
    )


def test_images_of_one_brightness_are_ignored():
    black = np.zeros((30, 40, 3), np.uint8)
    fingerprints = fingerprints_of([black, black, black + 1])
    assert len(fingerprints) == 0 and fingerprints.copies(range(3)) == []
    assert fingerprints.copies([0], [1]) == []


def test_results_do_not_depend_on_the_block_size(monkeypatch):
    monkeypatch.setattr(duplicates, "BLOCK", 4)
    images = [painted.scene(seed)[0] for seed in range(9)]
    fingerprints = fingerprints_of(images + images)
    done = []
    pairs = fingerprints.copies(range(18), progress=lambda *x: done.append(x))
    assert pairs == [(row, row - 9) for row in range(9, 18)]
    assert done[-1] == (18, 18) and len(done) == 5


def test_real_frames_are_all_different(shared_data):
    files = sorted((shared_data / "nyu_train" / "rgb").iterdir())[:60]
    images = []
    for file in files:
        with Image.open(file) as image:
            images.append(np.asarray(image.reduce(4)))
    assert fingerprints_of(images).copies(range(60)) == []
    again = [encoded(image[1:, 1:], 60) for image in images]
    fingerprints = fingerprints_of(images + again)
    assert fingerprints.copies(range(60, 120), range(60)) == [
        (k + 60, k) for k in range(60)
    ]
