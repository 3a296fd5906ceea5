"""The HTML report: its contents, and its behaviour in a browser."""

import base64
import io
import json
import re
import shutil
from typing import Any

import numpy as np
import pytest
from PIL import Image

from jaxdepth.camera import Camera
from jaxdepth.commands import cli
from jaxdepth.commands.finished_runs import Example, ImageScores, TrainedRun
from jaxdepth.commands.report import command as library
from jaxdepth.commands.report import command as report
from jaxdepth.commands.report import sections
from jaxdepth.evaluation.metrics import METRICS
from jaxdepth.runtime.errors import UserError

EVIL = "<script>alert('x')</script>&\"$a$"
COLUMNS, ROWS = 64, 48


def entry(step, rmse, *, averaging="pooled", data="rooms", pixels=1000, **more):
    metrics = dict.fromkeys(METRICS, 0.5) | {"rmse": rmse}
    return {
        "step": step, "protocol": "plain", "averaging": averaging, "truth": "raw",
        "data": data, "split": "own", "size": "48x64", "images": 32, "metrics": metrics,
        "counts": {"pixels": pixels}, "notes": [], **more,
    }  # fmt: skip


def run_folder(folder, rmse, *, data="rooms", arch="cnn", loss="si", **more):
    """A work directory without checkpoints."""
    folder.mkdir(parents=True)
    parts = {
        "0-2 m": {"pixels": 250, "images": 30, "metrics": dict.fromkeys(METRICS, 0.125)}
    }
    entries = [
        entry(
            step, value, averaging=averaging, data=data, loss=0.25, parts=parts, **more
        )
        for step, value in ((10, rmse + 1), (20, rmse))
        for averaging in ("per_image", "pooled")
    ]
    results = {
        "evaluations": entries,
        "baselines": {"mean_map": dict.fromkeys(METRICS, 0.875)},
        "images_per_s": 12.34,
        "command": "python -m experiments.run --arch=cnn " + EVIL,
        "versions": {"jax": "0.10.2"},
        "devices": {"platform": "cpu", "count": 1},
    }
    config = {"arch": arch, "loss": loss, "lr": 0.001, "workdir": EVIL}
    saved = {"config": config, "data": {"name": data, "train_images": 631}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps(saved))
    lines = [json.dumps({"step": k, "loss": 1 / (k + 1)}) for k in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return str(folder)


class Fake(TrainedRun):
    """A trained run on five images of a box; prediction k is 0.1 k metres too far."""

    def __init__(self, run, **_):
        pass

    def score(self):
        images = [
            {"name": f"{EVIL} {k}"} | dict.fromkeys(METRICS, 0.5) | {"rmse": k / 10}
            for k in range(5)
        ]
        return ImageScores(entry(20, 1.0), images)

    def examples(self, indices):
        rows, columns = np.mgrid[:ROWS, :COLUMNS]
        box = (abs(rows - 24) < 10) & (abs(columns - 20) < 12)
        depth = np.where(box, 1.5, 3.0).astype(np.float32)
        rgb = np.stack([4 * rows, 4 * columns, 0 * rows + 90], -1).astype(np.uint8)
        camera = Camera(60.0, 60.0, 31.5, 23.5)
        return [
            Example(f"{EVIL} {k}", rgb, depth, depth + np.float32(0.1 * k), camera)
            for k in indices
        ]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(library, "TrainedRun", Fake)


def text_of(html: str) -> str:
    """The visible text of a page."""
    body = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.DOTALL)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", body))


def test_tables_state_the_conditions_and_images_are_ranked(tmp_path, fake):
    a = run_folder(tmp_path / "a", 1.25)
    out = tmp_path / "r.html"
    assert report.command([a, f"--out={out}", "--pictures=4"]) == cli.OK
    html = out.read_text()
    text = text_of(html)
    measured = "plain, pooled, raw truth, rooms, split own, trained at 48x64, 32 images"
    for table in ("", "By distance, and near depth edges: "):
        assert table + measured in text
    assert "Baselines, which do not depend on the image" in text
    assert "1.250" in text and "0.875" in text and "0.125" in text and "25.0 %" in text
    assert "plain, per_image, raw truth" in text
    for word in ("--lr", "0.001", "train images", "631", "12.3 images/s", "0.10.2"):
        assert word in text
    # Two worst and two best of five, by RMSE, worst first.
    ranks = re.findall(
        r"<strong>((?:worst|best) \d of \d)</strong>.*?rmse ([\d.]+)", html
    )
    assert ranks == [
        ("worst 1 of 5", "0.400"), ("worst 2 of 5", "0.300"),
        ("best 2 of 5", "0.100"), ("best 1 of 5", "0.000"),
    ]  # fmt: skip


