"""A study that is killed, runs out of disk, or meets another one: nothing finished is lost."""

import dataclasses
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from scripts.run_folder import only_run_in
from scripts.study import prepare, read, report, results, run, runner, workers
from scripts.study.cells import groups
from scripts.study.storage import OtherStudyError, Store
from scripts.study.workers import DeviceWorker, ProcessWorker
from tests.scripts.studies import quiet, small, vectors

ROOT = Path(__file__).resolve().parents[2]


def command(out, devices=1):
    """The command of `small`, in a process of its own."""
    fields = "--name small --n-train 6 --n-test 6 --architectures MLP --widths 16 32 --depths 1"
    fields += " --parameterizations NTK --seeds 0 --orders 2 --measures"
    fields += " --no-predicted-kernels --no-infinite-width --times 0.3 3 --taylor-orders"
    words = [sys.executable, "-m", "scripts", "study", "--out", str(out), "--devices", str(devices)]
    return subprocess.Popen(
        [*words, *fields.split()],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "100"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run_command(out, devices=1):
    process = command(out, devices)
    stdout, stderr = process.communicate(timeout=600)
    return process.returncode, stdout, stderr


@pytest.fixture(scope="module", autouse=True)
def _without_reports():
    """They are tested elsewhere, and take longer than these studies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "write", lambda folder, runs: [])
        yield


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The results of a run that nothing interrupted."""
    return run(small(tmp_path_factory.mktemp("runs")), console=quiet())


def interrupted_at(monkeypatch, at, error):
    """Makes the computation of a cell raise, the `at`-th from 0."""
    compute, calls = workers.compute, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == at + 1:
            raise error
        return compute(*args)

    monkeypatch.setattr(workers, "compute", interrupted)


@pytest.mark.long
def test_what_was_interrupted_goes_on_to_the_same_results(tmp_path, monkeypatch, whole):
    interrupted_at(monkeypatch, 1, KeyboardInterrupt)
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path), console=console)
    dataset = read(tmp_path / "small")
    assert int(dataset["finished"].sum()) == 1
    assert "Interrupted after 1 of 2 cells" in console.file.getvalue()
    assert (tmp_path / "small" / "summary.txt").exists()
    console = quiet()
    assert run(small(tmp_path), console=console).equals(whole)
    assert read(tmp_path / "small").equals(whole)
    assert "1 of 2 cells of" in console.file.getvalue()
    sessions = json.loads(read(tmp_path / "small").attrs["provenance"])
    assert [session["cells"] for session in sessions] == [1, 1]


@pytest.mark.long
def test_the_journal_holds_what_is_not_in_the_results_yet(tmp_path, monkeypatch, whole):
    """As after a kill between the two: what the journal has is not computed again."""
    monkeypatch.setattr(Store, "write", lambda self: None)
    monkeypatch.setattr(Store, "close", lambda self: None)
    run(small(tmp_path), console=quiet())
    folder = tmp_path / "small"
    assert not (folder / results.FILE).exists()
    assert len(list((folder / "unfinished").iterdir())) == 2
    (folder / "unfinished" / ".half.npz.9.draft").write_bytes(b"killed while it was writt")
    results.write(folder, results.empty(small(tmp_path), prepare(small(tmp_path)).data))
    assert int(results.read(folder)["finished"].sum()) == 0
    assert read(folder).equals(whole)  # what `report` shows of a study that runs
    monkeypatch.undo()
    interrupted_at(monkeypatch, 0, AssertionError("computed again"))
    assert run(small(tmp_path), console=quiet()).equals(whole)
    assert not (folder / "unfinished").exists()


@pytest.mark.long
def test_a_disk_that_is_full_leaves_the_former_results(tmp_path, monkeypatch, whole):
    write = results.write
    calls = []

    def full(folder, dataset):
        calls.append(folder)
        if len(calls) == 2:
            draft = folder / f".{results.FILE}.draft"
            draft.write_bytes(b"half of the resu")
            draft.unlink()
            raise OSError(errno.ENOSPC, "No space left on device")
        write(folder, dataset)

    monkeypatch.setattr(results, "write", full)
    with pytest.raises(OSError, match="No space left"):
        run(small(tmp_path), console=quiet())
    folder = tmp_path / "small"
    assert int(results.read(folder)["finished"].sum()) == 1
    assert int(read(folder)["finished"].sum()) == 2  # the journal had room
    monkeypatch.undo()
    assert run(small(tmp_path), console=quiet()).equals(whole)


