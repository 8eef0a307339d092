"""The table of a run."""

from __future__ import annotations

import math

import numpy as np
import pytest

from koinon.learning.programs import History


def test_a_column_has_one_number_for_each_round() -> None:
    """Numbers of nested mappings are columns by path; rounds without one are NaN; arrays are not kept."""
    history = History()
    history.append({"round": 1, "train": {"loss": 2.0, "confusion": np.zeros((2, 2))}})
    history.append({"round": 2, "train": {"loss": 1.5}, "evaluation": {"accuracy": 0.5}})
    history.append({"round": 3, "train": {"loss": 1.0}})

    assert list(history) == ["round", "train/loss", "evaluation/accuracy"]
    assert history["train/loss"].tolist() == [2.0, 1.5, 1.0]
    assert [math.isnan(value) for value in history["evaluation/accuracy"]] == [True, False, True]
    assert history.last() == {"round": 3, "train/loss": 1.0, "evaluation/accuracy": 0.5}


def test_the_newest_rounds_are_shown() -> None:
    """The page of a history has a line for each column, with the last five numbers."""
    history = History()
    assert repr(history) == "History(0 rounds)"
    for number in range(7):
        history.append({"loss": 10.0 - number})

    title, line = repr(history).splitlines()
    assert title == "History(7 rounds)"
    assert line.split() == ["loss", "..", "8", "7", "6", "5", "4"]


def test_an_unknown_column_is_an_error_that_names_those_like_it() -> None:
    """`accuracy` may be that of the training or of the evaluation; a history stays a mapping."""
    history = History()
    with pytest.raises(KeyError, match="there is none yet"):
        history["loss"]
    history.append({"train": {"loss": 2.0, "accuracy": 0.25}, "evaluation": {"accuracy": 0.5}})
    with pytest.raises(KeyError, match=r"'accuracy'; there is 'evaluation/accuracy', 'train/accuracy'\."):
        history["accuracy"]
    with pytest.raises(KeyError, match=r"'acc'; there is 'evaluation/accuracy', 'train/accuracy', 'train/loss'\."):
        history["acc"]
    assert history.get("accuracy") is None
    assert "accuracy" not in history
