"""One run on several devices, and what moves between them."""

import json
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from rlx.cli import main
from rlx.cli.train import cores_for
from rlx.devices import sharding
from rlx.replay import arranged, insert, replay, sample, take
from rlx.rollout import flatten, gather, minibatches

SMALL = ["--num-steps", "8", "--hidden-sizes", "8", "--eval-episodes", "4", "--no-compile-cache"]
DEVICES = ["--devices", "2", "--render-every", "1"]
PPO = ["ppo", "--env", "CartPole-v1", "--num-minibatches", "2", *SMALL]
SAC = ["sac", "--env", "Pendulum-v1", "--warmup-steps", "32", "--capacity", "64", "--batch-size", "8", *SMALL]


@pytest.fixture(scope="module")
def eight():
    program = Path(__file__).with_name("eight_devices.py")
    out = subprocess.run([sys.executable, program], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return json.loads(out.stdout)


@pytest.fixture
def two():
    with jax.set_mesh(sharding.mesh(jax.devices()[:2])):
        yield NamedSharding(jax.sharding.get_mesh(), P(sharding.AXIS))


@pytest.mark.more
@pytest.mark.parametrize("name", ["ppo", "sac", "fpo"])
def test_twenty_updates_on_eight_devices_are_those_on_one_with_the_same_shuffle(eight, name):
    found = eight[name]
    # In float64; what is float32 in all programs, such as normalised observations, sums in another order.
    assert found["difference"] < 1e-5


@pytest.mark.more
@pytest.mark.parametrize("name", ["ppo", "sac", "fpo"])
def test_every_device_has_its_own_environments(eight, name):
    found = eight[name]
    assert found["devices_of_envs"] == 8
    assert found["rows_here"] == {"ppo": 2, "sac": 1, "fpo": 2}[name]


@pytest.mark.more
@pytest.mark.parametrize("name", ["ppo", "sac", "fpo"])
def test_only_gradients_and_statistics_cross_devices(eight, name):
    found = eight[name]
    kinds, sizes = zip(*found["collectives"], strict=True)
    assert set(kinds) == {"all-reduce"}
    assert 0 <= sum(sizes) - found["param_bytes"] < min(512, found["minibatch_bytes"])  # a batch would be seen


@pytest.mark.more
def test_lanes_on_eight_devices_are_those_of_a_vmap_on_one(eight):
    # A program for one lane and one for eight: 0.0 with jaxlib 0.10.2, the last bit of a float32 with 0.11.2.
    assert eight["sweep"]["difference"] < 1e-6


@pytest.mark.more
def test_the_example_of_the_documentation_spreads_its_environments():
    text = (Path(__file__).parent.parent / "docs" / "guides" / "devices.md").read_text()
    program = text.partition("```python\n")[2].partition("```")[0]
    command = [sys.executable, "-c", program.replace("use_devices()", "use_devices(2)")]
    out = subprocess.run(command, capture_output=True, text=True)
    assert "spec=P('env'" in out.stdout, out.stderr


def test_without_a_mesh_there_is_one_block():
    assert sharding.num_blocks() == 1
    x = jnp.arange(12).reshape(3, 4)
    np.testing.assert_array_equal(flatten(x), np.arange(12))
    assert sharding.split(x) is x


def test_elements_are_flattened_block_by_block(two):
    x = jnp.arange(12).reshape(3, 4)
    flat = jax.jit(flatten)(x)
    np.testing.assert_array_equal(flat, [0, 1, 4, 5, 8, 9, 2, 3, 6, 7, 10, 11])
    assert flat.sharding.is_equivalent_to(two, 1)


def test_minibatches_visit_every_element_once_and_take_as_many_of_each_block(two):
    orders = minibatches(jax.random.key(0), 24, 3, 5)
    assert orders.shape == (5, 3, 8)
    np.testing.assert_array_equal(np.sort(orders.reshape(5, -1)), np.tile(np.arange(24), (5, 1)))
    np.testing.assert_array_equal(orders >= 12, np.broadcast_to([False] * 4 + [True] * 4, orders.shape))
    assert not np.array_equal(orders[0, :, :4], orders[0, :, 4:] - 12)  # each block in an order of its own


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_gather_reads_the_elements_of_an_index(two, shape):
    data = {"a": jax.random.normal(jax.random.key(0), (12, 2)), "b": jnp.arange(12)}
    local = jax.random.randint(jax.random.key(1), shape, 0, 6)
    index = local + 6 * (jnp.arange(8) >= 4)
    found = jax.jit(gather)(data, index)
    for name, x in data.items():
        np.testing.assert_array_equal(found[name], x[index])


def test_replay_on_two_devices_keeps_the_newest_of_each(two):
    buffer = replay(jax.ShapeDtypeStruct((), jnp.int32), capacity=8, spare=2)
    for i in range(8):  # four elements each: two of the first device's environments, two of the second's
        buffer = jax.jit(insert)(buffer, jnp.arange(4) + 10 * i)
    assert (int(buffer.size), int(buffer.position)) == (8, 1)  # of five rows a block: the last insertion wraps
    index = sample(buffer, jax.random.key(0), (200, 16))
    found = np.asarray(jax.vmap(lambda i: take(buffer, i))(index))
    assert set(found[:, :8].ravel()) == {60, 61, 70, 71}
    assert set(found[:, 8:].ravel()) == {62, 63, 72, 73}


@pytest.mark.parametrize(("before", "now"), [(1, 2), (2, 1), (2, 4), (4, 2)])
def test_a_buffer_on_another_number_of_devices_has_the_same_elements(before, now, monkeypatch):
    def on(num):
        for module in ("rlx.replay", "rlx.rollout", "rlx.devices.sharding"):
            monkeypatch.setattr(f"{module}.num_blocks", lambda: num)
        monkeypatch.setattr("rlx.devices.sharding._constrain", lambda x, spec: x)

    def held(buffer):
        index = sample(buffer, jax.random.key(0), (400, 16))
        return set(np.asarray(take(buffer, index)).ravel())

    on(before)
    buffer = replay(jax.ShapeDtypeStruct((), jnp.int32), capacity=16, spare=8)
    for i in range(5):
        buffer = insert(buffer, jnp.arange(8) + 10 * i)
    assert held(buffer) == {*range(30, 38), *range(40, 48)}
    moved = arranged(buffer, now)
    on(now)
    with pytest.raises(ValueError, match=f"a replay buffer of {before} devices is used on {now}"):
        insert(buffer, jnp.arange(8))
    assert held(moved) == {*range(30, 38), *range(40, 48)}
    moved = insert(moved, jnp.arange(8) + 50)  # and goes on by dropping the oldest
    assert held(moved) == {*range(40, 48), *range(50, 58)}


@pytest.mark.more
def test_a_run_goes_on_with_another_number_of_devices(tmp_path, capsys):
    out = ["--out", str(tmp_path / "run")]
    main(["train", *SAC, "--num-envs", "4", "--total-steps", "128", *DEVICES, *out])
    assert json.loads((tmp_path / "run" / "config.json").read_text())["devices"] == 2
    assert len(list((tmp_path / "run" / "episodes").iterdir())) == 1
    resume = ["train", "--resume", str(tmp_path / "run"), "--no-compile-cache"]
    main([*resume, "--total-steps", "192"])
    said = capsys.readouterr().out
    assert "evaluation after 192 steps" in said
    assert "instead of 2" not in said  # as many as before, unless it is told otherwise
    main([*resume, "--total-steps", "256", "--devices", "1"])
    assert "1 devices instead of 2" in capsys.readouterr().out
    main(["eval", str(tmp_path / "run"), "--num-episodes", "3", "--no-compile-cache"])
    updates = [json.loads(line)["update"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert updates == list(range(1, updates[-1] + 1))


@pytest.mark.filterwarnings("ignore:use_devices comes too late")
@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--num-envs", "3", "--devices", "2"], "num_envs = 3 does not split over 2 devices"),
        (["--num-envs", "4", "--devices", "3"], "--devices 3: there are 2"),
        (["--num-envs", "4", "--devices", "0"], "--devices 0: there are 2"),
    ],
)
def test_devices_that_do_not_fit_are_refused_before_anything_is_written(arguments, complaint, tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main(["train", *PPO, "--total-steps", "128", "--out", str(tmp_path / "run"), *arguments])
    assert error.value.code == 2
    assert complaint in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "cores"),
    [
        ({"num_envs": 1023}, 1),
        ({"num_envs": 1024}, 4),
        ({"num_envs": 1026, "num_steps": 4, "num_minibatches": 2}, 3),
        ({"num_envs": 1031}, 1),
        ({"num_envs": 1024, "num_steps": 1, "num_minibatches": 512}, 2),
    ],
)
def test_many_environments_take_as_many_cores_as_fit(settings, cores, monkeypatch, ppo):
    monkeypatch.setattr("rlx.cli.train.num_cores", lambda: 4)
    assert cores_for(ppo.Config(**settings)) == cores


def test_collectives_of_a_program_have_their_kinds_and_bytes(two):
    def program(x):
        return x.sum(0), sharding.whole(2 * x), sharding.split(3 * x, axis=1)

    split = jax.ShapeDtypeStruct((6, 8), jnp.float32, sharding=two)
    found = sharding.collectives(jax.jit(program).lower(split).compile())
    assert {kind for kind, _ in found} == {"all-gather", "all-reduce", "all-to-all"}
    assert {("all-gather", 6 * 8 * 4), ("all-reduce", 8 * 4)} <= set(found)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: flatten(jnp.zeros((2, 3))), "num_envs = 3 does not split over 2 devices"),
        (lambda: minibatches(jax.random.key(0), 9, 3, 1), "the number of elements = 9 does not split over 2 devices"),
        (lambda: minibatches(jax.random.key(0), 8, 8, 1), "the number of elements / 2 devices = 4 is not a multiple"),
        (lambda: replay(jnp.zeros(()), 7, 2), "the capacity of the replay buffer = 7 does not split over 2 devices"),
    ],
)
def test_what_does_not_split_says_so(two, call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call()
