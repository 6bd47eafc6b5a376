"""States on disk come back bit for bit, or not at all and with a reason."""

import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlx.pytree import pytree
from rlx.run.checkpoint import KEEP, numbers, read, restore, save, set_aside


@pytree
class State:
    weights: dict
    empty: jax.Array
    key: jax.Array
    flag: jax.Array
    count: jax.Array


STATE = State(
    weights={"a": jnp.array([jnp.nan, -0.0, 1e-40]), "b": [jnp.ones((2, 3), jnp.bfloat16), jnp.uint8(7)]},
    empty=jnp.zeros((3, 0)),
    key=jax.random.split(jax.random.key(3), 2),
    flag=jnp.array(True),
    count=jnp.int32(5),
)


def bits(leaf):
    leaf = jax.random.key_data(leaf) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else leaf
    return leaf.shape, leaf.dtype, np.asarray(leaf).tobytes()


def content(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_restore_is_bitwise(tmp_path):
    save(tmp_path, 5, STATE)
    found = restore(tmp_path, jax.eval_shape(lambda: STATE))
    assert jax.tree.structure(found) == jax.tree.structure(STATE)
    assert jax.tree.map(bits, found) == jax.tree.map(bits, STATE)


def test_restored_leaves_get_the_sharding_that_is_asked_for(tmp_path):
    save(tmp_path, 0, {"lanes": jnp.arange(4.0)})
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("lane",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("lane"))
    found = restore(tmp_path, {"lanes": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=sharding)})
    assert found["lanes"].sharding == sharding


def test_the_newest_and_those_asked_for_are_kept(tmp_path):
    for count in range(KEEP + 4):
        save(tmp_path, count, {"count": jnp.int32(count)}, keep=[1])
    assert numbers(tmp_path) == [1, *range(4, KEEP + 4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, numbers(tmp_path)))
    assert restore(tmp_path, {"count": jnp.int32(0)}) == {"count": KEEP + 3}
    assert restore(tmp_path, {"count": jnp.int32(0)}, num_updates=1) == {"count": 1}
    with pytest.raises(ValueError, match=r"no checkpoint of update 2: there are 1, 4, 5, 6"):
        restore(tmp_path, {"count": jnp.int32(0)}, num_updates=2)


def test_a_checkpoint_that_is_there_is_not_written_again(tmp_path):
    save(tmp_path, 1, {"count": jnp.int32(1)})
    before = content(tmp_path)
    save(tmp_path, 1, {"count": jnp.int32(2)})
    assert content(tmp_path) == before


def test_a_state_of_another_structure_is_refused_leaf_by_leaf(tmp_path):
    save(tmp_path, 1, {"a": jnp.ones(3), "b": jnp.ones((2, 2)), "c": jnp.int32(0)})
    with pytest.raises(ValueError, match="does not fit") as error:
        restore(tmp_path, {"a": jnp.ones(4), "b": jnp.ones((2, 2)), "d": jax.random.key(0)})
    for part in ("a is float32[3], not float32[4]", "it has no d", "it has c, which is not wanted"):
        assert part in str(error.value)
    assert " b " not in str(error.value)
    for other in ({"a": jnp.ones(3), "b": jnp.ones((2, 2)), "c": jnp.float32(0)}, {"a": jnp.ones(3)}):
        with pytest.raises(ValueError, match="does not fit"):
            restore(tmp_path, other)


def test_a_state_of_another_run_is_refused_with_the_difference(tmp_path):
    about = {"run": {"env": "A", "config": {"gamma": 0.9, "clip": 0.2, "gone": 1}}, "log": [1.5, None]}
    save(tmp_path, 1, {"a": jnp.ones(3)}, about)
    assert read(tmp_path) == about
    same = {"run": {"env": "A", "config": {"gamma": 0.9, "clip": 0.2, "new": 1}}}
    restore(tmp_path, {"a": jnp.ones(3)}, about=same)
    other = {"run": {"env": "B", "config": {"gamma": 0.99, "clip": 0.2}}}
    with pytest.raises(ValueError, match=r"another run: run\.env is A, not B, run\.config\.gamma is 0\.9, not 0\.99$"):
        restore(tmp_path, {"a": jnp.ones(3)}, about=other)


