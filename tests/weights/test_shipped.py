"""The networks in this package: size, terms, scores, and what they predict."""

import re

import numpy as np
import pytest
from PIL import Image

import jaxdepth
from jaxdepth.data.nyu import splits
from jaxdepth.weights import packed

LIMIT = 8_000_000  # bytes


def test_the_default_network_is_included():
    assert packed.DEFAULT in packed.SHIPPED
    assert packed.card("another") is None


@pytest.mark.parametrize("name", packed.SHIPPED)
def test_size_terms_and_normalisation(name):
    path = packed.find(name)
    assert path is not None and path.stat().st_size <= LIMIT
    network = packed.read(path)
    assert "NYU Depth V2" in network.licence and "Apache-2.0" in network.licence
    # ImageNet weights may not be for every use.
    assert network.config.model.init == "random"
    assert network.config.output.workdir is None  # of the machine that trained it
    camera = network.data["camera"]
    assert camera["fx"] == pytest.approx(518.86 * camera["size"][1] / 640, rel=0.02)


@pytest.mark.parametrize("name", packed.SHIPPED)
def test_the_card_states_the_scores_in_the_file(name):
    card, path = packed.card(name), packed.find(name)
    assert card is not None and path is not None
    text = card.read_text(encoding="utf-8")
    network = packed.read(path)
    assert network.command in text.replace(" \\\n    ", " ")
    assert f"{path.stat().st_size / 1e6:.1f} MB" in text
    row = re.compile(r"^\| `(\w+)` \| `([\w@]+)`, per (\w+) \| (.*) \|$", re.MULTILINE)
    rows = row.findall(text)
    assert len(rows) >= 4
    scores = {
        (e["split"], e["protocol"], e["averaging"]): e["metrics"]
        for e in network.evaluations
    }
    for split, protocol, unit, cells in rows:
        averaging = {"image": "per_image", "pixel": "pooled"}[unit]
        metrics = scores[split, protocol, averaging]
        stated = [cell.split()[0] for cell in cells.split("|")]
        expected = [f"{metrics[k]:.3f}" for k in ("delta1", "abs_rel", "rmse")]
        assert stated == expected


@pytest.mark.slow
def test_scores_equal_an_independent_evaluation(shared_data):
    # Eigen et al. 2014: 427x561 pixels without the border, depth limited to 10 m,
    # averaged over images.
    predictor = jaxdepth.load(packed.DEFAULT, cache_dir=None)
    path = packed.find(packed.DEFAULT)
    assert path is not None
    (stated,) = (
        entry["metrics"]
        for entry in packed.read(path).evaluations
        if (entry["split"], entry["protocol"]) == ("tune", "eigen")
        and entry["averaging"] == "per_image"
    )
    parts, official = splits.parts(), splits.official()
    folder = shared_data / "nyu_train"
    sums = []
    for index in official["train"]:
        if parts[official["scenes"][index - 1]] != "tune":
            continue
        rgb = np.asarray(Image.open(folder / "rgb" / f"{index:04d}.jpg"))
        code = np.asarray(Image.open(folder / "depth8" / f"{index:04d}.png"), float)
        depth = predictor.predict_frame({"rgb": rgb, "camera": None})
        crop = np.s_[45:471, 41:601]
        truth = ((code + 0.5) * 9.99547 / 255)[crop]
        predicted = np.clip(depth[crop].astype(float), 1e-3, 10.0)
        ratio = np.maximum(predicted / truth, truth / predicted)
        error = predicted - truth
        sums.append(
            [
                (ratio < 1.25).mean(),
                (np.abs(error) / truth).mean(),
                np.sqrt((error**2).mean()),
            ]
        )
    assert len(sums) == 81
    found = dict(zip(("delta1", "abs_rel", "rmse"), np.mean(sums, 0), strict=True))
    for metric, value in found.items():
        assert value == pytest.approx(stated[metric], abs=0.005), metric
