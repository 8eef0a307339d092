"""The examples run, and show what they are there to show."""

from __future__ import annotations

import pathlib
import re
import runpy

import numpy as np
import pytest

EXAMPLES = pathlib.Path(__file__).parents[1] / "examples"


def run_example(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What an example prints."""
    runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    return capsys.readouterr().out


def number_after(label: str, text: str) -> float:
    """The first number behind a label."""
    match = re.search(rf"{re.escape(label)} +(-?[\d.]+)", text)
    assert match is not None, text
    return float(match[1])


def test_mean_temperature(capsys: pytest.CaptureFixture[str]) -> None:
    """The mean is that of all readings, each of which counts once, whichever sensor has it."""
    fahrenheit = np.array([20, 21, 22, 30, 10, 11]) * 1.8 + 32

    printed = run_example("mean_temperature", capsys)

    assert number_after("mean", printed) == pytest.approx(fahrenheit.mean(), abs=0.005)
    assert number_after("above 70", printed) == 1


def test_federated_averaging(capsys: pytest.CaptureFixture[str]) -> None:
    """The network learns the digits."""
    printed = run_example("federated_averaging", capsys)

    assert number_after("test accuracy", printed) > 0.9


def test_own_aggregator(capsys: pytest.CaptureFixture[str]) -> None:
    """The vote finds the line y = 3 x + 1 in spite of a liar who ruins the mean."""
    printed = run_example("own_aggregator", capsys)

    assert number_after("vote: y =", printed) == pytest.approx(3, abs=0.2)
    assert abs(number_after("mean: y =", printed) - 3) > 10


def test_every_example_is_run_here() -> None:
    """An example that no test runs would rot, and one of more than 80 lines shows more than one idea."""
    examples = sorted(EXAMPLES.glob("*.py"))

    assert {f"test_{path.stem}" for path in examples} <= globals().keys()
    assert all(30 <= len(path.read_text(encoding="utf-8").splitlines()) <= 80 for path in examples)