def test_a_checkpoint_of_another_format_is_refused(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("rlx.run.checkpoint.FORMAT", 0)
        save(tmp_path, 1, {"a": jnp.ones(3)})
    with pytest.raises(ValueError, match=r"has format 0, written by rlx .*, which reads format 1"):
        restore(tmp_path, {"a": jnp.ones(3)})


def test_an_empty_directory_holds_no_checkpoint(tmp_path):
    for directory in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="holds no checkpoint"):
            restore(directory, {"a": jnp.ones(3)})
        assert numbers(directory) == []
    assert not (tmp_path / "nowhere").exists()


DAMAGES = {
    "deleted": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "flipped": lambda path: path.write_bytes(flipped(path.read_bytes(), len(path.read_bytes()) // 2)),
    "garbled": lambda path: path.write_bytes(np.random.default_rng(0).bytes(len(path.read_bytes()))),
}


def flipped(data, position):
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Two checkpoints of `STATE`."""
    directory = tmp_path_factory.mktemp("saved")
    save(directory, 1, STATE)
    save(directory, 2, STATE)
    return directory


@pytest.mark.parametrize("damage", DAMAGES)
def test_any_damage_to_any_file_is_found_and_an_older_checkpoint_is_offered(saved, tmp_path, damage):
    files = [path.relative_to(saved) for path in (saved / "2").rglob("*") if path.is_file()]
    assert len(files) > 5
    for number, file in enumerate(files):
        directory = tmp_path / str(number)
        shutil.copytree(saved, directory)
        DAMAGES[damage](directory / file)
        before = content(directory)
        with pytest.raises(ValueError, match=r"2 is damaged: .*--from-update 1 takes the newest intact one") as error:
            restore(directory, jax.eval_shape(lambda: STATE))
        assert str(Path(*file.parts[1:])) in str(error.value)
        assert "\n" not in str(error.value)
        assert content(directory) == before
    found = restore(directory, jax.eval_shape(lambda: STATE), num_updates=1)
    assert jax.tree.map(bits, found) == jax.tree.map(bits, STATE)


def test_any_flipped_bit_of_the_description_is_found_or_changes_nothing(saved, tmp_path):
    path = tmp_path / "1" / "about.json"
    shutil.copytree(saved / "1", path.parent)
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(flipped(data, position))
        try:
            read(tmp_path)
        except ValueError as error:
            assert "about.json" in str(error)  # noqa: PT017
        else:
            assert json.loads(path.read_text()) == json.loads(data)


def test_where_everything_is_damaged_nothing_is_offered(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "both")
    for path in (tmp_path / "both").glob("*/state/manifest.ocdbt"):
        path.unlink()
    with pytest.raises(ValueError, match="no older one is intact"):
        restore(tmp_path / "both", jax.eval_shape(lambda: STATE))


class KilledError(Exception):
    pass


def killed(*args, **kwargs):
    raise KilledError


def test_a_save_that_is_cut_short_leaves_no_checkpoint_and_is_cleaned_up(tmp_path, monkeypatch):
    save(tmp_path, 1, {"count": jnp.int32(1)})
    for moment in ("rlx.run.checkpoint._checksums", "pathlib.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(moment, killed)
            with pytest.raises(KilledError):
                save(tmp_path, 2, {"count": jnp.int32(2)})
        assert numbers(tmp_path) == [1]
        assert restore(tmp_path, {"count": jnp.int32(0)}) == {"count": 1}
    save(tmp_path, 2, {"count": jnp.int32(2)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2"]


def test_a_deletion_that_is_cut_short_leaves_no_half_checkpoint(tmp_path, monkeypatch):
    for count in range(KEEP):
        save(tmp_path, count, {"count": jnp.int32(count)})
    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", killed)
        with pytest.raises(KilledError):
            save(tmp_path, KEEP, {"count": jnp.int32(KEEP)})
    assert numbers(tmp_path) == list(range(1, KEEP + 1))
    save(tmp_path, KEEP + 1, {"count": jnp.int32(KEEP + 1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(2, KEEP + 2)]


def test_what_is_set_aside_is_out_of_the_way_and_still_there(tmp_path):
    directory = tmp_path / "checkpoints"
    for _ in range(2):
        for count in (1, 2, 3):
            save(directory, count, {"count": jnp.int32(count)})
        set_aside(directory, 1)
        assert numbers(directory) == [1]
    aside = tmp_path / "checkpoints-set-aside"
    assert sorted(path.name for path in aside.iterdir()) == ["2", "2-2", "3", "3-2"]
    assert restore(aside, {"count": jnp.int32(0)}) == {"count": 3}
