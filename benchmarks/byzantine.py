"""What robust aggregations withstand: the accuracy of federated averaging while clients are corrupted.

Twenty clients train a softmax regression on the handwritten digits of scikit-learn, all of them in each of 40 rounds.
Some attack. Every rule is set up for four corrupted clients, and has to do with none to nine.

    python benchmarks/byzantine.py                # runs everything, a few minutes, and prints the tables
    python benchmarks/byzantine.py --write        # also puts them into docs/how-to/robust-aggregation.md, with a plot
"""

from __future__ import annotations

import argparse
import functools
import math
import pathlib
import time
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import track
from rich.table import Table

import koinon as ko
from koinon.simulation import attacks

ROOT = pathlib.Path(__file__).parents[1]
PAGE = ROOT / "docs/how-to/robust-aggregation.md"
PLOT = ROOT / "docs/assets/byzantine.svg"

CLIENTS, ROUNDS, EXPECTED = 20, 40, 4
FAILED = 0.8  # of the accuracy without an attack

RULES: dict[str, Any] = {
    "mean": ko.aggregators.UnweightedMeanFactory(),
    "norm bounding": ko.aggregators.NormBoundedMeanFactory(1.0),
    "centered clipping": ko.aggregators.CenteredClippingFactory(1.0),
    "coordinate median": ko.aggregators.CoordinateMedianFactory(),
    "trimmed mean": ko.aggregators.TrimmedMeanFactory(EXPECTED / CLIENTS),
    "geometric median": ko.aggregators.UnweightedGeometricMedianFactory(),
    "Krum": ko.aggregators.KrumFactory(EXPECTED),
    "multi-Krum": ko.aggregators.KrumFactory(EXPECTED, num_selected=None),
    "bucketing + geometric median": ko.aggregators.BucketingFactory(
        ko.aggregators.UnweightedGeometricMedianFactory(), bucket_size=2
    ),
}
ATTACKS: dict[str, attacks.Attack | None] = {
    "label flip": None,  # the clients train on wrong labels
    "sign flip": attacks.sign_flip(1.0),
    "sign flip x10": attacks.sign_flip(10.0),
    "Gaussian 10": attacks.gaussian(10.0),
    "random sign 1e6": attacks.random_sign(1e6),
    "a little is enough": attacks.a_little_is_enough(),
    "NaN": attacks.constant(math.nan),
}
MIXES = {"alike": 1000.0, "unlike": 0.5}
"""How the digits are spread over the clients: the parameter of a Dirichlet distribution over labels."""


@functools.cache
def data(alpha: float, flipped: int = 0) -> Any:
    """The clients, the first of which may have wrong labels, and the test set."""
    split = ko.simulation.datasets.load_digits(num_clients=2, num_test_clients=1)
    parts = [part.dataset(part.client_ids[0]) for part in (split.train, split.test)]
    images = {name: np.concatenate([part[name] for part in parts]) for name in ("x", "y")}
    partition = ko.simulation.dirichlet_labels(images["y"], CLIENTS, alpha, seed=0, min_size=8)
    train = ko.simulation.ClientData.from_partition(images, partition)
    return attacks.flip_labels(train, train.client_ids[:flipped], num_classes=10).cohort(), split.centralized_test


def build(rule: str, attack: attacks.Attack) -> Any:
    """Federated averaging with an aggregation that is attacked."""
    model = ko.learning.models.functional(
        lambda weights, x: x @ weights["kernel"] + weights["bias"],
        {"kernel": jnp.zeros((64, 10)), "bias": jnp.zeros(10)},
        example_spec={"x": (jnp.float32, (64,)), "y": jnp.int32},
        loss=ko.learning.losses.cross_entropy,
    )
    return ko.learning.algorithms.build_unweighted_fed_avg(
        model,
        optax.sgd(0.5),
        batch_size=16,
        shuffle=True,
        model_aggregator=attacks.byzantine_factory(RULES[rule], attack, num_byzantine=0),
    )


def accuracy(process: Any, num_byzantine: int, alpha: float, flips: bool) -> float:
    """The accuracy after all rounds, with so many corrupted clients."""
    cohort, test = data(alpha, num_byzantine if flips else 0)
    state = process.initialize()
    if not flips:
        aggregator = state.aggregator
        aggregator["num_byzantine"] = jnp.int32(num_byzantine)
        state = state._replace(aggregator=aggregator)
    for _ in range(ROUNDS):
        state = process.next(state, cohort).state
    weights = jax.device_get(process.get_model_weights(state).trainable)
    logits = test["x"] @ weights["kernel"] + weights["bias"]
    return float(np.mean(np.argmax(np.nan_to_num(logits, nan=-math.inf), axis=1) == test["y"]))