def test_a_kill_before_the_choices_were_written_leaves_a_folder_to_start_in(tmp_path, whole):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / ".config.json.123.draft").write_text('{"config": {"wid')
    assert run(small(tmp_path), console=quiet()).equals(whole)
    assert not (folder / ".config.json.123.draft").exists()


@pytest.mark.long
def test_a_study_does_not_go_on_with_other_data(tmp_path, monkeypatch):
    file = tmp_path / "vectors.npz"
    vectors(file, seed=0)
    config = small(tmp_path / "runs", dataset=str(file), classes=(0, 1))
    interrupted_at(monkeypatch, 1, KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        run(config, console=quiet())
    monkeypatch.undo()
    vectors(file, seed=1)
    with pytest.raises(OtherStudyError, match=r"holds a study of other data: the examples of .*v"):
        run(config, console=quiet())
    assert int(read(config.folder)["finished"].sum()) == 1
    vectors(file, seed=0)
    assert bool(run(config, console=quiet())["finished"].all())


def test_a_budget_is_for_what_is_missing(tmp_path, whole):
    """A study that is finished, under a budget that it would exceed."""
    config = small(tmp_path)
    run(config, console=quiet())
    assert prepare(dataclasses.replace(config, budget_minutes=1e-9)).folder == config.folder
    with pytest.raises(ValueError, match="`budget_minutes` is"):
        prepare(dataclasses.replace(config, name="new", budget_minutes=1e-9))


def test_a_report_that_fails_does_not_hide_why_the_study_stopped(tmp_path, monkeypatch):
    def broken(folder, runs):
        raise ZeroDivisionError("no figure")

    interrupted_at(monkeypatch, 1, KeyboardInterrupt)
    monkeypatch.setattr(report, "write", broken)
    console = quiet()
    with pytest.raises(KeyboardInterrupt):
        run(small(tmp_path), console=console)
    assert "The report failed too (ZeroDivisionError: no figure)" in console.file.getvalue()


@pytest.mark.long
def test_a_reader_who_leaves_does_not_stop_a_study(tmp_path, whole):
    process = command(tmp_path)
    process.stdout.close()
    with process.stderr:
        assert process.wait(timeout=600) == 0
    assert read(tmp_path / "small").equals(whole)
    assert (tmp_path / "small" / "report.html").exists()


@pytest.mark.long
def test_two_runs_in_one_folder_do_not_meet(tmp_path, whole):
    folder = tmp_path / "small"
    folder.mkdir()
    with only_run_in(folder):
        code, _, stderr = run_command(tmp_path)
        assert code == 2
        said = " ".join(stderr.split())
        assert "Another run is computing in" in said
        assert "wait for it, or choose another `name`" in said
        assert "make room" not in said
        assert not (folder / results.FILE).exists()
    assert run(small(tmp_path), console=quiet()).equals(whole)


@pytest.mark.long
def test_two_devices_find_the_same_as_one(tmp_path, whole):
    code, _, stderr = run_command(tmp_path, devices=2)
    assert code == 0, stderr
    assert read(tmp_path / "small").equals(whole)
    assert "process 1, process 2" in (tmp_path / "small" / "study.log").read_text()


def test_two_threads_find_the_same_as_one(tmp_path, monkeypatch, whole):
    """As on two accelerators."""

    def two(config, data, shared, log, most):
        (device, *_) = jax.local_devices()
        return [DeviceWorker(config, data, shared, device) for _ in range(2)]

    monkeypatch.setattr(runner, "workers", two)
    assert run(small(tmp_path), console=quiet()).equals(whole)


@pytest.mark.parametrize(
    ("script", "said"), [("exit 3", "ended with status 3"), ("kill -9 $$", "was killed by SIGKILL")]
)
def test_a_process_that_dies_takes_a_cell_with_it_and_no_more(tmp_path, monkeypatch, script, said):
    config = small(tmp_path)
    (cells, *_) = groups(dataclasses.replace(config, seeds=(0, 1)))
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    worker = ProcessWorker(config, prepare(config).data, tmp_path, tmp_path / "log", 1)
    found = list(worker.compute(cells, lambda cell, part: None))
    assert [cell for cell, _ in found] == cells
    assert [str(error) for _, error in found] == [f"its process {said}"] * 2


@pytest.mark.long
def test_a_process_ends_with_the_one_that_started_it(tmp_path):
    config = small(tmp_path)
    worker = ProcessWorker(config, prepare(config).data, tmp_path, tmp_path / "log", 1)
    with worker._process_for(groups(config)[0]) as process:
        process.stdin.close()  # as when the other is killed
        assert process.wait(timeout=120) == 1


def test_an_error_in_a_process_is_told_with_its_kind(tmp_path):
    config = small(tmp_path)
    data = prepare(config).data
    spoiled = eqx.tree_at(lambda d: d.x_train, data, jnp.full_like(data.x_train, jnp.nan))
    (cells, *_) = groups(config)
    worker = ProcessWorker(config, spoiled, tmp_path, tmp_path / "log", 1)
    ((_, error),) = worker.compute(cells, lambda cell, part: None)
    assert re.match(r"ValueError: `x1?` has \d+ entries out of \d+ that are not finite", str(error))


def test_results_that_are_damaged_are_named_and_left_alone(tmp_path):
    run(small(tmp_path), console=quiet())
    file = tmp_path / "small" / results.FILE
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"results.nc cannot be read .*move it away"):
        run(small(tmp_path), console=quiet())
    assert file.read_bytes() == content[: len(content) // 2]


def test_a_folder_of_something_else_is_refused_and_untouched(tmp_path):
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "thesis.tex").write_text("all of it")
    with pytest.raises(FileExistsError, match=r"holds no study \(it holds thesis.tex\)"):
        prepare(small(tmp_path))
    assert [file.name for file in folder.iterdir()] == ["thesis.tex"]


