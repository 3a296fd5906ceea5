"""Figures and files: colours, pixels and points, read back by other means."""

import struct
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from jaxdepth import plots


def read_png(path):
    with Image.open(path) as image:
        return np.asarray(image)


def test_importing_plots_does_not_import_matplotlib():
    code = "import sys, jaxdepth.plots; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False"


def test_depth_is_mapped_to_the_colour_map():
    depth = np.array([[1.0, 2.0, 3.0], [0.5, 9.0, 0.0]], np.float32)
    rgb = plots.colorize(depth, 1.0, 3.0)
    colours = matplotlib.colormaps["magma_r"]
    shares = {(0, 0): 0.0, (0, 1): 0.5, (0, 2): 1.0, (1, 0): 0.0, (1, 1): 1.0}
    for pixel, share in shares.items():
        expected = np.array(colours(share)[:3]) * 255
        np.testing.assert_allclose(rgb[pixel], expected, atol=1)
    assert rgb.dtype == np.uint8 and rgb.shape == (2, 3, 3)


def test_luminance_decreases_with_depth():
    depth = np.linspace(1, 9, 200, dtype=np.float32)[None]
    # Luminance of ITU-R BT.601.
    light = plots.colorize(depth, 1.0, 9.0)[0] @ np.array([0.299, 0.587, 0.114])
    assert light[0] > 240 and light[-1] < 10
    assert (np.diff(light) < 1.5).all()


@pytest.mark.parametrize("hole", [0.0, -1.0, np.nan, np.inf, -np.inf])
def test_missing_depth_is_grey(hole):
    depth = np.array([[2.0, hole]], np.float32)
    rgb = plots.colorize(depth, 1.0, 3.0)
    assert rgb[0, 1].tolist() == [128, 128, 128]
    assert rgb[0, 0].tolist() != [128, 128, 128]


def test_only_valid_pixels_are_coloured():
    depth = np.array([[0.0, 1.0]], np.float32)
    rgb = plots.colorize(
        depth, 0.0, 1.0, valid=np.array([[True, False]]), colours="viridis"
    )
    assert rgb[0, 0].tolist() == [68, 1, 84]  # the first colour of viridis
    assert rgb[0, 1].tolist() == [128, 128, 128]


def test_depth_range_gives_percentiles_of_valid_depth():
    depth = np.concatenate([np.arange(1, 1002), [0.0, np.nan, np.inf, -5.0]])
    assert plots.depth_range(depth[:500], depth[500:]) == (11.0, 991.0)
    assert plots.depth_range(np.full((2, 2), 3.0)) == (3.0, 3.1)
    assert plots.depth_range(np.zeros((2, 2))) == (0.0, 1.0)


@given(st.lists(st.floats(0.0005001, 65.535), min_size=1, max_size=20))
def test_png16_holds_whole_millimetres(tmp_path_factory, metres):
    path = tmp_path_factory.getbasetemp() / "depth.png"
    depth = np.array([metres], np.float64)
    plots.save_depth_png16(path, depth)
    back = read_png(path)
    assert back.dtype == np.uint16
    assert np.abs(back / 1000.0 - depth).max() <= 0.0005 + 1e-9
    assert (back > 0).all()


def test_png16_marks_missing_and_far_depth(tmp_path):
    path = tmp_path / "depth.png"
    depth = np.array([[0, np.nan, np.inf, -2, 65.535, 65.54, 1e6, 1e-5, 2.5]])
    plots.save_depth_png16(path, depth.astype(np.float32))
    # Depth beyond 65.535 m is the largest value; invalid depth is 0.
    assert read_png(path).tolist() == [[0, 0, 0, 0, 65535, 65535, 65535, 0, 2500]]


def test_color_png_is_scaled_to_the_range_of_the_depth(tmp_path):
    depth = np.linspace(2, 4, 300, dtype=np.float32).reshape(15, 20)
    depth[3, 4] = 0
    plots.save_color_png(tmp_path / "c.png", depth)
    rgb = read_png(tmp_path / "c.png")
    assert rgb.shape == (15, 20, 3)
    assert rgb[3, 4].tolist() == [128, 128, 128]
    assert rgb[0, 0].sum() > 600 and rgb[-1, -1].sum() < 30
    assert [p.name for p in tmp_path.iterdir()] == ["c.png"]