def test_text_from_files_is_escaped(tmp_path, fake):
    a = run_folder(tmp_path / "a", 1.25, data=EVIL)
    out = tmp_path / "r.html"
    argv = [a, f"--out={out}", "--pictures=2", f"--title={EVIL}"]
    assert report.command(argv) == cli.OK
    html = out.read_text()
    assert "<script>alert" not in html and "&lt;script&gt;alert" in html
    assert html.count("<script") == 2  # the page's script, and the data of the clouds
    # The page loads nothing: its only addresses are XML names.
    addresses = set(
        re.findall(r"(?:https?:)?//[\w.]+", re.sub(r"data:[^\"]+", "", html))
    )
    assert addresses <= {"http://www.w3.org"}


def test_only_comparable_runs_share_a_table(tmp_path, fake):
    runs = [
        run_folder(tmp_path / "a", 1.25),
        run_folder(tmp_path / "b", 1.0, arch="upproj"),
        run_folder(tmp_path / "c", 0.5, data="other"),
        run_folder(tmp_path / "d", 0.5, pixels=500),  # as with another --max_depth
    ]
    out = tmp_path / "r.html"
    assert report.command([*runs, f"--out={out}", "--pictures=0"]) == cli.OK
    html = out.read_text()
    numbers = html[html.index('id="numbers"') : html.index('id="curves"')]
    first, second, third = re.findall(r"<tbody>.*?</tbody>", numbers, flags=re.DOTALL)
    assert re.findall(r'scope="row">(\w+)', first) == ["a", "b", "mean"]
    assert re.findall(r'scope="row">(\w+)', second) == ["c", "mean"]
    assert re.findall(r'scope="row">(\w+)', third) == ["d", "mean"]
    assert "evaluated in 3 ways" in html
    assert "none were requested" in html


def test_tables_show_the_numbers_of_the_paper(tmp_path, fake):
    run_folder(tmp_path / "t" / "cnn" / "seed-0", 1.25)
    seed = {
        "seed": 0, "workdir": "cnn/seed-0", "status": "done",
        "evaluation": entry(20, 1.25),
    }  # fmt: skip
    rows = [
        {
            "label": "CNN", "run": "cnn", "status": "done", "reason": None,
            "seeds": [seed], "also_in": [], "flags": {"steps": 480, "lr": 1e-3},
            "paper": {"delta1": 0.195, "abs_rel": 1.2e6, "rmse": 1.22},
            "mean": dict.fromkeys(METRICS, 0.25),
            "spread": dict.fromkeys(METRICS, 0.01),
        },
        {
            "label": "CNN+Res", "run": "upproj_imagenet", "status": "absent",
            "reason": "no weights", "seeds": [], "also_in": ["Table 4"], "flags": {},
            "paper": None, "mean": None, "spread": None,
        },
    ]  # fmt: skip
    baseline = {
        "name": "mean_map", "mean": dict.fromkeys(METRICS, 2), "spread": None,
        "train_images": 500,
    }  # fmt: skip
    tables: dict[str, Any] = {
        "scale": "smoke", "command": "tables", "seeds": [0], "notes": ["a note"],
        "tables": [{
            "table": "1", "title": "networks", "measured_by": "plain, pooled",
            "rows": rows, "baselines": [baseline],
            "curve": [{"step": 240, "rmse": {"cnn": 1.75}}],
        }],
    }  # fmt: skip
    (tmp_path / "t" / "tables.json").write_text(json.dumps(tables))
    out = tmp_path / "r.html"
    argv = [str(tmp_path / "t"), f"--out={out}", "--pictures=0"]
    assert report.command(argv) == cli.OK
    text = text_of(out.read_text())
    assert "Table 1, networks (scale smoke): plain, pooled; rmse in metres" in text
    assert "a note" in text
    cells = "0.250 ± 0.010 0.195 0.250 ± 0.010 1.220 0.250 ± 0.010 - 480 - 0.001 1 of 1"
    assert f"CNN {cells}" in text
    assert "CNN+Res (= Table 4) [absent] - - - - - - - - - 0 of 0" in text
    assert "CNN+Res: absent, no weights" in text
    assert "mean_map 2.000 2.000 2.000 500" in text
    assert "rmse in metres over the steps step CNN 240 1.750" in text
    assert "CNN, table 1" in text  # the run itself
    del tables["tables"][0]["measured_by"]
    (tmp_path / "t" / "tables.json").write_text(json.dumps(tables))
    with pytest.raises(UserError, match=r"tables\.json is damaged"):
        report.command(argv)


