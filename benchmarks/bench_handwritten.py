"""The reference of the benchmarks: federated averaging written by hand for one model, as one XLA program.

A loop over the clients, a loop over the batches of a client with a dynamic trip count, batches by slices of a flat
buffer, convolutions in the layout that XLA's CPU compiler is fast for. With `devices=2` the clients are dealt out over
two host devices by `shard_map`.

    python bench_handwritten.py W1 [rounds] [devices=2]
"""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jax_models import MODELS, batch_loss, example_losses
from measure import measure
from workloads import WORKLOADS


def canonical(x: Any, kernel: Any) -> Any:
    """A convolution whose gradients are convolutions in the layout NHWC, HWIO."""
    layout = ("NHWC", "HWIO", "NHWC")

    @jax.custom_vjp
    def convolve(x: Any, kernel: Any) -> Any:
        return jax.lax.conv_general_dilated(x, kernel, (1, 1), "VALID", dimension_numbers=layout)

    def forward(x: Any, kernel: Any) -> Any:
        return convolve(x, kernel), (x, kernel)

    def backward(saved: Any, g: Any) -> Any:
        x, kernel = saved
        h, w = kernel.shape[:2]
        flipped = jnp.flip(kernel, (0, 1)).transpose(0, 1, 3, 2)
        dx = jax.lax.conv_general_dilated(
            g, flipped, (1, 1), [(h - 1, h - 1), (w - 1, w - 1)], dimension_numbers=layout
        )
        dk = jax.lax.conv_general_dilated(
            x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3), (1, 1), "VALID", dimension_numbers=layout
        )
        return dx, dk.transpose(1, 2, 0, 3)

    convolve.defvjp(forward, backward)
    return convolve(x, kernel)


def cnn(w: Any, x: Any) -> Any:
    """The convolutional network with those convolutions."""
    x = jax.nn.relu(canonical(x, w["c1"]) + w["cb1"])
    x = jax.nn.relu(canonical(x, w["c2"]) + w["cb2"])
    x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")
    x = jax.nn.relu(x.reshape(x.shape[0], -1) @ w["d1"] + w["db1"])
    return x @ w["d2"] + w["db2"]