def parse_ply(path):
    """Return the header lines, and the vertices as a list of tuples."""
    head, _, body = path.read_bytes().partition(b"end_header\n")
    record = struct.Struct("<fffBBB")
    assert len(body) % record.size == 0
    return head.decode("ascii").splitlines(), list(record.iter_unpack(body))


def test_points_follow_the_pinhole_model(tmp_path):
    rng = np.random.default_rng(0)
    depth = rng.uniform(0.5, 9, (6, 8)).astype(np.float32)
    rgb = rng.integers(0, 256, (6, 8, 3), np.uint8)
    depth[0, 0], depth[2, 5], depth[4, 1] = 0, np.nan, np.inf
    k = {"fx": 518.9, "fy": 519.5, "cx": 3.25, "cy": 2.5}
    plots.write_ply(tmp_path / "a.ply", depth, rgb, **k)
    head, points = parse_ply(tmp_path / "a.ply")
    assert head[:2] == ["ply", "format binary_little_endian 1.0"]
    assert "element vertex 45" in head
    assert [x for x in head if x.startswith("property")] == [
        "property float x",
        "property float y",
        "property float z",
        "property uchar red",
        "property uchar green",
        "property uchar blue",
    ]
    expected = []
    for v in range(6):
        for u in range(8):
            z = float(depth[v, u])
            if np.isfinite(z) and z > 0:
                x, y = (u - 3.25) * z / 518.9, (v - 2.5) * z / 519.5
                expected.append((x, y, z, *map(int, rgb[v, u])))
    np.testing.assert_allclose(points, expected, rtol=1e-6, atol=1e-9)


def test_points_project_back_to_their_pixels(tmp_path):
    depth = np.full((4, 5), 2.0, np.float32)
    rgb = np.zeros((4, 5, 3), np.uint8)
    plots.write_ply(tmp_path / "a.ply", depth, rgb, fx=100, fy=90, cx=2, cy=1.5)
    x, y, z, *_ = np.array(parse_ply(tmp_path / "a.ply")[1]).T
    rows, columns = np.mgrid[:4, :5].reshape(2, -1)
    np.testing.assert_allclose(x / z * 100 + 2, columns, atol=1e-5)
    np.testing.assert_allclose(y / z * 90 + 1.5, rows, atol=1e-5)
    assert x[0] < 0 and y[0] < 0  # x to the right, y down: upper left is negative


def test_an_empty_point_cloud_is_a_valid_file(tmp_path):
    plots.write_ply(
        tmp_path / "a.ply", np.zeros((2, 2), np.float32),
        np.zeros((2, 2, 3), np.uint8), fx=1, fy=1, cx=0, cy=0,
    )  # fmt: skip
    head, points = parse_ply(tmp_path / "a.ply")
    assert "element vertex 0" in head and points == []


def scenes(count: int, size=(30, 40)):
    rng = np.random.default_rng(1)
    target = [rng.uniform(1, 9, size).astype(np.float32) for _ in range(count)]
    return {
        "rgb": [rng.integers(0, 256, (*size, 3), np.uint8) for _ in range(count)],
        "target": target,
        "pred": [t * np.float32(1.1) for t in target],
        "names": [f"frame {k}" for k in range(count)],
        "title": "plain, pooled, $5",
    }


@pytest.fixture
def drawn(monkeypatch):
    """The saved figures, in order."""
    figures = []
    save = plots.save

    def record(figure, path):
        figures.append(figure)
        save(figure, path)

    monkeypatch.setattr(plots, "save", record)
    return figures


def images(figure):
    return [a.images[0].get_array() for a in figure.axes if a.images]