@pytest.mark.long
def test_a_target_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, stderr = run_command(tmp_path / "file")
    assert code == 2
    assert "error:" in stderr
    assert "Traceback" not in stderr


@pytest.mark.slow
def test_killed_at_ten_random_moments_it_ends_in_the_same_results(tmp_path, whole):
    """Kill -9, ten times at random, then to the end."""
    draw = random.Random(0)
    for _ in range(10):
        process = command(tmp_path, devices=2)
        time.sleep(draw.uniform(0.5, 25))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        folder = tmp_path / "small"
        if (folder / results.FILE).exists():  # whole, at any moment
            assert int(read(folder)["finished"].sum()) >= 0
    code, _, stderr = run_command(tmp_path)
    assert code == 0, stderr
    found = read(tmp_path / "small")
    assert found.equals(whole)
    hidden = sorted(file.name for file in (tmp_path / "small").glob(".*"))
    assert hidden == [".lock", ".report.json"]  # no draft


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, of 100 KiB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a file system needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(folder)]
    mounted = subprocess.run(words, capture_output=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.slow
def test_a_full_file_system_is_said_and_nothing_finished_is_lost(small_disk, whole):
    code, _, stderr = run_command(small_disk)
    assert code == 2
    said = " ".join(stderr.split())
    assert "No space left on device" in said
    assert "What was finished before is kept" in said
    assert "Traceback" not in stderr
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    code, _, stderr = run_command(small_disk)
    assert code == 0, stderr
    assert read(small_disk / "small").equals(whole)


@pytest.mark.slow
def test_a_file_system_for_reading_only_is_said_at_once(small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    code, _, stderr = run_command(small_disk)
    assert code == 2
    assert "Read-only file system" in stderr
    assert "Traceback" not in stderr