def measure(rules: Iterable[str], counts: Iterable[int]) -> Iterator[tuple[tuple[str, str, str, int], float]]:
    """For each mix, rule, attack and number of corrupted clients, the accuracy; for four of them only in one mix."""
    for rule in rules:
        clean: dict[str, float] = {}
        process = None
        for name, attack in ATTACKS.items():
            if attack is not None or process is None:
                process = build(rule, attack or attacks.sign_flip(1.0))
            for mix, alpha in MIXES.items():
                for count in counts if mix == "unlike" else (0, EXPECTED):
                    if count == 0 and mix in clean:
                        found = clean[mix]
                    else:
                        found = accuracy(process, count, alpha, flips=attack is None)
                    if count == 0:
                        clean[mix] = found
                    yield (mix, rule, name, count), found


def breakdown(results: dict[tuple[str, str, str, int], float], rule: str, attack: str, counts: list[int]) -> str:
    """The least number of corrupted clients with which the accuracy is lost."""
    enough = FAILED * results["unlike", rule, attack, 0]
    failed = [count for count in counts if results["unlike", rule, attack, count] < enough]
    return str(failed[0]) if failed else "-"


def tables(results: dict[tuple[str, str, str, int], float], counts: list[int]) -> list[tuple[str, list[list[str]]]]:
    """The tables as titles and rows, the first of which is the head."""
    made = []
    for mix, text in (("alike", "clients whose data are alike"), ("unlike", "clients whose data differ")):
        rows = [["rule", "no attack", *ATTACKS]]
        for rule in RULES:
            clean = results[mix, rule, "NaN", 0]
            attacked = [results[mix, rule, attack, EXPECTED] for attack in ATTACKS]
            rows.append([rule, *[f"{value:.2f}" for value in (clean, *attacked)]])
        made.append((f"Accuracy with {EXPECTED} of {CLIENTS} clients corrupted, {text}", rows))
    rows = [["rule", *ATTACKS]]
    rows += [[rule, *[breakdown(results, rule, attack, counts) for attack in ATTACKS]] for rule in RULES]
    made.append((f"The number of corrupted clients of {CLIENTS} from which on the accuracy is lost", rows))
    return made


def markdown(title: str, rows: list[list[str]]) -> str:
    """A table of a page."""
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return f"**{title}**\n\n" + "\n".join(["| " + " | ".join(line) + " |" for line in lines]) + "\n"


def draw(results: dict[tuple[str, str, str, int], float], counts: list[int]) -> None:
    """One panel for each attack, with a curve for each rule."""
    import matplotlib

    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "koinon"
    shown = [attack for attack in ATTACKS if attack != "NaN"]
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.5), sharex=True, sharey=True, layout="constrained")
    styles = ["-", "--", "-.", ":"]
    for axis, attack in zip(axes.flat, shown, strict=True):
        for number, rule in enumerate(RULES):
            curve = [results["unlike", rule, attack, count] for count in counts]
            axis.plot(counts, curve, styles[number % 4], color=f"C{number}", label=rule, linewidth=1.4)
        axis.axvline(EXPECTED, color="0.8", linewidth=1, zorder=0)
        axis.set_title(attack, fontsize=10)
        axis.grid(alpha=0.25)
    for axis in axes[:, 0]:
        axis.set_ylabel("accuracy")
    for axis in axes[-1]:
        axis.set_xlabel(f"corrupted clients of {CLIENTS}")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, metadata={"Date": None})


def replace_between(text: str, begin: str, end: str, new: str) -> str:
    """The text with what is between two markers replaced."""
    head, found, rest = text.partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{PAGE} has lost its markers {begin} and {end}")
    return f"{head}{begin}\n\n{new}\n{end}{tail}"


def main() -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables and the plot into the documentation")
    arguments = parser.parse_args()
    start = time.perf_counter()
    counts = list(range(10))
    total = len(RULES) * len(ATTACKS) * (len(counts) + 2)
    results = dict(track(measure(RULES, counts), "Training under attack", total, console=Console(stderr=True)))
    made = tables(results, counts)
    console = Console()
    for title, rows in made:
        table = Table(*rows[0], title=title)
        for row in rows[1:]:
            table.add_row(*row)
        console.print(table)
    console.print(f"{time.perf_counter() - start:.0f} s")
    if arguments.write:
        text = "\n".join([markdown(title, rows) for title, rows in made])
        page = PAGE.read_text(encoding="utf-8")
        PAGE.write_text(replace_between(page, "<!-- tables -->", "<!-- end of tables -->", text), encoding="utf-8")
        draw(results, counts)


if __name__ == "__main__":
    main()
