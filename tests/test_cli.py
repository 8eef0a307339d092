"""The command line: what a run prints and leaves, how it is resumed, and what it says about mistakes."""

from __future__ import annotations

import csv
import errno
import html.parser
import io
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from typer.testing import CliRunner

import koinon as ko
from koinon.cli import _main, _run, main
from koinon.cli._app import app
from koinon.cli._load import load_task
from koinon.cli._privacy import spent_epsilon, spent_rows
from koinon.cli._progress import RunProgress
from koinon.cli._text import wrap_types
from koinon.learning.programs import RoundReport

ROOT = pathlib.Path(__file__).parents[1]
ROUNDS = 12
draws = pytest.mark.usefixtures("drawing")

# What is made once and kept, so that several runs in one process compile once; the file of the task imports it.
PARTS_FILE = """
import functools
import jax.numpy as jnp, numpy as np, koinon as ko

build_process = functools.cache(ko.simulation.tasks.fed_avg)

@functools.cache
def make_task(seed):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3)).astype(np.float32)
    y = (x @ np.float32([1, -2, 0.5]) > 0).astype(np.int32)
    data = ko.simulation.ClientData.from_arrays({"x": x, "y": y}, np.arange(60) % 8)
    train, test_clients = data.train_test_client_split(3, seed=0)
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights,
        0.1 * jnp.asarray(np.random.default_rng(seed).normal(size=(3, 2)), jnp.float32),
        example_spec={"x": (jnp.float32, (3,)), "y": jnp.int32},
        loss=ko.learning.losses.cross_entropy,
        metrics={"accuracy": ko.learning.metrics.accuracy()},
    )
    return ko.simulation.Task(
        name="signs", model=model, train=train, test={"x": x[:20], "y": y[:20]}, test_clients=test_clients,
        build_process=build_process, hyperparameters={"client_learning_rate": 0.1, "batch_size": 4},
        rounds=12, clients_per_round=2, description="which side of a plane",
    )
"""
TASK_FILE = "from parts_of_signs import make_task as task\n"


@pytest.fixture(scope="module")
def task_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A file that defines a small task."""
    path = tmp_path_factory.mktemp("task") / "signs.py"
    path.write_text(TASK_FILE, encoding="utf-8")
    path.with_name("parts_of_signs.py").write_text(PARTS_FILE, encoding="utf-8")
    return str(path)


def call(*arguments: Any) -> Any:
    """What a command prints, and its status; what it raises, other than an exit, is raised."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def start(*arguments: Any, cwd: pathlib.Path) -> subprocess.Popen[str]:
    """A command in a process of its own, in which Ctrl-C is not ignored however the tests were started."""
    code = "import signal, koinon.cli; signal.signal(signal.SIGINT, signal.default_int_handler); koinon.cli.main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_rounds(process: subprocess.Popen[str], out: pathlib.Path, rounds: int) -> None:
    """Waits until a run has released so many rounds, or has ended."""
    path = out / "metrics.csv"
    while process.poll() is None and not (path.exists() and len(path.read_bytes().splitlines()) > rounds):
        time.sleep(0.002)


@pytest.fixture
def drawing() -> None:
    """For tests that look at report or curves."""