def test_missing_files_are_stated(tmp_path):
    a = run_folder(tmp_path / "a", 1.25)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "results.json").write_text("{}")
    out = tmp_path / "r.html"
    assert report.command([a, str(bare), f"--out={out}"]) == cli.OK
    text = text_of(out.read_text())
    assert "No pictures:" in text and "No evaluation yet." in text
    assert "The command is unknown." in text and "has no config.json" in text


def test_foreign_files_and_wrong_flags_are_refused(tmp_path, fake):
    a = run_folder(tmp_path / "a", 1.25)
    out = tmp_path / "r.html"
    argv = [a, f"--out={out}", "--pictures=0"]
    assert report.command(argv) == report.command(argv) == cli.OK
    out.write_text("<!doctype html>a diary")
    for flags, words in (
        (argv, "was not written by this command"),
        ([a, f"--out={tmp_path / 'no' / 'r.html'}"], "there is no folder"),
        ([f"--out={out}"], "RUNS: missing"),
        ([str(tmp_path), f"--out={tmp_path / 'new.html'}"], "or of tables"),
        ([a, "--pictures=-1"], "at least 0"),
        ([a, "--metric=speed"], "one of delta1"),
    ):
        with pytest.raises(UserError, match=words):
            report.command(flags)
    assert out.read_text() == "<!doctype html>a diary"


