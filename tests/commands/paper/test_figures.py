"""Figures of runs: drawn values, selection of runs, refusals."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from jaxdepth.commands import cli
from jaxdepth.commands.finished_runs import TrainedRun
from jaxdepth.commands.paper import figure_drawing, figures
from jaxdepth.commands.paper import figures as library
from jaxdepth.runtime.errors import UserError

SAME = {"averaging": "pooled", "truth": "raw", "data": "rooms", "split": "own"}


def run_folder(folder, rmse, *, protocol="plain", losses=(None, None), **flags):
    """A work directory with two evaluations."""
    folder.mkdir(parents=True)
    same = {"protocol": protocol, "size": "48x64", **SAME}
    names = ("delta1", "delta2", "delta3", "abs_rel", "log10")
    entries = [
        {"step": step, **same, "loss": loss}
        | {"metrics": {"rmse": value} | dict.fromkeys(names, 0.5)}
        for step, value, loss in zip((10, 20), rmse, losses, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps({"evaluations": entries}))
    if flags:
        (folder / "config.json").write_text(json.dumps({"config": flags}))
    lines = [json.dumps({"step": k, "loss": 1 / (k + 1)}) for k in range(20)]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    return str(folder)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, by file name."""
    saved = {}
    save = library.plots.save

    def record(figure, path):
        saved[path.name] = figure
        save(figure, path)

    monkeypatch.setattr(library.plots, "save", record)
    return saved


class Fake(TrainedRun):
    """A trained run on frames in memory, with a grid after zero unpooling."""

    def __init__(self, run, **_):
        if run.flag("arch") == "cnn_trans":
            raise UserError("no checkpoint yet")
        rng = np.random.default_rng(0)
        rows, columns = np.mgrid[:48, :64]
        self.depths = [2 + rows / s + columns / 40 for s in (20.0, 30.0, 40.0)]
        self.rgb = [rng.integers(0, 256, (48, 64, 3), np.uint8) for _ in self.depths]
        self.grid = 0.1 * (run.flag("unpool") == "zero") * (rows % 2 == 0)
        self.predictor = SimpleNamespace(predict=self.output)

    def __len__(self):
        return len(self.depths)

    def frames(self, indices):
        return [
            {"rgb": self.rgb[k], "name": f"room {k}", "depth": self.depths[k]}
            for k in indices
        ]

    def target(self, frame):
        return frame["depth"].astype(np.float32)

    def output(self, rgb):
        index = next(
            k for k, known in enumerate(self.rgb) if np.array_equal(known, rgb)
        )
        return (self.depths[index] + 0.25 + self.grid).astype(np.float32)


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(library, "TrainedRun", Fake)


def test_figure_5_compares_two_runs(tmp_path, capsys, drawn):
    runs = [
        run_folder(tmp_path / "a", (1.5, 1.25)),
        run_folder(tmp_path / "b", (1.0, None)),
    ]
    out = tmp_path / "figures"
    assert figures.command([*runs, f"--out={out}"]) == cli.OK
    printed = capsys.readouterr().out
    assert "plain, pooled, raw truth, rooms, split own, trained at 48x64" in printed
    assert "1.500" in printed and "1.250" in printed and "1.000" in printed
    with Image.open(out / "figure5.png") as picture:
        assert picture.width > 2 * picture.height > 400
    assert "<svg" in (out / "figure5.svg").read_text()
    rmse = drawn["figure5.png"].axes[1]
    first, second = (line.get_xydata().tolist() for line in rmse.lines)
    assert first == [[10, 1.5], [20, 1.25]]
    np.testing.assert_array_equal(second, [[10, 1.0], [20, np.nan]])


def test_wrong_runs_and_flags_are_refused(tmp_path):
    a = run_folder(tmp_path / "a", (1.5, 1.25))
    b = run_folder(tmp_path / "b", (1.0, 0.9), protocol="laina")
    for argv, words in (
        ([a, b], "scored differently"),
        ([], "give the work directories"),
        ([str(tmp_path / "none")], "not the work directory"),
        ([a, "--figure=4"], "two runs of upproj"),
        ([a], "compares at least two runs"),
        (["--figure=1", "--size=10x20"], "too small for cnn_fc"),
        (["--size=big"], "HEIGHTxWIDTH"),
    ):
        with pytest.raises(UserError, match=words):
            figures.command([*argv, f"--out={tmp_path / 'o'}"])
    assert not (tmp_path / "o").exists()


def test_figure_2_shows_losses_and_predictions(tmp_path, fake, drawn, capsys):
    folder = run_folder(
        tmp_path / "a", (1.5, 1.25), losses=(0.75, 0.625), arch="cnn_fc", loss="si"
    )
    out = tmp_path / "o"
    assert figures.command([folder, "--figure=2", "--rows=2", f"--out={out}"]) == cli.OK
    assert "0.625" in capsys.readouterr().out
    axes = drawn["figure2.png"].axes
    losses = next(a for a in axes if a.get_ylabel() == "loss (si)")
    by_label = {line.get_label(): line.get_xydata().tolist() for line in losses.lines}
    assert by_label["validation"] == [[10, 0.75], [20, 0.625]]
    assert by_label["as logged"][4] == [4, 0.2]
    captions = [axis.get_xlabel() for axis in axes if "rmse" in axis.get_xlabel()]
    assert captions == ["rmse 0.25 m, delta1 1.00"] * 2
    assert {"image", "ground truth"} <= {axis.get_title() for axis in axes}


