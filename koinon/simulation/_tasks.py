"""What a training run is about: a model, the data of clients, data to test with, and hyperparameters that work."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from koinon._errors import KoinonValueError, UnknownHparamError
from koinon.computation import ClientRows, Computation, federated_computation, federated_zip
from koinon.learning.algorithms import build_per_client_eval_computation, build_weighted_fed_avg
from koinon.learning.losses import cross_entropy
from koinon.learning.metrics import accuracy
from koinon.learning.models import FunctionalModel, evaluate, functional
from koinon.learning.templates import LearningProcess
from koinon.simulation import datasets
from koinon.simulation._client_data import FederatedDataset
from koinon.types import TensorType, at_clients

QUANTILES = (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Which quantiles over the test clients `Task.evaluate` returns."""

_TEST_BATCH_SIZE = 256
_CLIENT_BATCH_SIZE = 32


def fed_avg(
    model: FunctionalModel,
    *,
    seed: int,
    client_learning_rate: float,
    batch_size: int,
    epochs: int = 1,
    shuffle: bool = True,
    server_learning_rate: float = 1.0,
    server_momentum: float = 0.0,
) -> LearningProcess:
    """Weighted federated averaging with SGD at the clients and SGD with momentum at the server.

    What a `Task` trains with by default.
    """
    return build_weighted_fed_avg(
        model,
        optax.sgd(client_learning_rate),
        optax.sgd(server_learning_rate, momentum=server_momentum or None),
        batch_size=batch_size,
        epochs=epochs,
        shuffle=shuffle,
        seed=seed,
    )


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Task:
    """A learning problem for simulation, with all that a run of it needs.

    >>> import koinon as ko
    >>> task = ko.simulation.tasks.digits()
    >>> process = task.process(seed=0, epochs=1)
    >>> result = ko.learning.programs.train(process, task.train, rounds=2, clients_per_round=5)
    >>> metrics = task.evaluate(process.get_model_weights(result.state))
    >>> sorted(metrics), sorted(metrics["clients"])[-2:]
    (['clients', 'test'], ['accuracy_p75', 'accuracy_p90'])

    Attributes:
      name: one word.
      model: the model, with the weights that training begins with.
      train: the clients to train with.
      test: examples at the server to test with, stacked arrays; None for none.
      test_clients: clients to test with that do not train; None for none.
      build_process: called as `build_process(model, seed=seed, **hyperparameters)`, makes the learning process.
      hyperparameters: those of `build_process`, by name, with values that work.
      build_sampler: called as `build_sampler(client_ids, clients_per_round, seed)`, makes what returns the clients of a
        round for its number, for example by Poisson sampling or `koinon.simulation.system.SystemSimulation`; None for
        clients that are drawn uniformly and without replacement.
      rounds: how many rounds it takes.
      clients_per_round: how many clients take part in a round.
      description: a sentence.
    """

    name: str
    model: FunctionalModel
    train: FederatedDataset
    test: Any = None
    test_clients: FederatedDataset | None = None
    build_process: Callable[..., LearningProcess] = fed_avg
    hyperparameters: Mapping[str, int | float | bool | str] = dataclasses.field(default_factory=dict)
    build_sampler: Callable[[Sequence[Any], int, int], Callable[[int], Iterable[Any]]] | None = None
    rounds: int = 100
    clients_per_round: int = 10
    description: str = ""

    def __post_init__(self) -> None:
        if self.rounds < 1 or self.clients_per_round < 1:
            raise KoinonValueError(
                "A task has at least one round, and one client in it.",
                found=f"rounds={self.rounds}, clients_per_round={self.clients_per_round}",
            )

    @property
    def metric(self) -> str:
        """The metric to judge a model by: the accuracy where the model has one, else the loss."""
        return "accuracy" if "accuracy" in self.model.metrics else "loss"

    def process(self, *, seed: int = 0, **hyperparameters: Any) -> LearningProcess:
        """The learning process with the task's hyperparameters, of which these are replaced.

        Raises:
          UnknownHparamError: the task has no hyperparameter of a given name.
        """
        unknown = hyperparameters.keys() - self.hyperparameters.keys()
        if unknown:
            raise UnknownHparamError(
                f"The task {self.name!r} has no hyperparameter {', '.join(map(repr, sorted(unknown)))}.",
                expected=f"one of {', '.join(self.hyperparameters) or 'none'}",
            )
        return self.build_process(self.model, seed=seed, **{**self.hyperparameters, **hyperparameters})

    def evaluate(self, weights: Any) -> dict[str, dict[str, float]]:
        """The metrics of a model on what the task has to test with.

        Args:
          weights: `ModelWeights`.

        Returns:
          `test`: the metrics on the examples at the server. `clients`: of the metric to judge by, one value for each
          test client that has examples, the mean over these clients and quantiles, `accuracy_p10` for example.
        """
        results: dict[str, dict[str, float]] = {}
        if self.test is not None:
            metrics = evaluate(self.model, weights, self.test, batch_size=_TEST_BATCH_SIZE)
            results["test"] = {
                name: float(value)
                for name, value in metrics.items()
                if not name.startswith("num_") and _is_number(value)
            }
        if self.test_clients is not None:
            results["clients"] = _spread(self.metric, self.evaluate_clients(weights))
        return results

    def evaluate_clients(self, weights: Any) -> np.ndarray:
        """The metric to judge by on each test client that has examples, float `[clients]`."""
        if self.test_clients is None:
            return np.zeros(0)
        cohort = self.test_clients.cohort()
        count = len(cohort)
        # Results come back as rows, with no work in Python for each client, where some argument is rows.
        numbers = ClientRows(TensorType(np.int32), [np.zeros(count, np.int32)], count)
        values, sizes = (np.asarray(leaf)[:count] for leaf in self._per_client(weights, cohort, numbers).leaves)
        return values[sizes > 0].astype(float)

    @functools.cached_property
    def _per_client(self) -> Computation:
        evaluate_clients = build_per_client_eval_computation(self.model, batch_size=_CLIENT_BATCH_SIZE)
        weights_type, data_type = evaluate_clients.type_signature.parameter  # pyright: ignore[reportGeneralTypeIssues]

        @federated_computation(weights_type, data_type, at_clients(np.int32))
        def values_and_sizes(weights: Any, data: Any, numbers: Any) -> Any:
            del numbers
            metrics = evaluate_clients(weights, data)
            return federated_zip((metrics[self.metric], metrics["num_examples"]))

        return values_and_sizes


