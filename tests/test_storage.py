"""Who owns a run directory, and what a full disk is called."""

import contextlib
import errno
import fcntl
import os
import resource
import signal
import subprocess
import sys

import numpy as np
import pytest

from rlx.run import checkpoint
from rlx.run.storage import CLAIM, Full, beside, check_empty, naming, owned, reason, reserved


def test_one_of_two_owners_is_refused_while_the_other_is_there(tmp_path):
    with owned(tmp_path / "run"):
        for resume in (False, True):
            with pytest.raises(ValueError, match="another process"), owned(tmp_path / "run", resume=resume):
                pass
        (tmp_path / "run" / "config.json").write_text("{}")
    with owned(tmp_path / "run", resume=True):
        pass
    with pytest.raises(ValueError, match="resume it by --resume"), owned(tmp_path / "run"):
        pass


def test_who_wants_to_own_a_directory_waits_for_one_that_only_looks(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    looking = os.open(tmp_path / "run", os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)  # as is_owned does for a moment
    monkeypatch.setattr("rlx.run.storage.time.sleep", lambda seconds: os.close(looking))
    with owned(tmp_path / "run"):
        pass


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    with (
        owned(tmp_path / "runs" / "a", numbered=True) as first,
        owned(tmp_path / "runs" / "a", numbered=True) as second,
    ):
        assert (first.name, second.name) == ("a", "a-2")


def test_what_a_killed_process_owned_is_free_again(tmp_path):
    code = "import sys\nfrom pathlib import Path\nfrom rlx.run.storage import owned\n"
    code += f"with owned(Path({str(tmp_path / 'run')!r})): print(1, flush=True), input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"1\n"
        with pytest.raises(ValueError, match="another process"), owned(tmp_path / "run"):
            pass
        process.send_signal(signal.SIGKILL)
    with owned(tmp_path / "run"):
        pass


def test_a_start_that_fails_leaves_nothing_behind(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), owned(tmp_path / "runs" / "deep" / "run") as directory:
        (directory / "config.tmp").write_text("{")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    with owned(tmp_path / "mine"):
        pass
    assert (tmp_path / "mine").exists()  # it was there before


def test_a_start_that_fails_late_leaves_what_it_wrote(tmp_path):
    with contextlib.suppress(KeyboardInterrupt), owned(tmp_path / "run") as directory:
        (directory / "config.json").write_text("{}")
        raise KeyboardInterrupt
    assert (tmp_path / "run" / "config.json").exists()


def test_a_file_is_no_directory(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        check_empty(tmp_path / "file")
    with pytest.raises(ValueError, match="is a file"), owned(tmp_path / "file"):
        pass


def test_where_nothing_can_be_locked_new_directories_are_marked_and_old_ones_resumed_with_a_word(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks")

    monkeypatch.setattr(fcntl, "flock", refuse)
    said = []
    with owned(tmp_path / "run", say=said.append):
        assert (tmp_path / "run" / CLAIM).exists()
        with pytest.raises(ValueError, match="claimed by another"), owned(tmp_path / "run"):
            pass
        (tmp_path / "run" / "config.json").write_text("{}")
        assert (tmp_path / "run" / CLAIM).exists()
    assert not (tmp_path / "run" / CLAIM).exists()
    assert said == []
    with owned(tmp_path / "run", resume=True, say=said.append):
        pass
    assert "cannot be locked" in said[0]


def test_an_output_file_has_one_writer_and_is_not_overwritten(tmp_path):
    path = tmp_path / "deep" / "demonstrations.npz"
    with reserved(path), pytest.raises(ValueError, match="another process"), reserved(path):
        pass
    assert not path.exists()  # nothing was written
    with reserved(path):
        path.write_bytes(b"1")
    with pytest.raises(ValueError, match="is there already"), reserved(path):
        pass
    assert path.read_bytes() == b"1"


def test_the_output_about_a_run_that_cannot_be_written_goes_elsewhere_and_is_said(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    said = []
    assert beside(tmp_path / "run", "episode.gif", said.append) == tmp_path / "run" / "episode.gif"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert beside(tmp_path / "run", "evaluations/a.json", said.append).name == "run-evaluations-a.json"
    assert "--output" in said[0]
    assert len(said) == 1


TENSORSTORE = "RESOURCE_EXHAUSTED: Error writing \"x\": Failed to write 9 bytes: [os_error_code='28']"


@pytest.mark.parametrize(
    ("error", "found"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "no space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "quota"),
        (PermissionError(errno.EROFS, "Read-only file system"), "read-only"),
        (ValueError(TENSORSTORE), "no space left"),
        (RuntimeError("write failed: Input/output error"), "device failed"),
        (ValueError("num_envs has to be positive"), None),
        (FileNotFoundError(errno.ENOENT, "No such file"), None),
    ],
)
def test_the_storage_is_named_whatever_library_failed(error, found):
    assert reason(error) is None if found is None else found in reason(error)
    outer = RuntimeError("saving failed")
    outer.__cause__ = error
    assert reason(outer) == reason(error)


def test_a_full_disk_is_one_sentence_with_what_is_safe(tmp_path):
    with (
        pytest.raises(Full, match="no space left on the device; update 3 is safe"),
        naming(tmp_path, lambda: "update 3 is safe"),
    ):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(ValueError, match="else"), naming(tmp_path, lambda: "safe"):
        raise ValueError("else")


@contextlib.contextmanager
def largest_file(size):
    """Files of this process cannot grow beyond `size` bytes: what a full disk does, without a disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_checkpoint_that_does_not_fit_is_removed_and_the_one_before_stays(tmp_path, capfd):
    small, large = {"x": np.zeros(4)}, {"x": np.random.default_rng(0).normal(size=1 << 18)}
    checkpoint.save(tmp_path / "checkpoints", 1, small)
    with largest_file(1 << 16), pytest.raises(OSError, match="larger than the limit"):
        checkpoint.save(tmp_path / "checkpoints", 2, large)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert checkpoint.restore(tmp_path / "checkpoints", small)["x"].tolist() == [0.0] * 4
    assert "Traceback" not in capfd.readouterr().err
    checkpoint.save(tmp_path / "checkpoints", 2, large)
    assert checkpoint.numbers(tmp_path / "checkpoints") == [1, 2]