def test_a_run_without_checkpoint_has_curves_only(tmp_path, fake, drawn, caplog):
    a = run_folder(tmp_path / "a", (1.5, 1.25), arch="cnn_trans", loss="si")
    library.logger.propagate = True
    assert figures.command([a, "--figure=3", f"--out={tmp_path / 'o'}"]) == cli.OK
    assert "no validation loss" in drawn["figure3.png"].axes[0].get_title()
    assert len(drawn["figure3.png"].axes) == 1


def test_figure_4_shows_the_grid_of_zero_unpooling(tmp_path, fake, drawn, capsys):
    runs = [
        run_folder(tmp_path / u, (1.5, 1.25), arch="upproj", unpool=u)
        for u in ("zero", "average")
    ]
    out = tmp_path / "o"
    argv = [*runs, "--figure=4", "--rows=1", f"--out={out}"]
    assert figures.command(argv) == cli.OK
    table = capsys.readouterr().out.splitlines()
    numbers = {
        name: [float(x) for x in line.split()[1:]]
        for name in runs
        for line in table
        if line.startswith(name)
    }
    zero, average = (numbers[name] for name in runs)
    assert zero[1] > 100 * average[1] and zero[0] > 10 * average[0]
    labels = [axis.get_xlabel() for axis in drawn["figure4.svg"].axes]
    assert any("period 2 (red): " in x and "period 4" in x for x in labels)


def test_maps_that_are_too_small_for_a_spectrum_are_refused(
    tmp_path, fake, monkeypatch
):
    small = np.ones((16, 21), np.float32)
    monkeypatch.setattr(Fake, "output", lambda *_: small)
    runs = [
        run_folder(tmp_path / u, (1.5, 1.25), arch="upproj", unpool=u)
        for u in ("zero", "average")
    ]
    with pytest.raises(UserError, match="put out 16 pixels across"):
        figures.command([*runs, "--figure=4", f"--out={tmp_path / 'o'}"])


def test_figures_select_their_runs_from_tables(tmp_path, fake, drawn, capsys):
    rows = {
        "table 1": [("cnn_fc", {}), ("cnn", {"loss": "mse"}), ("cnn", {})],
        "table 3": [("upproj", {"unpool": "zero"}), ("upproj", {"unpool": "average"})],
        "table 4": [("upproj", {"init": "imagenet"})],
    }
    tables = []
    for title, runs in rows.items():
        found = []
        for k, (arch, flags) in enumerate(runs):
            name = f"{title[-1]}-{k}"
            flags = {"loss": "si", "unpool": "zero", "init": "random", **flags}
            run_folder(tmp_path / "t" / name, (1.5, 1.0 + k), arch=arch, **flags)
            seed = {"seed": 0, "workdir": name, "evaluation": {"step": 20}}
            waiting = {"seed": 1, "workdir": "none", "evaluation": None}
            found.append({"label": f"{arch} {k}", "seeds": [waiting, seed]})
        tables.append({"table": title[-1], "rows": found})
    run_folder(tmp_path / "t" / "trans", (1, 2), arch="cnn_trans", loss="si")
    (tmp_path / "t" / "tables.json").write_text(json.dumps({"tables": tables}))
    out = tmp_path / "o"
    argv = [str(tmp_path / "t"), "--figure=all", "--size=48x64", f"--out={out}"]
    assert figures.command(argv) == cli.OK
    assert {p.name for p in out.iterdir()} == {
        f"figure{n}.{form}" for n in (1, 2, 3, 4, 5) for form in ("png", "svg")
    }
    titles = [axis.get_title() for axis in drawn["figure3.png"].axes]
    assert "cnn 1, table 1" in titles and "cnn 2, table 1" not in titles
    assert "upproj 1, table 3" in " ".join(
        axis.get_title() for axis in drawn["figure4.png"].axes
    )


def test_all_figures_skips_those_without_runs(tmp_path, capsys):
    argv = ["--figure=all", "--size=48x64", f"--out={tmp_path / 'o'}"]
    assert figures.command(argv) == cli.OK
    names = {p.name for p in (tmp_path / "o").iterdir()}
    assert names == {"figure1.png", "figure1.svg"}


def test_only_figures_of_this_command_are_replaced(tmp_path):
    argv = ["--figure=1", "--size=48x64", f"--out={tmp_path}"]
    assert figures.command(argv) == figures.command(argv) == cli.OK
    Image.new("RGB", (4, 4)).save(tmp_path / "figure1.png")
    before = (tmp_path / "figure1.png").read_bytes()
    with pytest.raises(UserError, match=r"figure1\.png exists and was not written"):
        figures.command(argv)
    assert (tmp_path / "figure1.png").read_bytes() == before


def test_most_detailed_part_contains_the_edge():
    depth = np.full((60, 90), 2.0)
    depth[40:44, 70:74] = 4.0
    top, bottom, left, right = figure_drawing._most_detailed(depth)
    assert top <= 40 < 44 <= bottom and left <= 70 < 74 <= right