def _is_number(value: Any) -> bool:
    return np.ndim(value) == 0


def _spread(metric: str, values: np.ndarray) -> dict[str, float]:
    if not len(values):
        return {}
    quantiles = np.quantile(values, QUANTILES).tolist()
    names = [f"{metric}_p{round(100 * quantile)}" for quantile in QUANTILES]
    return {f"{metric}_mean": float(values.mean()), **dict(zip(names, quantiles, strict=True))}


def digits(seed: int = 0) -> Task:
    """Handwritten digits by a network with one hidden layer: small, real, and learnt in seconds.

    1,797 images of scikit-learn, spread over 100 clients by label with Dirichlet(0.3), see `datasets.load_digits`. 20
    of the clients only test. Federated averaging reaches an accuracy of 0.95 on the centralized test set.

    Args:
      seed: of the initial weights; the data are the same for every seed.

    Raises:
      MissingDependencyError: if scikit-learn, which has the images, is not installed.
    """
    split = datasets.load_digits(num_clients=100, alpha=0.3, seed=0, num_test_clients=20)
    model = functional(
        _apply_mlp,
        functools.partial(_initialize_mlp, sizes=(64, 200, 10)),
        example_spec=split.train.element_type,
        loss=cross_entropy,
        metrics={"accuracy": accuracy()},
        key=jax.random.key(seed),
    )
    return Task(
        name="digits",
        model=model,
        train=split.train,
        test=split.centralized_test,
        test_clients=split.test,
        hyperparameters={"client_learning_rate": 0.5, "batch_size": 16, "epochs": 2, "server_learning_rate": 1.0},
        rounds=200,
        clients_per_round=20,
        description="handwritten digits of scikit-learn on 100 clients, by Dirichlet(0.3); one hidden layer",
    )


@functools.partial(jax.jit, static_argnames="sizes")
def _initialize_mlp(key: Any, sizes: tuple[int, ...]) -> dict[str, Any]:
    """The weights of dense layers of these sizes, kernels drawn as He et al. (2015) do."""
    layers = zip(jax.random.split(key, len(sizes) - 1), sizes[:-1], sizes[1:], strict=True)
    return {
        f"dense_{i}": {
            "kernel": jnp.sqrt(2 / inputs) * jax.random.normal(layer_key, (inputs, outputs)),
            "bias": jnp.zeros(outputs),
        }
        for i, (layer_key, inputs, outputs) in enumerate(layers)
    }


def _apply_mlp(weights: dict[str, Any], x: Any) -> Any:
    """The logits of dense layers with rectified linear units between them."""
    for i in range(len(weights)):
        layer = weights[f"dense_{i}"]
        x = (jax.nn.relu(x) if i else x) @ layer["kernel"] + layer["bias"]
    return x


TASKS: dict[str, Callable[..., Task]] = {"digits": digits}
"""The tasks that come with koinon: for each name what makes the task of a seed."""