@pytest.fixture(autouse=True)
def quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Leaves out report and curves, which take longer than these runs, where a test does not look at them."""
    if "drawing" not in request.fixturenames:
        monkeypatch.setattr(_run, "write_report", lambda *arguments: None)
        monkeypatch.setattr(_run, "draw_curves", lambda *arguments: None)


@pytest.fixture(scope="module")
def finished(task_file: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run: its folder and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "signs"
    return out, call("run", task_file, "--out", out)


def assert_same_run(one: pathlib.Path, other: pathlib.Path, rounds: int = ROUNDS) -> None:
    """Metrics, model and the last checkpoint are the same, byte for byte."""
    for name in ("metrics.csv", "model", f"checkpoints/round_{rounds}"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name


def test_a_run_prints_its_type_its_progress_and_where_it_is(finished: Any) -> None:
    """First the type of the learning process, then rounds, at last the accuracy and the folder."""
    out, result = finished
    lines = result.output.splitlines()
    with open(out / "metrics.csv", encoding="utf-8") as file:
        final = float(list(csv.DictReader(file))[-1]["test/accuracy"])

    assert result.exit_code == 0
    assert "12 rounds of 2 of 5 clients, seed 0, backend local" in lines
    assert any("client_data={<x=float32[3],y=int32>*}@CLIENTS" in line and "@SERVER>" in line for line in lines)
    assert sum(line.startswith("round ") for line in lines) == ROUNDS
    assert all("loss" in line and "accuracy" in line for line in lines if line.startswith("round "))
    assert any("rounds/s" in line and "left" in line for line in lines)
    assert lines[-1] == f"final test accuracy {final:.3f}  (run folder: {out})"


def test_a_run_leaves_a_folder_that_explains_itself(finished: Any) -> None:
    """Configuration, metrics, timing, curves, report, model and checkpoints; nothing else."""
    out, _ = finished
    config = tomllib.loads((out / "config.toml").read_text())
    with open(out / "metrics.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    assert {path.name for path in out.iterdir()} == {
        "checkpoints", "config.toml", "curves.png", "metrics.csv", "model", "report.html", "timing.csv",
    }  # fmt: skip
    assert (config["seed"], config["rounds"], config["clients_per_round"]) == (0, 12, 2)
    assert config["hyperparameters"] == {"client_learning_rate": 0.1, "batch_size": 4}
    assert [row["round"] for row in rows] == [str(number) for number in range(1, ROUNDS + 1)]
    columns = list(rows[0])
    assert columns[:3] == ["round", "train/loss", "train/accuracy"]
    quantiles = [f"clients/accuracy_p{q}" for q in (0, 10, 25, 50, 75, 90, 100)]
    assert columns[columns.index("test/loss") :][:10] == [
        "test/loss", "test/accuracy", "clients/accuracy_mean", *quantiles,
    ]  # fmt: skip
    assert (out / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in sorted((out / "checkpoints").iterdir())] == ["round_0", "round_11", "round_12"]
    kernel = ko.program.load_pytree(out / "model")["trainable"]
    assert kernel.shape == (3, 2)


def test_the_report_is_one_well_formed_page(finished: Any) -> None:
    """It has the plot in it, the type of the process, the plan, what reaches the server and what a round costs."""
    out, _ = finished
    text = (out / "report.html").read_text()

    class Checker(html.parser.HTMLParser):
        def __init__(self) -> None:
            super().__init__()
            self.open: list[str] = []
            self.seen: set[str] = set()

        def handle_starttag(self, tag: str, attrs: Any) -> None:
            self.seen.add(tag)
            if tag not in ("meta", "img"):
                self.open.append(tag)
            assert not any(name in ("href", "src") and not value.startswith("data:") for name, value in attrs)

        def handle_endtag(self, tag: str) -> None:
            assert self.open.pop() == tag

    checker = Checker()
    checker.feed(text)
    assert checker.open == []
    # The curves, and the labels of the clients to train with and to test with.
    assert text.count("data:image/png;base64,") == 3
    assert {"img", "table", "pre", "details"} <= checker.seen
    for part in (
        "data:image/png;base64,",
        "LearningProcess",
        "phase 0",
        "federated",
        "cost of",
        "plain",
        "unprotected",
    ):
        assert part in text.replace("not protected", "unprotected").replace("which side", "federated"), part


def test_the_same_seed_gives_the_same_metrics(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """Bit for bit; another seed gives others."""
    out, _ = finished
    call("run", task_file, "--out", tmp_path / "same")
    call("run", task_file, "--out", tmp_path / "other", "--seed", 1)

    assert_same_run(out, tmp_path / "same")
    assert (out / "metrics.csv").read_bytes() != (tmp_path / "other" / "metrics.csv").read_bytes()


def test_a_run_can_be_extended(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """A run of fewer rounds, resumed with more, is the run of all rounds."""
    out, _ = finished
    call("run", task_file, "--out", tmp_path / "a", "--rounds", 5)
    result = call("run", task_file, "--out", tmp_path / "a", "--resume", "--rounds", ROUNDS)

    assert "resuming after round 5" in result.output
    assert_same_run(out, tmp_path / "a")
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["rounds"] == ROUNDS
    again = call("run", task_file, "--out", tmp_path / "a", "--resume")
    assert (again.exit_code, again.output.splitlines()[-2]) == (0, "all 12 rounds were done")


def test_another_version_is_mentioned(task_file: str, tmp_path: pathlib.Path) -> None:
    """A run may be resumed with another JAX, whose bits need not be the same; so this is said."""
    out = tmp_path / "a"
    call("run", task_file, "--out", out, "--rounds", 1)
    config = out / "config.toml"
    config.write_text(re.sub('jax = ".*"', 'jax = "0.9.9"', config.read_text()), encoding="utf-8")
    result = call("run", task_file, "--out", out, "--resume", "--rounds", 2)

    assert result.exit_code == 0
    assert "Note: the run was started with jax 0.9.9; what follows may differ" in result.output


def test_a_configuration_runs_again(finished: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`koinon run config.toml` is the same run, with what the command line replaces."""
    out, _ = finished
    monkeypatch.chdir(tmp_path)
    result = call("run", out / "config.toml", "--rounds", 3, "--set", "client_learning_rate=0")

    assert result.output.splitlines()[-1].endswith("(run folder: runs/signs-1)")
    config = tomllib.loads((tmp_path / "runs" / "signs-1" / "config.toml").read_text())
    assert config["hyperparameters"] == {"client_learning_rate": 0.0, "batch_size": 4}
    assert (config["rounds"], config["seed"]) == (3, 0)


