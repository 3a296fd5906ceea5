"""Parsing of flags, refused flags, and exit codes."""

import os
import signal
import subprocess
import sys

import pytest

from jaxdepth.commands import cli
from jaxdepth.commands.predict import PredictConfig
from jaxdepth.config import Config
from jaxdepth.recipes import RECIPES
from jaxdepth.runtime import flags as flags_lib
from jaxdepth.runtime.errors import MachineError, UserError
from jaxdepth.weights import packed


def read(*argv: str, **options) -> Config:
    return cli.parse_config(argv, prog="run", **options)


def test_flags_are_read():
    config = read("--arch=cnn", "--lr=0.01", "--steps=5", "--size", "48x64")
    assert (config.model.arch, config.optimizer.lr, config.train.steps) == (
        "cnn",
        0.01,
        5,
    )
    assert config.model.size == "48x64"
    # Dashes in flags are read as underscores.
    assert read("--batch-size=4").train.batch_size == 4


def test_flags_override_the_recipe():
    config = read("--recipe=table1_cnn", "--lr=0.5")
    assert (
        config.optimizer.lr == 0.5
        and config.model.arch == "cnn"
        and config.train.epochs == 20
    )
    assert config.output.recipe == "table1_cnn"
    config = read("--recipe=table1_cnn", "--steps=3")
    assert config.train.steps == 3 and config.train.epochs is None
    assert read("--recipe=fcrn_large_batch", "--weights=x").optimizer.warmup_epochs == 2
    config = read("--recipe=fcrn_large_batch", "--weights=x", "--warmup_steps=7")
    assert config.optimizer.warmup_steps == 7 and config.optimizer.warmup_epochs is None


def test_the_default_recipe_depends_on_the_data():
    names = []

    def choose(data: str) -> str:
        names.append(data)
        return "demo" if data == "rooms" else "default"

    assert read(default_recipe=choose).train.steps == RECIPES["demo"].flags["steps"]
    assert read("--data=x", default_recipe=choose).output.recipe == "default"
    assert names == ["rooms", "x"]


@pytest.mark.parametrize(
    ("flags", "kept"),
    [([], False), (["--size=48x64"], False), (["--keep_optimizer"], True),
     (["--steps=9"], True), (["--epochs=9"], True),
     (["--steps=9", "--keep_optimizer=false"], False)],
)  # fmt: skip
def test_the_demo_keeps_its_optimizer_state_only_at_another_length(flags, kept):
    assert read("--recipe=demo", *flags).output.keep_optimizer == kept


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--archs=cnn", r"unknown flag --archs; did you mean --arch\?"),
        ("--quux", "unknown flag --quux"),
        ("--arch=upprjo", r"did you mean upproj\?"),
        ("--lr=fast", "--lr=fast: expected a number"),
        ("--seed=1.5", "--seed=1.5: expected a whole number"),
        ("--steps=few", "--steps=few: expected a whole number or auto"),
        ("--clip_norm=x", "a number or none"),
        ("--lr=-1", "--lr=-1.0: must be above 0"),
        ("--recipe=tabel1_cnn", r"did you mean table1_cnn\?"),
        ("stray", "stray"),
        ("--arch", "--arch"),
    ],
)
def test_wrong_flags_are_reported_in_one_line(flag, words):
    with pytest.raises(UserError, match=words) as caught:
        read(flag)
    assert "\n" not in str(caught.value)


def test_help_lists_flags(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--help")
    assert not stop.value.code
    stdout = capsys.readouterr().out
    assert "--arch" in stdout and "--on_nan" in stdout and "ResNet-50" in stdout


def test_recipe_help_lists_all_recipes(capsys):
    with pytest.raises(SystemExit) as stop:
        read("--recipe=help")
    assert stop.value.code == cli.OK
    stdout = capsys.readouterr().out
    assert all(f"--recipe={name}" in stdout for name in RECIPES)
    assert (
        "--recipe=table4_nyu --data=nyu_depth_v2_labeled.mat --weights=FILE" in stdout
    )


def test_photos_are_positional_arguments():
    config = flags_lib.parse(
        PredictConfig, ["--checkpoint=run", "a.jpg", "b"], prog="p"
    )
    assert tuple(config.images) == ("a.jpg", "b")
    default = flags_lib.parse(PredictConfig, ["a.jpg"], prog="p")
    assert default.checkpoint == packed.DEFAULT


@pytest.mark.parametrize(
    ("raised", "code", "line"),
    [
        (UserError("two\nlines"), cli.USER, "error: two lines"),
        (UserError("\x1b[2Ja\udce9"), cli.USER, r"error: \x1b[2Ja\udce9"),
        (MachineError("disk"), cli.MACHINE, "stopped: disk"),
        (KeyboardInterrupt(), cli.INTERRUPTED, "interrupted"),
        (
            PermissionError(13, "Permission denied", "a"),
            2,
            "error: a: Permission denied",
        ),
        (OSError(36, "File name too long", b"aa"), 2, "error: aa: File name too long"),
    ],
)
def test_exit_codes(raised, code, line, capsys, monkeypatch):
    def command(argv):
        raise raised

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit) as stop:
        cli.main(command)
    assert stop.value.code == code
    assert capsys.readouterr().err == line + "\n"


@pytest.mark.parametrize("raised", [OSError(5, "I/O error", "a"), ValueError("x")])
def test_other_errors_have_a_traceback(raised, monkeypatch):
    def command(argv):
        raise raised

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(type(raised)):
        cli.main(command)


def test_the_exit_code_of_a_command_is_returned(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["x", "--flag"])
    for returned, code in ((None, 0), (75, 75)):
        with pytest.raises(SystemExit) as stop:
            cli.main(lambda argv, r=returned: r if argv == ["--flag"] else 1)
        assert stop.value.code == code


def test_a_closed_pipe_gives_no_traceback():
    code = "from jaxdepth.commands import cli; cli.main(lambda a: print('x' * 10**6))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        os.read(process.stdout.fileno(), 10)
        process.stdout.close()
        stderr = process.stderr.read().decode()
    assert "Traceback" not in stderr
    assert process.returncode == 128 + signal.SIGPIPE


def test_errors_of_discarded_futures_are_not_printed():
    code = (
        "import asyncio, gc\n"
        "from jaxdepth.commands import cli\n"
        "from jaxdepth.runtime import errors\n"
        "def command(argv):\n"
        "    future = asyncio.new_event_loop().create_future()\n"
        "    future.set_exception(OSError('full'))\n"
        "    del future; gc.collect()\n"
        "    raise errors.MachineError('storage is full')\n"
        "cli.main(command)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (1, "stopped: storage is full\n")
