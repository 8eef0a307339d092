"""Adaptive optimizers at the server: FedAdam, FedYogi and FedAdagrad are federated averaging with another last step."""

from __future__ import annotations

from typing import Any

from koinon.learning._fed_avg import build_weighted_fed_avg
from koinon.learning._functional_model import FunctionalModel
from koinon.learning._optimizer_rules import build_adagrad, build_adam, build_yogi
from koinon.learning._process import LearningProcess


def build_fed_adam(
    model: FunctionalModel,
    client_optimizer: Any,
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    batch_size: int,
    **options: Any,
) -> LearningProcess:
    """Federated averaging with Adam at the server: `build_weighted_fed_avg(model, client_optimizer, build_adam(...))`.

    Unlike the paper, Adam's bias correction is kept, so that the first rounds are no special case.

    >>> import jax.numpy as jnp, koinon as ko, optax
    >>> model = ko.learning.models.functional(
    ...     lambda w, x: w * x, jnp.float32(0.0),
    ...     example_spec={"x": jnp.float32, "y": jnp.float32}, loss=ko.learning.losses.squared_error,
    ... )
    >>> process = ko.learning.algorithms.build_fed_adam(model, optax.sgd(0.1), batch_size=2)
    >>> sorted(process.get_hparams(process.initialize())["finalizer"])
    ['beta_1', 'beta_2', 'epsilon', 'learning_rate']

    Args:
      model: the model.
      client_optimizer: a koinon `Optimizer` or an optax transformation.
      server_learning_rate: the rate of the server.
      beta_1: how long updates are remembered, in [0, 1).
      beta_2: how long their squares are, in [0, 1).
      tau: how adaptive the server is: the smaller, the more. Adam's epsilon.
      batch_size: the number of examples of a client's batch.
      **options: of `build_weighted_fed_avg`.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, https://arxiv.org/abs/2003.00295, algorithm 2.
    """
    server_optimizer = build_adam(server_learning_rate, beta_1, beta_2, tau)
    return build_weighted_fed_avg(model, client_optimizer, server_optimizer, batch_size=batch_size, **options)


def build_fed_yogi(
    model: FunctionalModel,
    client_optimizer: Any,
    *,
    server_learning_rate: float = 0.01,
    beta_1: float = 0.9,
    beta_2: float = 0.99,
    tau: float = 1e-3,
    batch_size: int,
    **options: Any,
) -> LearningProcess:
    """Federated averaging with Yogi at the server: `build_weighted_fed_avg(model, client_optimizer, build_yogi(...))`.

    The second moment begins with `tau ** 2`, as in the paper; see `build_fed_adam` for the arguments.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, https://arxiv.org/abs/2003.00295, algorithm 2.
    """
    server_optimizer = build_yogi(server_learning_rate, beta_1, beta_2, tau, initial_preconditioner_value=tau**2)
    return build_weighted_fed_avg(model, client_optimizer, server_optimizer, batch_size=batch_size, **options)


def build_fed_adagrad(
    model: FunctionalModel,
    client_optimizer: Any,
    *,
    server_learning_rate: float = 0.01,
    tau: float = 1e-3,
    batch_size: int,
    **options: Any,
) -> LearningProcess:
    """Federated averaging with Adagrad at the server: `build_weighted_fed_avg(..., build_adagrad(...))`.

    The second moment begins with `tau ** 2`, as in the paper; see `build_fed_adam` for the arguments.

    Raises:
      KoinonTypeError: an argument is of the wrong kind.
      KoinonValueError: a hyperparameter is out of its range.

    References:
      Reddi et al., Adaptive Federated Optimization, ICLR 2021, https://arxiv.org/abs/2003.00295, algorithm 2.
    """
    server_optimizer = build_adagrad(server_learning_rate, initial_preconditioner_value=tau**2, epsilon=tau**2)
    return build_weighted_fed_avg(model, client_optimizer, server_optimizer, batch_size=batch_size, **options)