def test_panel_shares_one_scale_between_ground_truth_and_prediction(tmp_path, drawn):
    shown = scenes(3)
    shown["target"][1][:5] = 0
    plots.panel(tmp_path / "p.png", **shown)
    cells = images(drawn[0])
    assert len(cells) == 12
    low, high = plots.depth_range(*shown["target"], *shown["pred"])
    for k in range(3):
        rgb, target, pred, error = cells[4 * k : 4 * k + 4]
        np.testing.assert_array_equal(rgb, shown["rgb"][k])
        for cell, depth in ((target, shown["target"][k]), (pred, shown["pred"][k])):
            np.testing.assert_array_equal(cell, plots.colorize(depth, low, high))
        grey = (error == 128).all(-1)
        np.testing.assert_array_equal(grey, shown["target"][k] == 0)
    labels = [axis.get_xlabel() for axis in drawn[0].axes]
    assert {"depth [m]", "error [m]"} <= set(labels)
    assert min(read_png(tmp_path / "p.png").shape[:2]) > 700


def test_panel_captions_give_rmse_and_delta1(tmp_path, drawn):
    shown = scenes(2, (2, 2))
    shown["target"] = [
        np.array([[2.0, 4.0], [1.0, 0.0]], np.float32),
        np.array([[2.0, 2.0], [2.0, 2.0]], np.float32),
    ]
    # Errors 1, 0 and 1 with ground truth: two ratios beyond 1.25.
    shown["pred"] = [
        np.array([[3.0, 4.0], [0.0, 9.0]], np.float32),
        np.array([[2.4, 2.0], [2.0, 2.0]], np.float32),
    ]
    plots.panel(tmp_path / "p.png", **shown)
    labels = [axis.get_xlabel() for axis in drawn[0].axes]
    assert labels[2] == f"rmse {np.sqrt(2 / 3):.2f} m, delta1 0.33"
    assert labels[6] == "rmse 0.20 m, delta1 1.00"
    assert labels[0] == "frame 0" and labels[4] == "frame 1"


@pytest.mark.parametrize(
    ("target", "pred", "caption"),
    [
        (0.0, 2.0, "no ground truth"),
        (np.nan, 2.0, "no ground truth"),
        (2.0, np.nan, "prediction not finite"),
        (2.0, np.inf, "prediction not finite"),
        (2.0, 0.0, "rmse 2.00 m, delta1 0.00"),
    ],
)
def test_panel_captions_of_invalid_images(tmp_path, drawn, target, pred, caption):
    shown = scenes(1)
    shown["target"][0][:], shown["pred"][0][:] = target, pred
    plots.panel(tmp_path / "p.png", **shown)
    assert drawn[0].axes[2].get_xlabel() == caption


def entry(step, averaging, rmse, delta1):
    return {
        "step": step,
        "protocol": "laina",
        "averaging": averaging,
        "data": "rooms",
        "split": "own",
        "metrics": {"rmse": rmse, "delta1": delta1},
    }


def lines(axis):
    return [line.get_xydata().tolist() for line in axis.lines]


def test_curves_draw_loss_learning_rate_and_the_last_kind_of_evaluation(
    tmp_path, drawn
):
    records = [
        {"step": k, "loss": 10.0 / k, "learning_rate": 0.01 * k} for k in range(1, 51)
    ]
    records[7]["loss"] = None
    entries = [
        entry(25, "per_image", 9.0, 0.9),
        entry(25, "pooled", 2.0, 0.5),
        entry(50, "per_image", 9.0, 0.9),
        entry(50, "pooled", 1.0, None),
    ]
    plots.curves(tmp_path / "c.png", records, entries)
    loss, rate, scores, other = drawn[0].axes
    assert lines(loss)[0] == [[k, 10.0 / k] for k in range(1, 51) if k != 8]
    assert loss.get_yscale() == "log"
    assert lines(rate) == [[[k, 0.01 * k] for k in range(1, 51)]]
    assert lines(scores) == [[[25, 2.0], [50, 1.0]]]
    np.testing.assert_array_equal(lines(other)[0], [[25, 0.5], [50, np.nan]])
    assert scores.get_title() == "rooms, own: laina, pooled"
    assert scores.get_ylabel() == "rmse [m]"
    assert read_png(tmp_path / "c.png").shape[:2] == (440, 1100)


@pytest.mark.parametrize("records", [[], [{"step": 1, "loss": 1.0}]])
def test_curves_of_few_records(tmp_path, drawn, records):
    plots.curves(tmp_path / "c.png", records, [])
    assert drawn[0].axes[0].get_yscale() == "linear"
    assert len(drawn[0].axes) == 3