def test_paths_in_a_configuration_begin_at_its_folder(
    finished: Any, task_file: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run of a file that has a relative path is run again, and resumed, from anywhere, when both were moved too."""
    out, _ = finished
    source = tmp_path / "work" / "tasks"
    shutil.copytree(pathlib.Path(task_file).parent, source, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(tmp_path / "work")
    call("run", "tasks/signs.py", "--out", "runs/a", "--rounds", 3)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "work").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path / "moved" / "runs")
    assert call("run", "a/config.toml", "--out", "../b", "--rounds", ROUNDS).exit_code == 0
    assert call("run", "../tasks/signs.py", "--out", "a", "--resume", "--rounds", ROUNDS).exit_code == 0

    assert tomllib.loads(pathlib.Path("a/config.toml").read_text())["task"] == "../../tasks/signs.py"
    assert tomllib.loads(pathlib.Path("../b/config.toml").read_text())["task"] == "../tasks/signs.py"
    assert_same_run(out, tmp_path / "moved" / "runs" / "a")
    assert_same_run(out, tmp_path / "moved" / "b")


def test_a_task_may_choose_the_clients_of_a_round(task_file: str, tmp_path: pathlib.Path) -> None:
    """`build_sampler` gets the clients, how many a round has, and the seed; its cohorts may have any size."""
    path = pathlib.Path(task_file).with_name("choosy.py")
    path.write_text(
        """
import dataclasses
from parts_of_signs import make_task

def build_sampler(client_ids, clients_per_round, seed):
    assert (clients_per_round, seed) == (2, 5)
    return lambda number: client_ids[: number + 1]

task = lambda seed: dataclasses.replace(make_task(seed), build_sampler=build_sampler)
""",
        encoding="utf-8",
    )
    call("run", path, "--out", tmp_path / "a", "--rounds", 3, "--seed", 5)
    train = load_task(str(path), 5).train
    sizes = [train.num_examples(client_id) for client_id in train.client_ids]
    with open(tmp_path / "a" / "metrics.csv", encoding="utf-8") as file:
        found = [int(row["train/num_examples"]) for row in csv.DictReader(file)]

    assert found == [sum(sizes[: number + 1]) for number in (1, 2, 3)]


def test_the_reference_gives_nearly_the_same(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """`--backend reference` runs the rounds by the semantics; floats are summed in another order."""
    out, _ = finished
    call("run", task_file, "--out", tmp_path / "r", "--rounds", 2, "--backend", "reference")
    losses = []
    for path in (out, tmp_path / "r"):
        with open(path / "metrics.csv", encoding="utf-8") as file:
            losses.append([float(row["train/loss"]) for row in csv.DictReader(file)][:2])

    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_a_killed_run_resumes_to_the_same_bits(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """`kill -9` loses at most the rounds since the last checkpoint, which are run again."""
    out, _ = finished
    killed = tmp_path / "killed"
    process = start("run", task_file, "--out", killed, "--save-every", 3, cwd=tmp_path)
    wait_for_rounds(process, killed, 5)
    process.kill()
    process.communicate()
    result = call("run", task_file, "--out", killed, "--resume")

    assert result.exit_code == 0
    assert_same_run(out, killed)


def test_ctrl_c_saves_and_says_how_to_continue(task_file: str, tmp_path: pathlib.Path) -> None:
    """The status is 130, there is no traceback, and the command that it prints continues the run."""
    rounds = 5000
    process = start("run", task_file, "--out", "stopped", "--rounds", rounds, "--save-every", rounds, cwd=tmp_path)
    wait_for_rounds(process, tmp_path / "stopped", 4)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    lines = output.splitlines()
    done = len((tmp_path / "stopped" / "metrics.csv").read_text().splitlines()) - 1

    assert process.returncode == 130
    assert lines[-2:] == [
        f"Stopped after round {done} of {rounds}; all is saved.",
        f"To continue:  koinon run {task_file} --out stopped --resume",
    ]
    assert lines[-1].endswith((tmp_path / "stopped" / "config.toml").read_text().splitlines()[1].split(":  ")[1])
    assert "Traceback" not in output
    assert f"round_{done}" in os.listdir(tmp_path / "stopped" / "checkpoints")


def test_a_damaged_checkpoint_is_passed_over(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """The newest whole one is taken, which is said; without any, nothing is lost or started again."""
    out, _ = finished
    call("run", task_file, "--out", tmp_path / "a", "--rounds", 6, "--save-every", 2)
    newest = tmp_path / "a" / "checkpoints" / "round_6"
    newest.write_bytes(newest.read_bytes()[:-7])
    result = call("run", task_file, "--out", tmp_path / "a", "--resume", "--rounds", ROUNDS)

    assert "Note: Loaded program state 4" in result.output
    assert "resuming after round 4" in result.output
    assert_same_run(out, tmp_path / "a")

    metrics = (tmp_path / "a" / "metrics.csv").read_bytes()
    for path in (tmp_path / "a" / "checkpoints").iterdir():
        path.write_bytes(b"")
    result = call("run", task_file, "--out", tmp_path / "a", "--resume")
    assert result.exit_code == 1
    assert "every one is damaged" in result.output
    assert "Traceback" not in result.output
    assert (tmp_path / "a" / "metrics.csv").read_bytes() == metrics


def test_a_run_that_never_began_can_be_resumed(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """Killed before its first checkpoint, a run has nothing but its configuration, and starts with round 1."""
    out, _ = finished
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.toml").write_bytes((out / "config.toml").read_bytes())
    call("run", task_file, "--out", tmp_path / "a", "--resume")

    assert_same_run(out, tmp_path / "a")


def remove_checkpoints(out: pathlib.Path) -> None:
    """Leaves a run without its checkpoints."""
    for path in (out / "checkpoints").iterdir():
        path.unlink()


MISTAKES: list[tuple[str, list[str], str]] = [
    ("an unknown task", ["run", "digit"], "Error: There is no task 'digit'; did you mean 'digits'?"),
    ("no task like it", ["run", "qqq"], "Error: There is no task 'qqq'; there is digits, cifar10"),
    ("what a task may be", ["run", "qqq"], "or a path of a .py file, or of a .toml file with a configuration."),
    ("no file", ["run", "nothing.py"], "Error: There is no file 'nothing.py' to take a task from."),
    ("a file without a task", ["run", "empty.py"], "Error: The file 'empty.py' does not define `task`"),
    ("a task of a wrong kind", ["run", "number.py"], "Error: The file 'number.py' defines `task` as 3;"),
    ("a task that takes no seed", ["run", "unseeded.py"], "'unseeded.py' must take a seed, and a `folder` with --data"),
    ("a task without its folder", ["run", "needy.py"], "--data only: missing a required argument: 'folder'."),
    (
        "a task that returns nothing",
        ["run", "nothing_made.py"],
        "returns None; it must return a koinon.simulation.Task",
    ),
    ("an error in the task", ["run", "failing.py"], 'failing.py", line 2, in task'),
    ("a large seed", ["run", "TASK", "--seed", "9999999999"], "Error: --seed must be at most 2147483647, and is 9999"),
    ("resuming to fewer rounds", ["run", "TASK", "--out", "LONGER", "--resume", "--rounds", "1"], "has done 12 rounds"),
    ("a run as a task", ["run", "RUN"], "it is the folder of a run: `koinon run"),
    ("a configuration that is not there", ["show", "nothing.toml"], "Error: The configuration 'nothing.toml' cannot"),
    ("a plot of no kind", ["compare", "RUN", "--out", "plot.xyz"], "Error: The plot 'plot.xyz' cannot be written"),
    ("an error in the file", ["run", "broken.py"], 'broken.py", line 2'),
    ("no rounds", ["run", "TASK", "--rounds", "0"], "Error: --rounds must be at least 1, and is 0."),
    ("negative rounds", ["run", "TASK", "--rounds", "-3"], "Error: --rounds must be at least 1, and is -3."),
    ("no number", ["run", "TASK", "--rounds", "many"], "'--rounds'"),
    ("a negative seed", ["run", "TASK", "--seed", "-1"], "Error: --seed must be at least 0, and is -1."),
    ("too many clients", ["run", "TASK", "--clients-per-round", "9"], "the task 'signs' has 5 clients"),
    ("no clients", ["run", "TASK", "--clients-per-round", "0"], "Error: --clients-per-round must be at least 1"),
    ("an unknown backend", ["run", "TASK", "--backend", "gpu"], "Error: There is no backend 'gpu'; choose one of"),
    ("an unknown setting", ["run", "TASK", "--set", "lr=1"], "has no hyperparameter 'lr'; there is client_learning"),
    ("a setting of a wrong kind", ["run", "TASK", "--set", "batch_size=x"], "'batch_size' is of kind int (4 by"),
    ("half a setting", ["run", "TASK", "--set", "batch_size"], "Error: A hyperparameter is set as NAME=VALUE"),
    ("a list as a setting", ["run", "TASK", "--set", "batch_size=[1]"], "must be a number, true, false or a string"),
    ("a folder of no use", ["run", "TASK", "--data", "."], "takes no folder of data"),
    ("a folder of data that is not there", ["run", "emnist", "--data", "no"], "Error: There is no folder 'no' to take"),
    ("a file as a folder", ["run", "TASK", "--out", "empty.py"], "Error: 'empty.py' is a file; a run needs a folder."),
    ("a folder in a file", ["run", "TASK", "--out", "empty.py/a"], "Error: The run folder 'empty.py/a' cannot be made"),
    ("a folder with a run", ["run", "TASK", "--out", "RUN"], "continue it with --resume, or choose another folder."),
    ("files of another run", ["run", "TASK", "--out", "old"], "has a 'metrics.csv', which a run would write"),
    ("resuming nothing", ["run", "TASK", "--out", "none", "--resume"], "There is no run in 'none' to resume"),
    ("resuming nowhere", ["run", "TASK", "--resume"], "Error: To resume a run, name its folder with --out."),
    ("resuming without checkpoints", ["run", "TASK", "--out", "BARE", "--resume"], "no checkpoint to resume from"),
    ("resuming with another seed", ["run", "TASK", "--out", "RUN", "--resume", "--seed", "4"], "with seed = 0 and can"),
    (
        "resuming with other settings",
        ["run", "TASK", "--out", "RUN", "--resume", "--set", "batch_size=5"],
        "was started with batch_size = 4 and can only be resumed with that, not with 5.",
    ),
    ("resuming another task", ["run", "digits", "--out", "RUN", "--resume"], "not 'digits'."),
    ("a configuration that is none", ["run", "bad.toml"], "Error: The configuration 'bad.toml' cannot be read"),
    ("a setting that is none", ["run", "more.toml"], "has 'round'; there is task, seed, rounds"),
    ("a setting of another kind", ["run", "kind.toml"], "Error: `rounds` in 'kind.toml' must be of kind int"),
    ("a configuration without a task", ["run", "no.toml"], "Error: The configuration 'no.toml' does not say which"),
    ("showing nothing", ["show", "nothing"], "Error: There is no task 'nothing'"),
    ("comparing nothing", ["compare", "none"], "Error: There is no run in 'none'"),
    ("comparing what did not begin", ["compare", "EMPTY"], "has no metrics yet."),
    ("drawing into a file", ["compare", "RUN", "--out", "empty.py/a.png"], "Error: The plot 'empty.py/a.png' cannot"),
]


@pytest.fixture(scope="module")
def workshop(finished: Any, task_file: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A folder with what mistakes are made of, and what their placeholders stand for."""
    root = tmp_path_factory.mktemp("mistakes")
    files = {
        "empty.py": "",
        "number.py": "task = 3",
        "unseeded.py": "def task(): pass",
        "needy.py": "def task(seed, folder): pass",
        "nothing_made.py": "def task(seed): pass",
        "failing.py": "def task(seed):\n  return 1 / 0",
        "broken.py": "x = 1\ny = x / 0",
        "bad.toml": "task =",
        "more.toml": 'task = "digits"\nround = 3',
        "kind.toml": 'task = "digits"\nrounds = "3"',
        "no.toml": "rounds = 3",
        "old/metrics.csv": "round\n",
    }
    for name, text in files.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    run, bare, empty = (root / name for name in ("run", "bare", "begun"))
    for out in (run, bare):
        call("run", task_file, "--out", out, "--rounds", 1)
    remove_checkpoints(bare)
    empty.mkdir()
    (empty / "config.toml").write_bytes((finished[0] / "config.toml").read_bytes())
    return {
        "root": root,
        "TASK": task_file,
        "RUN": str(run),
        "BARE": str(bare),
        "EMPTY": str(empty),
        "LONGER": str(finished[0]),
    }


@pytest.mark.parametrize(("arguments", "message"), [row[1:] for row in MISTAKES], ids=[row[0] for row in MISTAKES])
def test_a_mistake_is_answered_with_a_sentence(
    workshop: dict[str, Any], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    """The status is 2, there is a sentence and no traceback of ours, and nothing is made or changed."""
    monkeypatch.chdir(workshop["root"])

    def contents() -> dict[str, Any]:
        paths = sorted(workshop["root"].rglob("*"))
        return {str(path): path.read_bytes() for path in paths if path.is_file() and path.suffix != ".pyc"}

    before = contents()
    result = call(*[workshop.get(argument, argument) for argument in arguments])

    assert result.exit_code == 2
    assert message in result.output
    assert str(ROOT / "koinon") not in result.output
    assert contents() == before


def test_two_processes_do_not_share_a_folder(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """While a run is going on, another one in its folder is refused."""
    fcntl = pytest.importorskip("fcntl")
    call("run", task_file, "--out", tmp_path / "a", "--rounds", 1)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        result = call("run", task_file, "--out", tmp_path / "a", "--resume", "--rounds", 2)
    finally:
        os.close(descriptor)

    assert result.exit_code == 2
    assert "Another process is running in" in result.output
    assert tomllib.loads((tmp_path / "a" / "config.toml").read_text())["rounds"] == 1


def test_runs_are_compared(finished: Any, task_file: str, tmp_path: pathlib.Path) -> None:
    """A row for each run, a column for each setting that differs, and a plot."""
    out, _ = finished
    call("run", task_file, "--out", tmp_path / "other", "--rounds", 3, "--seed", 5, "--set", "batch_size=2")
    result = call("compare", out, tmp_path / "other", "--out", tmp_path / "plot.png")
    header, first, second = result.output.splitlines()[:3]

    assert result.exit_code == 0
    assert header.split()[-2:] == ["seed", "batch_size"]
    assert (first.split()[:2], first.split()[-2:]) == (["signs", "12"], ["0", "4"])
    assert (second.split()[:2], second.split()[-2:]) == (["other", "3"], ["5", "2"])
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_runs_of_one_name_are_told_apart(
    finished: Any, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By their paths; and what was drawn the last time, which `koinon compare *` meets, is no run."""
    monkeypatch.chdir(tmp_path)
    for name in ("a/run", "b/run", "other"):
        shutil.copytree(finished[0], name)
    for _ in range(2):
        result = call("compare", "a/run", "b/run", "other", *(["compare.png"] if os.path.exists("compare.png") else []))
        assert [line.split()[0] for line in result.output.splitlines()] == ["run", "a/run", "b/run", "other", "curves:"]
    pathlib.Path("compare.png").unlink()
    pathlib.Path("compare.png").mkdir()
    result = call("compare", "other")
    assert result.exit_code == 0
    assert "Note: The plot 'compare.png' cannot be written" in result.output


def test_released_metrics_are_compared_with_runs(finished: Any, tmp_path: pathlib.Path) -> None:
    """A CSV file of a program of one's own, or its folder: under the names of `koinon run`, without settings."""
    out, _ = finished
    manager = ko.program.CSVFileReleaseManager(tmp_path / "own" / "metrics.csv")
    for number, accuracy in enumerate([0.5, 0.75, 0.625], 1):
        spent = {"epsilon": 2.0 * number, "delta": 1e-5}
        value = {"client_work": {"train": {"loss": 1 / number}}, "aggregator": {"privacy_spent": spent}}
        manager.release({**value, "evaluation": {"accuracy": accuracy}}, number)
    for path in (tmp_path / "own", tmp_path / "own" / "metrics.csv"):
        result = call("compare", path, out, "--out", tmp_path / "plot.png")
        header, first, second = result.output.splitlines()[:3]

        assert result.exit_code == 0
        assert re.split("  +", header) == [
            "run", "rounds", "train loss", "test", "best test", "in round", "clients p10", "epsilon spent", "time",
        ]  # fmt: skip
        assert first.split() == [path.name if path.is_dir() else str(path), "3", "0.3333", "accuracy", "0.6250",
                                 "0.7500", "2", "6.00"]  # fmt: skip
        assert second.split()[:2] == ["signs", "12"]
    (tmp_path / "text.csv").write_text("round\nnone\n", encoding="utf-8")
    assert "has no metrics yet" in call("compare", tmp_path / "text.csv").output


def test_what_was_spent_of_privacy_is_told() -> None:
    """The greatest epsilon of a round beside its loss; in the report each one, or rho where no delta was given."""
    spent = {"epsilon": 1.25, "delta": 1e-5, "rounds": 3, "zcdp_rho": 0.05}
    metrics = {"aggregator": {"zeroing": {"privacy_spent": spent}, "privacy_spent": {"zcdp_rho": 0.5, "rounds": 3}}}
    assert spent_epsilon(metrics) == 1.25
    assert spent_epsilon({"aggregator": {"privacy_spent": {"zcdp_rho": 0.5}}, "epsilon": 3.0}) is None
    assert spent_epsilon(0.5) is None

    columns = {"round": np.array([1.0, 2.0]), "aggregator/privacy_spent/zcdp_rho": np.array([0.25, 0.5])}
    columns |= {f"aggregator/zeroing/privacy_spent/{name}": np.array([0.0, value]) for name, value in spent.items()}
    assert spent_rows(columns) == [
        ("zero-concentrated privacy spent, aggregator", "rho 0.500"),
        ("epsilon spent, aggregator/zeroing", "1.250 for delta 1e-05"),
    ]
    assert spent_rows({"round": np.zeros(1)}) == []
    output = io.StringIO()
    progress = RunProgress(Console(file=output, width=200), "accuracy", 0, 2)
    progress(RoundReport(1, {**metrics, "client_work": {"train": {"loss": 0.5}}}, None, 0.1))
    assert output.getvalue() == "round 1/2  loss 0.5000  epsilon 1.25  compiled\n"


def test_a_table_that_is_too_wide_is_turned(
    finished: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path
) -> None:
    """On a narrow terminal a run is a column."""
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    lines = call("compare", finished[0], "--out", tmp_path / "plot.png").output.splitlines()

    assert [line.split()[0] for line in lines[:3]] == ["run", "rounds", "train"]
    assert max(map(len, lines[:-1])) <= 60


def test_the_tasks_are_listed() -> None:
    """Each with a sentence."""
    result = call("tasks")
    lines = {line.split()[0]: line for line in result.output.splitlines()}

    assert {"digits", "emnist"} <= lines.keys()
    assert "andwritten digits" in lines["digits"]


def test_a_computation_in_a_file_is_shown(tmp_path: pathlib.Path) -> None:
    """`koinon show FILE` prints the type, the plan and the privacy report of a serialized computation."""
    mean = ko.federated_computation(ko.types.at_clients(np.float32))(lambda values: ko.federated_mean(values))
    file = tmp_path / "mean.koinon"
    file.write_bytes(ko.compiler.serialize(mean))

    shown = CliRunner().invoke(app, ["show", str(file)])

    assert shown.exit_code == 0, shown.output
    assert "({float32}@CLIENTS -> float32@SERVER)" in shown.output
    assert "mean(argument)  [plain]" in shown.output
    assert "1 of 1 not protected by differential privacy." in shown.output

    file.write_bytes(file.read_bytes()[:-1])
    refused = CliRunner().invoke(app, ["show", str(file)])

    assert refused.exit_code == 1
    assert "truncated" in refused.output


def test_a_task_is_shown(task_file: str) -> None:
    """Its data, hyperparameters, process, plan, and what the compiler reports of a round."""
    result = call("show", task_file)

    for part in (
        "signs: which side",
        "batch_size = 4",
        "LearningProcess",
        "phase 0",
        "broadcast",
        "privacy of",
        "cost",
    ):
        assert part in result.output
    assert "5 clients" in result.output or "clients   5" in result.output


def test_a_run_is_shown_as_it_was_configured(finished: Any) -> None:
    """By its folder or its configuration; leaves of which the privacy report says the same are one row."""
    out, _ = finished
    changed = out.with_name("changed.toml")
    changed.write_text((out / "config.toml").read_text().replace("batch_size = 4", "batch_size = 3"), encoding="utf-8")

    assert "batch_size = 4" in call("show", out).output
    shown = call("show", changed).output
    assert "batch_size = 3" in shown
    assert re.search(r"\.metrics\['client_work'\]\['train'\], 5 leaves +%\d+ = sum", shown)
    assert re.search(r"\d+ of \d+ not protected by differential privacy\.", shown)


def test_a_loss_that_is_not_finite_is_mentioned_once() -> None:
    """Before the line of the first such round."""
    output = io.StringIO()
    progress = RunProgress(Console(file=output, width=200), "accuracy", 0, 3)
    for number, loss in enumerate([0.5, float("nan"), float("inf")], 1):
        progress(RoundReport(number, {"client_work": {"train": {"loss": loss}}}, None, 0.1))
    assert [line.split(";")[0][:50] for line in output.getvalue().splitlines() if "Note" in line] == [
        "Note: the training loss of round 2 is nan"
    ]


def test_the_bar_is_on_terminals_only(monkeypatch: pytest.MonkeyPatch, task_file: str, tmp_path: pathlib.Path) -> None:
    """There a line is redrawn; with NO_COLOR it has no colours."""
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("FORCE_COLOR", "")
    result = call("run", task_file, "--out", tmp_path / "a", "--rounds", 2)

    assert "━" in result.output
    assert "round 2/2" in result.output
    assert "\x1b[3" not in result.output.replace("\x1b[?25", "")

    monkeypatch.setenv("COLUMNS", "40")
    result = call("run", task_file, "--out", tmp_path / "narrow", "--rounds", 2)
    last = [line for line in re.split(r"[\r\n]|\x1b\[2K", result.output) if line.startswith("round 2/2")][-1]
    assert re.fullmatch(r"round 2/2 loss \d\.\d{4}  accuracy \d\.\d{4} *", last)
    assert "━" not in result.output


def test_without_its_packages_the_command_says_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """One sentence with the command, and no traceback; other missing modules are not hidden."""

    def missing(name: str) -> Callable[[str], Any]:
        def import_module(module: str) -> Any:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        return import_module

    monkeypatch.setattr(_main.importlib, "import_module", missing("typer"))
    with pytest.raises(SystemExit) as raised:
        main([])
    assert raised.value.code == (
        "Error: The command line needs the package `typer`, which is not installed; "
        'install it with: pip install "koinon[cli]"'
    )
    monkeypatch.setattr(_main.importlib, "import_module", missing("numpy.nothing"))
    with pytest.raises(ModuleNotFoundError):
        main([])


@draws
def test_without_matplotlib_a_run_has_no_curves_and_says_so(
    monkeypatch: pytest.MonkeyPatch, task_file: str, tmp_path: pathlib.Path
) -> None:
    """All else is there."""
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = call("run", task_file, "--out", tmp_path / "a", "--rounds", 1)

    assert result.exit_code == 0
    assert "Note: Drawing the curves of a run needs the package `matplotlib`, which is not" in result.output
    assert result.output.splitlines()[-1].startswith("final test accuracy")
    assert not (tmp_path / "a" / "curves.png").exists()
    assert "<img" not in (tmp_path / "a" / "report.html").read_text()


@draws
def test_a_full_disk_costs_a_finished_run_its_page_only(
    monkeypatch: pytest.MonkeyPatch, task_file: str, tmp_path: pathlib.Path
) -> None:
    """Curves and report are left out, which is said; and no half of a file stays."""
    write = pathlib.Path.write_bytes

    def write_half(path: pathlib.Path, content: bytes) -> int:
        if "curves" not in path.name and "report" not in path.name:
            return write(path, content)
        write(path, content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pathlib.Path, "write_bytes", write_half)
    result = call("run", task_file, "--out", tmp_path / "a", "--rounds", 1)

    assert result.exit_code == 0
    for name in ("curves.png", "report.html"):
        assert f"Note: {str(tmp_path / 'a' / name)!r} cannot be written: [Errno 28] No space left" in result.output
    assert result.output.splitlines()[-1].startswith("final test accuracy")
    assert not [path for path in (tmp_path / "a").iterdir() if path.name.startswith(("curves", "report"))]


def test_a_closed_pipe_is_no_error(task_file: str, tmp_path: pathlib.Path) -> None:
    """`koinon .. | head -1` ends without a traceback."""
    process = start("tasks", cwd=tmp_path)
    assert process.stdout is not None
    process.stdout.close()

    assert process.wait(timeout=60) in (0, 1)


def test_types_are_wrapped_where_a_reader_would() -> None:
    """Lines break after commas and before arrows, continuations are indented, and nothing is lost."""
    line = "  next  (<state=<a=float32[10],b=float32[20]>@SERVER,data={int32*}@CLIENTS> -> float32@SERVER)"
    wrapped = wrap_types(line, 50)

    assert max(map(len, wrapped.splitlines())) <= 50
    assert "".join(part.strip() for part in wrapped.splitlines()).replace(" ", "") == line.replace(" ", "")
    assert all(part.startswith("      ") for part in wrapped.splitlines()[1:])
    assert wrap_types("short", 50) == "short"


@pytest.mark.soak
def test_two_hundred_kills_change_nothing(task_file: str, tmp_path: pathlib.Path) -> None:
    """A run that is killed at 200 random instants ends with the same bits, and has each round in its metrics once."""
    rounds, rng = 20_000, np.random.default_rng(0)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    path = killed / "metrics.csv"
    arguments = ["run", task_file, "--rounds", rounds, "--save-every", 1]
    call(*arguments, "--out", whole)
    for _ in range(200):
        resume = ["--resume"] if (killed / "config.toml").exists() else []
        process = start(*arguments, "--out", killed, *resume, cwd=tmp_path)
        if rng.random() < 0.8:
            # Most kills come while rounds are released and saved, the others while Python and JAX start.
            size = path.stat().st_size if path.exists() else 0
            while process.poll() is None and (path.stat().st_size if path.exists() else 0) == size:
                time.sleep(0.001)
            time.sleep(float(rng.uniform(0, 0.05)))
        else:
            time.sleep(float(rng.uniform(0, 4)))
        assert process.poll() is None, "the run ended before it was killed"
        process.kill()
        process.communicate()
    result = call("run", task_file, "--out", killed, "--resume")

    assert result.exit_code == 0
    assert_same_run(whole, killed, rounds)
