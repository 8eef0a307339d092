"""Round trips of computations through bytes: same type, same bytes, same results on both backends."""

from __future__ import annotations

import collections
import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import koinon as ko
from koinon._errors import KoinonValueError, NoDerivativeError, SerializationError
from koinon.compiler import _export, deserialize, fingerprint, serialize
from koinon.compiler._export import PLATFORMS
from koinon.compiler._wire import unpack
from koinon.computation import INTRINSICS
from koinon.computation import _ir as ir
from koinon.templates import MeasuredProcess, MeasuredProcessOutput
from koinon.types import SequenceType, TensorType, at_clients, at_server
from tests.compiler import zoo

every_kind = pytest.mark.parametrize("name", sorted(zoo.MAKERS))


@functools.cache
def made(name: str) -> zoo.Case:
    return zoo.MAKERS[name]()


@functools.cache
def written(name: str) -> bytes:
    return serialize(made(name).computation)


@functools.cache
def loaded(name: str) -> ko.Computation:
    return deserialize(written(name))


@every_kind
def test_a_loaded_computation_has_the_type_and_the_name_of_the_original(name: str) -> None:
    """The types are equal, containers included."""
    assert loaded(name).type_signature == made(name).computation.type_signature
    assert loaded(name).name == made(name).computation.name


@every_kind
def test_a_loaded_computation_gives_the_same_bits_on_both_backends(name: str, backend: str) -> None:
    """The result of the loaded computation is that of the original."""
    computation, arguments = made(name)
    zoo.assert_same(loaded(name)(*arguments), computation(*arguments))


@every_kind
def test_one_computation_has_one_text(name: str) -> None:
    """A computation made anew, and one that was loaded, are written as the original was."""
    assert serialize(zoo.MAKERS[name]().computation) == written(name)
    assert serialize(loaded(name)) == written(name)


def test_every_operator_of_the_language_is_in_the_zoo() -> None:
    """The round trips above leave out no operator."""
    used = {
        node.name
        for name in zoo.MAKERS
        for node in ir.walk(made(name).computation.expression)
        if isinstance(node, ir.Intrinsic)
    }
    assert used == set(INTRINSICS)


def test_the_fingerprint_is_that_of_the_bytes() -> None:
    """It is equal for equal computations, and tells others apart."""
    assert fingerprint(loaded("nested")) == written("nested")[-32:].hex()
    assert len({fingerprint(made(name).computation) for name in ("nested", "keys", "containers")}) == 3


@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_loaded_program_takes_every_size(size: int, backend: str) -> None:
    """Unknown dimensions and the room of sequences stay open in the bytes."""
    x = np.arange(3 * size, dtype="f4").reshape(size, 3)
    zoo.assert_same(loaded("unknown_dimensions")(x), made("unknown_dimensions").computation(x))
    data = zoo.client(size)
    zoo.assert_same(loaded("sequence_results")(data), made("sequence_results").computation(data))


def test_a_loaded_round_takes_every_cohort(backend: str) -> None:
    """The number of clients is no part of the bytes."""
    weights, key, _ = made("federated_averaging").arguments
    data = [zoo.client(0)]
    found = loaded("federated_averaging")(weights, key, data)
    zoo.assert_same(found, made("federated_averaging").computation(weights, key, data))


def test_a_loaded_computation_is_a_part_of_others(backend: str) -> None:
    """It can be called in a federated computation, which can be serialized in turn."""
    inner = loaded("nested")

    @ko.federated_computation(inner.type_signature.parameter)
    def twice(argument):
        first = inner(argument)
        return inner(first[0]["twice"], argument[1])

    expected = made("nested").computation
    argument = made("nested").arguments
    once = expected(*argument)
    zoo.assert_same(twice(*argument), expected(once[0]["twice"], argument[1]))
    zoo.assert_same(deserialize(serialize(twice))(*argument), twice(*argument))