@pytest.fixture(scope="module")
def browser():
    """Debian's Chromium, headless; skips tests if it is not installed."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        # Chromium has no sandbox for root, the user in containers.
        options = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        chromium = playwright.chromium.launch(executable_path=path, args=options)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, tmp_path, fake):
    """The page of two runs at the width of a phone; fails on console messages."""
    runs = [run_folder(tmp_path / name, 1.25, data=EVIL) for name in ("a", "b")]
    out = tmp_path / "r.html"
    assert report.command([*runs, f"--out={out}", "--pictures=3"]) == cli.OK
    opened = browser.new_page(viewport={"width": 360, "height": 740})
    opened.problems = []
    opened.on("console", lambda message: opened.problems.append(message.text))
    opened.on("pageerror", lambda error: opened.problems.append(str(error)))
    opened.on("request", lambda request: opened.problems.append(request.url[:80]))
    opened.goto(out.as_uri())
    for status in opened.locator("output").all():
        wait_for_text(status, "points")
    # Requests for the page itself and for its data URLs are allowed.
    opened.problems = [
        x for x in opened.problems if not x.startswith(("data:", "file:"))
    ]
    yield opened
    assert opened.problems == []
    opened.close()


def wait_for_text(output, text: str, *, yet: bool = True) -> None:
    """Wait until an element contains a text, or, with `yet=False`, until it does not.

    `page.wait_for_function` would need `eval`, which the page's policy forbids.
    """
    from playwright.sync_api import expect

    expected = expect(output)
    (expected.to_contain_text if yet else expected.not_to_contain_text)(text)


def picture_of(canvas) -> np.ndarray:
    """The pixels of the canvas, (h, w, 3)."""
    url = canvas.evaluate("c => c.toDataURL()")
    with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a == b).all())


@pytest.mark.slow
def test_page_fits_every_width(page):
    for width in (320, 360, 800, 1400):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))
    assert page.evaluate(
        "[...document.images].every(i => i.complete && i.naturalWidth > 0)"
    )


@pytest.mark.slow
def test_slider_moves_by_key_and_mouse_and_shows_layers(page):
    compare = page.locator(".compare").nth(1)
    cut = "e => getComputedStyle(e).getPropertyValue('--cut').trim()"
    slider = compare.locator("input")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert compare.evaluate(cut) == "51"
    page.keyboard.press("Home")
    assert compare.evaluate(cut) == "0"
    assert "0 % ground truth" in slider.get_attribute("aria-valuetext")
    assert compare.evaluate("e => getComputedStyle(e).outlineStyle") == "solid"
    box = compare.bounding_box()
    y = box["y"] + box["height"] / 3
    page.mouse.move(box["x"] + 0.2 * box["width"], y)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.75 * box["width"], y, steps=4)
    page.mouse.up()
    assert abs(int(compare.evaluate(cut)) - 75) <= 2
    figure = page.locator("figure.picture").nth(1)
    figure.get_by_label("image", exact=False).first.check()
    assert compare.locator(".tag.left").text_content() == "image"
    visible_layers = (
        "e => [...e.querySelectorAll('.over')].filter(i => !i.hidden).length"
    )
    assert compare.evaluate(visible_layers) == 1
    assert "image left of the border" in slider.get_attribute("aria-label")


@pytest.mark.slow
def test_cloud_rotates_by_key_and_mouse(page):
    box = page.locator(".cloud").first
    canvas, status = box.locator("canvas"), box.locator("output")
    first = picture_of(canvas)
    background = (first == (0x16, 0x18, 0x1C)).all(-1).mean()
    assert 0.2 < background < 0.95
    assert f"{ROWS * COLUMNS} points" in status.text_content()
    canvas.focus()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("+")
    wait_for_text(status, "120 %")
    assert "Rotated 15° sideways and 14° up" in status.text_content()
    assert not same(picture_of(canvas), first)
    page.keyboard.press("0")
    wait_for_text(status, "100 %")
    assert same(picture_of(canvas), first)
    canvas.scroll_into_view_if_needed()
    bounds = canvas.bounding_box()
    x, y = bounds["x"] + bounds["width"] / 2, bounds["y"] + bounds["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y, steps=3)
    page.mouse.up()
    wait_for_text(status, " 20°", yet=False)
    assert not same(picture_of(canvas), first)
    before = picture_of(canvas)
    box.locator("select.which").select_option("0")  # the worst one is 0.4 m farther
    box.get_by_role("button", name="Zoom in").click()
    wait_for_text(status, "120 %")
    assert not same(picture_of(canvas), before)


@pytest.mark.slow
def test_cloud_projects_points_with_the_pinhole_model(page):
    """In the frontal view, pixels are where the pinhole model projects them."""
    box = page.locator(".cloud").first
    canvas, status = box.locator("canvas"), box.locator("output")
    canvas.focus()
    for key, times in (("ArrowLeft", 4), ("ArrowDown", 2)):
        for _ in range(times):
            page.keyboard.press(key)
    wait_for_text(status, "Rotated 0°")
    pixels = picture_of(canvas)
    size = pixels.shape
    scale = 0.65 * size[1] / COLUMNS
    for row, column in ((5, 50), (24, 20), (40, 60)):
        y = round(size[0] / 2 + (row - 23.5) * scale)
        x = round(size[1] / 2 + (column - 31.5) * scale)
        np.testing.assert_allclose(pixels[y, x, :2], (4 * row, 4 * column), atol=14)


@pytest.mark.parametrize(("farthest", "unit"), [(65.5, 1000), (80.0, 256)])
def test_cloud_holds_far_depth_in_other_units(farthest, unit):
    target = np.linspace(1, farthest, ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    pred = np.where(target < 2, np.nan, 0.5 * target)
    rgb = np.zeros((ROWS, COLUMNS, 3), np.uint8)
    data = sections.cloud(Example("a", rgb, target, pred, None))
    assert data["unit"] == unit
    for name, metres in (("truth", target), ("prediction", np.nan_to_num(pred))):
        codes = np.frombuffer(base64.b64decode(data[name]), "<u2")
        assert np.abs(codes / data["unit"] - metres.ravel()).max() <= 0.501 / unit


def test_a_run_without_any_finite_loss_has_a_section(tmp_path, fake):
    runs = [run_folder(tmp_path / "a", 1.25), run_folder(tmp_path / "b", 1.0)]
    (tmp_path / "b" / "metrics.jsonl").write_text('{"step": 1, "loss": null}\n')
    out = tmp_path / "r.html"
    assert report.command([*runs, f"--out={out}", "--pictures=0"]) == cli.OK


def test_a_metric_undefined_for_every_image(tmp_path, fake, monkeypatch):
    images = [{"name": "a"} | dict.fromkeys(METRICS)]
    monkeypatch.setattr(Fake, "score", lambda _: ImageScores(entry(20, 1.0), images))
    a, out = run_folder(tmp_path / "a", 1.25), tmp_path / "r.html"
    assert report.command([a, f"--out={out}"]) == cli.OK
    assert "No pictures: rmse is undefined for every image" in out.read_text()