def deal(clients: np.ndarray, loads: np.ndarray, hands: int) -> list[np.ndarray]:
    """Deals clients out to as many hands, the longest first, back and forth."""
    ordered = clients[np.argsort(-loads, kind="stable")]
    rounds = np.resize(ordered, -(-len(ordered) // hands) * hands).reshape(-1, hands)
    rounds[1::2] = rounds[1::2, ::-1].copy()
    present = np.arange(rounds.size).reshape(rounds.shape) < len(ordered)
    present[1::2] = present[1::2, ::-1].copy()
    return [rounds[present[:, i], i] for i in range(hands)]


def main(name: str, rounds: int, devices: int = 1, lanes: int = 1) -> None:
    """Times the handwritten program on one workload."""
    jax.config.update("jax_num_cpu_devices", devices)
    workload = WORKLOADS[name]()
    model = cnn if workload.model == "cnn" else MODELS[workload.model]
    size, rate = workload.batch_size, workload.learning_rate

    def cohort_sum(weights: Any, x: Any, y: Any, offsets: Any, lengths: Any, count: Any) -> Any:
        """The sum over clients one after the other: `offsets[clients]`, of which `count` are there."""

        def one_client(index: Any, totals: Any) -> Any:
            offset, length = offsets[index], lengths[index]

            def step(batch: Any, w: Any) -> Any:
                start = offset + batch * size
                bx = jax.lax.dynamic_slice_in_dim(x, start, size)
                by = jax.lax.dynamic_slice_in_dim(y, start, size)
                mask = jnp.arange(size) < length - batch * size
                gradients = jax.grad(lambda v: batch_loss(model, v, bx, by, mask))(w)
                return jax.tree.map(lambda p, g: p - rate * g, w, gradients)

            trained = jax.lax.fori_loop(0, (length + size - 1) // size, step, weights)
            n = length.astype(jnp.float32)
            delta, total = totals
            return jax.tree.map(lambda t, a, b: t + n * (a - b), delta, weights, trained), total + n

        zeros = jax.tree.map(jnp.zeros_like, weights)
        return jax.lax.fori_loop(0, count, one_client, (zeros, jnp.float32(0)))

    def lanes_sum(weights: Any, x: Any, y: Any, offsets: Any, lengths: Any, steps: Any) -> Any:
        """The sum over lanes of clients: `offsets[lanes, clients]`; clients without examples fill the lanes up."""

        def step(_: Any, state: Any) -> Any:
            w, place, batch, delta, total = state
            offset = jnp.take_along_axis(offsets, place[:, None], 1)[:, 0]
            length = jnp.take_along_axis(lengths, place[:, None], 1)[:, 0]
            rows = (offset + batch * size)[:, None] + jnp.arange(size)
            mask = jnp.arange(size) < (length - batch * size)[:, None]
            gradients = jax.vmap(jax.grad(lambda v, *b: batch_loss(model, v, *b)))(w, x[rows], y[rows], mask)
            w = jax.tree.map(lambda p, g: p - rate * g, w, gradients)
            ends = (batch + 1) * size >= length
            n = jnp.where(ends, length, 0).astype(jnp.float32)
            delta = jax.tree.map(lambda t, a, b: t + jnp.tensordot(n, a - b, 1), delta, weights, w)
            w = jax.tree.map(lambda a, b: jnp.where(ends.reshape(-1, *[1] * a.ndim), a, b), weights, w)
            place = jnp.minimum(place + ends, offsets.shape[1] - 1)
            return w, place, jnp.where(ends, 0, batch + 1), delta, total + n.sum()

        start = jax.tree.map(lambda a: jnp.broadcast_to(a, (lanes, *a.shape)), weights)
        zeros = jax.tree.map(jnp.zeros_like, weights)
        none = jnp.zeros(lanes, jnp.int32)
        *_, delta, total = jax.lax.fori_loop(0, steps, step, (start, none, none, zeros, jnp.float32(0)))
        return delta, total

    sum_of = cohort_sum if lanes == 1 else lanes_sum

    @jax.jit
    def one_round(weights: Any, x: Any, y: Any, offsets: Any, lengths: Any, counts: Any) -> Any:
        if devices == 1:
            delta, total = sum_of(weights, x, y, offsets[0], lengths[0], counts[0])
        else:
            mesh = jax.make_mesh((devices,), ("clients",), axis_types=(jax.sharding.AxisType.Auto,))

            def shard(w: Any, x: Any, y: Any, o: Any, n: Any, c: Any) -> Any:
                return jax.lax.psum(sum_of(w, x, y, o[0], n[0], c[0]), "clients")

            delta, total = jax.shard_map(
                shard,
                mesh=mesh,
                in_specs=(P(), P(), P(), P("clients"), P("clients"), P("clients")),
                out_specs=P(),
                check_vma=False,
            )(weights, x, y, offsets, lengths, counts)
        return jax.tree.map(lambda w, d: w - d / total, weights, delta)

    state: list[Any] = []

    def build() -> Any:
        padding = [(0, size)]
        x = jnp.pad(workload.x, padding + [(0, 0)] * (workload.x.ndim - 1))
        y = jnp.pad(workload.y, padding + [(0, 0)] * (workload.y.ndim - 1))
        state[:] = [jax.tree.map(jnp.asarray, workload.weights)]

        def run(number: int) -> None:
            cohort = workload.cohort_of(number)
            hands = [cohort]
            if devices * lanes > 1:
                hands = deal(cohort, workload.sizes[cohort], devices * lanes)
            most = max(map(len, hands)) + (lanes > 1)
            offsets, lengths = np.zeros((2, len(hands), most), np.int32)
            for i, hand in enumerate(hands):
                offsets[i, : len(hand)], lengths[i, : len(hand)] = workload.offsets[hand], workload.sizes[hand]
            counts = np.array([len(hand) for hand in hands], np.int32)
            if lanes > 1:
                counts = (-(-lengths // size)).sum(1).reshape(devices, lanes).max(1).astype(np.int32)
                offsets, lengths = offsets.reshape(devices, lanes, most), lengths.reshape(devices, lanes, most)
            state[0] = jax.block_until_ready(one_round(state[0], x, y, offsets, lengths, counts))

        return run

    def loss() -> float:
        logits = MODELS[workload.model](state[0], workload.x[:500])
        return float(example_losses(logits, jnp.asarray(workload.y[:500])).mean())

    measure(f"handwritten-{devices}" + (f"-{lanes}-lanes" if lanes > 1 else ""), workload, build, loss, rounds)


if __name__ == "__main__":
    main(
        sys.argv[1],
        int(sys.argv[2]) if len(sys.argv) > 2 else 10,
        **{key: int(value) for key, value in (option.split("=") for option in sys.argv[3:])},
    )