def test_a_loaded_program_batches_and_differentiates() -> None:
    """Vmap and grad through it give what they give through the original; so they do under jit and nested."""

    @ko.jax_computation(TensorType("float32", (None,)), jnp.int32)
    def loss(w, n):
        return jnp.sum(jnp.tanh(w) ** 2) * n

    again = deserialize(serialize(loss))
    rows = np.arange(6, dtype="f4").reshape(2, 3)

    def by_two(fn):
        return lambda w: fn(w, 2)

    np.testing.assert_allclose(jax.vmap(by_two(again))(rows), jax.vmap(by_two(loss))(rows), rtol=1e-6)
    np.testing.assert_allclose(jax.grad(by_two(again))(rows[0]), jax.grad(by_two(loss))(rows[0]), rtol=1e-6)
    batched = jax.jit(jax.vmap(jax.grad(by_two(again))))(rows)
    np.testing.assert_allclose(batched, jax.vmap(jax.grad(by_two(loss)))(rows), rtol=1e-6)
    np.testing.assert_allclose(batched, 2 * 2 * np.tanh(rows) * (1 - np.tanh(rows) ** 2), atol=1e-5)


def test_a_program_without_derivative_says_so() -> None:
    """A fold over a sequence has no reverse mode once it is StableHLO, and no derivative has one itself."""
    fold = loaded("sequence_of_batches")
    with pytest.raises(NoDerivativeError, match="has no derivative"):
        jax.grad(lambda w: fold(zoo.client(3), w)[0].sum())(np.ones(3, "f4"))
    square = deserialize(serialize(ko.jax_computation(lambda x: x * x, jnp.float32)))
    with pytest.raises(NoDerivativeError):
        jax.grad(jax.grad(square))(1.0)


def test_a_program_runs_the_branch_of_its_platform() -> None:
    """One artifact holds the lowerings for several platforms, and the machine that runs it picks its own."""

    @ko.jax_computation
    def platform():
        branches = {name: functools.partial(jnp.int32, i) for i, name in enumerate(PLATFORMS)}
        return jax.lax.platform_dependent(**branches)

    names = {"gpu": "cuda"}
    expected = PLATFORMS.index(names.get(jax.default_backend(), jax.default_backend()))
    assert int(deserialize(serialize(platform))()) == expected


def test_a_program_for_some_platforms_is_written_for_those(monkeypatch: pytest.MonkeyPatch) -> None:
    """What has no lowering for a platform is written without it, and refuses to run there."""
    eigenvalues = ko.jax_computation(jnp.linalg.eigvals, TensorType("float32", (2, 2)))
    header, _ = unpack(serialize(eigenvalues))
    assert header["programs"][0]["platforms"] == ["cpu"]
    here = "cuda" if jax.default_backend() == "gpu" else jax.default_backend()
    monkeypatch.setattr(_export, "PLATFORMS", tuple([name for name in PLATFORMS if name != here]))
    elsewhere = deserialize(serialize(ko.jax_computation(lambda x: x + 1, jnp.float32)))
    with pytest.raises(KoinonValueError, match="does not run on this platform"):
        elsewhere(1.0)


def test_a_loaded_computation_is_a_part_of_a_program_of_jax() -> None:
    """Called in a jax_computation, under vmap too, it becomes a part of the program, for every size and platform."""
    vector = TensorType("float32", (None,))
    inner = deserialize(serialize(ko.jax_computation(lambda x: jnp.tanh(x) * x.shape[0], vector)))

    @ko.jax_computation(vector)
    def outer(x):
        return inner(x) + inner(2 * x), jax.vmap(lambda scale: inner(scale * x))(jnp.arange(3.0))

    x = np.arange(4, dtype="f4")
    zoo.assert_same(deserialize(serialize(outer))(x), outer(x))
    np.testing.assert_allclose(outer(x)[0], 4 * (np.tanh(x) + np.tanh(2 * x)), rtol=1e-6)


def test_registered_containers_keep_their_class_and_others_become_the_default() -> None:
    """A class without a name comes back as an OrderedDict with the same fields."""

    @ko.jax_computation(jnp.float32)
    def pair(x):
        return zoo.Moments(zoo.Anonymous(x, x), (x, [x]))

    result = deserialize(serialize(pair))(1.0)
    assert type(result) is zoo.Moments
    assert type(result.first) is collections.OrderedDict
    assert list(result.first) == ["left", "right"]
    assert type(result.second) is tuple
    assert type(result.second[1]) is list