def test_plain_text_escapes_underscores_and_dollar_signs():
    assert plots.plain_text("_a$b$") == r" _a\$b\$" and plots.plain_text("a_") == "a_"


def test_smoothing_an_empty_array():
    assert len(plots.smooth(np.zeros(0))) == 0


def test_smoothing_keeps_constants_and_slopes_and_reduces_noise():
    np.testing.assert_allclose(plots.smooth(np.full(50, 3.0)), 3.0)
    slope = np.arange(400.0)
    np.testing.assert_allclose(plots.smooth(slope)[50:-50], slope[50:-50])
    noise = np.random.default_rng(0).normal(size=400)
    assert plots.smooth(noise).std() < 0.35


def test_panel_of_a_real_frame(tmp_path, shared_data, drawn):
    folder = shared_data / "nyu_train"
    rgb = read_png(folder / "rgb" / "0003.jpg")
    target = (read_png(folder / "depth8" / "0003.png") + 0.5) * 9.99547 / 255
    target = target.astype(np.float32)
    plots.panel(
        tmp_path / "p.png", rgb=[rgb], target=[target], pred=[target + 0.25],
        names=["frame 3"], title="shifted by a quarter of a metre",
    )  # fmt: skip
    assert drawn[0].axes[2].get_xlabel().startswith("rmse 0.25 m, delta1 ")


def test_contact_sheet_draws_pairs_with_one_scale(tmp_path, drawn):
    shown = scenes(4)
    depth = shown["target"]
    depth[2][:10] = 0
    names = ["first", "a" * 60 + "/end.jpg", "$x$", "last"]
    plots.contact_sheet(
        tmp_path / "s.png", rgb=shown["rgb"], depth=depth, names=names, title="four"
    )
    cells = images(drawn[0])
    low, high = plots.depth_range(*depth)
    assert len(cells) == 8
    for k in range(4):
        np.testing.assert_array_equal(cells[2 * k], shown["rgb"][k])
        expected = plots.colorize(depth[k], low, high)
        np.testing.assert_array_equal(cells[2 * k + 1], expected)
    titles = [axis.get_title("left") for axis in drawn[0].axes]
    titles = [title for title in titles if title]
    assert titles[0] == "first" and titles[2] == r"\$x\$"
    assert titles[1].endswith("a/end.jpg") and len(titles[1]) == 60
    assert "depth [m]" in [axis.get_xlabel() for axis in drawn[0].axes]
    assert read_png(tmp_path / "s.png").shape[1] == 1430


def test_statistics_draw_shares_of_pixels_and_numbers_of_frames(tmp_path, drawn):
    depth = np.repeat(np.array([1, 2, 3, 90], np.float32), (300, 600, 99, 1))
    surface = np.zeros((5, 5))
    surface[2, 3] = 0.3  # a cell of 2 pixels to the right
    plots.statistics(
        tmp_path / "s.png", depth=depth, missing={"raw": [0.0, 0.5, 0.52]},
        surface=surface, reach=4, title="$",
    )  # fmt: skip
    depths, holes, shifts = drawn[0].axes
    heights = sorted(bar.get_height() for bar in depths.patches)[-3:]
    np.testing.assert_allclose(heights, [9.9, 30, 60], rtol=1e-6)
    assert depths.patches[-1].get_x() < 4  # one far pixel does not extend the axis
    assert "median 2 m" in depths.get_legend().get_texts()[0].get_text()
    assert sorted(bar.get_height() for bar in holes.patches)[-2:] == [1, 2]
    image = shifts.images[0]
    assert image.get_extent() == [-5, 5, 5, -5] and "0.30" in shifts.get_title()
    assert read_png(tmp_path / "s.png").shape[1] == 1320


def test_statistics_of_empty_data(tmp_path, drawn):
    plots.statistics(
        tmp_path / "s.png", depth=np.zeros(0, np.float32), missing={"raw": []},
        surface=None, reach=4, title="",
    )  # fmt: skip
    assert not any(axis.patches for axis in drawn[0].axes)