def test_a_process_is_put_together_again_from_loaded_computations() -> None:
    """The containers of the templates survive, so that their checks pass."""
    zero = ko.federated_computation(lambda: ko.federated_value(0, ko.SERVER))

    @ko.federated_computation(at_server(jnp.int32), at_clients(jnp.int32))
    def count(state, values):
        total = ko.federated_map(lambda a, b: a + b, (state, ko.federated_sum(values)))
        return MeasuredProcessOutput(total, total, ko.federated_value((), ko.SERVER))

    process = MeasuredProcess(deserialize(serialize(zero)), deserialize(serialize(count)))
    output = process.next(process.initialize(), [1, 2])
    assert isinstance(output, MeasuredProcessOutput)
    assert int(output.result) == 3


def test_the_bytes_do_not_depend_on_where_they_were_made(tmp_path: Path) -> None:
    """The same code in another file, directory and process, under another hash seed, gives the same bytes."""
    code = """
import jax.numpy as jnp, koinon as ko
@ko.federated_computation(ko.types.at_clients(ko.types.SequenceType({"x": jnp.float32})))
def mean(data):
    total = lambda d: d.batch(2).reduce(0.0, lambda t, b: t + b.examples["x"].sum())
    return ko.federated_mean(ko.federated_map(total, data))
print(ko.compiler.fingerprint(mean))
"""
    processes = []
    for seed, name in enumerate(("a.py", "b/longer name.py")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n" * seed + code)
        environment = {**os.environ, "PYTHONHASHSEED": str(seed), "PYTHONPATH": str(Path(ko.__file__).parents[1])}
        processes.append(
            subprocess.Popen([sys.executable, str(path)], cwd=path.parent, env=environment, stdout=subprocess.PIPE)
        )
    outputs = [process.communicate()[0] for process in processes]
    assert all(process.returncode == 0 for process in processes)
    assert outputs[0] == outputs[1]
    assert len(outputs[0].strip()) == 64


def test_no_path_of_this_machine_is_in_the_bytes() -> None:
    """Neither the directory of this file nor its name."""
    for name in zoo.MAKERS:
        assert os.path.dirname(__file__).encode() not in written(name)
        assert b"zoo.py" not in written(name)


@pytest.mark.parametrize(
    ("fn", "reason"),
    [
        (lambda x: (jax.debug.print("{}", x), x)[1], "callbacks"),
        (lambda x: jax.pure_callback(lambda v: v, jax.ShapeDtypeStruct((), jnp.float32), x), "callbacks"),
    ],
    ids=["debug_print", "pure_callback"],
)
def test_a_program_that_calls_back_into_python_is_not_written(fn, reason: str) -> None:
    """What another machine could not run is refused when it is serialized."""
    with pytest.raises(SerializationError, match=reason):
        serialize(ko.jax_computation(fn, jnp.float32))


def test_a_computation_nested_too_deeply_is_not_written() -> None:
    """What could not be loaded is refused when it is serialized."""
    node: ir.Expression = ir.Lambda("x", TensorType("int32"), ir.Reference("x", TensorType("int32")))
    for _ in range(250):
        node = ir.Block((), node)
    with pytest.raises(SerializationError, match="too deeply"):
        serialize(ko.Computation(node, name="deep"))


def test_a_container_has_one_name_and_a_name_one_container() -> None:
    """A second registration that disagrees with the first is an error; the same again is none."""
    assert ko.types.register_container("tests.Moments", zoo.Moments) is zoo.Moments
    with pytest.raises(KoinonValueError, match="another container"):
        ko.types.register_container("tests.Moments", zoo.Anonymous)
    with pytest.raises(KoinonValueError, match="another name"):
        ko.types.register_container("tests.Other", zoo.Moments)
    with pytest.raises(KoinonValueError, match="cannot be the name"):
        ko.types.register_container("os.system()", zoo.Anonymous)


def test_a_sequence_of_unknown_rows_keeps_its_element_type() -> None:
    """The element type with its own unknown dimension survives, and so does the result."""
    words = SequenceType(TensorType("int32", (None,)))
    total = ko.jax_computation(lambda data: data.reduce(0, lambda t, word: t + word.sum()), words)
    again = deserialize(serialize(total))
    assert int(again(np.arange(6, dtype="i4").reshape(2, 3))) == 15
