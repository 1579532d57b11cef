"""One line for causes outside of a program, a traceback for its own mistakes."""

import errno
import os
import subprocess
import sys

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from dassl.data.wrapper import BadImageError
from dassl.errors import DEBUG_VARIABLE, ending, plain_errors, plain_main
from dassl.utils.torchtools import atomic_torch_save
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, "make space there"),
        (errno.EDQUOT, "make space there"),
        (errno.EROFS, "choose a folder that can be written"),
        (errno.EACCES, "change its permissions"),
        (errno.EMFILE, "ulimit -n"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
        (errno.ENOTDIR, "a file is where a folder is needed"),
        (errno.EFBIG, "ulimit -f"),
    ],
)
def test_the_systems_errors_name_the_path_the_reason_and_what_helps(number, hint):
    line, status = ending(OSError(number, os.strerror(number), "/some/where"))
    assert line.startswith(f'"/some/where": {os.strerror(number)}; ')
    assert hint in line
    assert status == 1


@pytest.mark.parametrize(
    ("error", "parts"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a "
                                "total capacity of 79 GiB. Of the allocated memory 70 GiB is ..."),
         ["Tried to allocate 20.00 MiB", "BATCH_SIZE", "OPTIM.ACCUMULATE",
          "TRAIN.GRAD_CHECKPOINTING", "ENCODER_BATCH"]),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't "
                      "allocate memory: you tried to allocate 400 bytes."), ["400", "BATCH_SIZE"]),
        (MemoryError(), ["out of memory", "BATCH_SIZE"]),
        (RuntimeError("DataLoader worker (pid 12) is killed by signal: Bus error. It is possible "
                      "that dataloader's workers are out of shared memory."),
         ["pid 12", "Bus error", "/dev/shm", "NUM_WORKERS 0"]),
        (RuntimeError("DataLoader worker (pid(s) 12, 13) exited unexpectedly"), ["12, 13"]),
        (RuntimeError("Too many open files. Communication with the workers is no longer possible."
                      "\nPlease increase the limit"), ["Too many open files", "ulimit -n"]),
        (RuntimeError("unable to write to file </torch_9_0>: No space left on device (28)"),
         ["/dev/shm"]),
        (FloatingPointError("the loss is NaN in epoch 2"), ["the loss is NaN in epoch 2"]),
        (ValueError("two\n  lines"), ["two lines"]),
    ],
)  # fmt: skip
def test_what_the_machine_lacks_is_one_line(error, parts):
    line, status = ending(error)
    assert status == 1
    assert "\n" not in line
    for part in parts:
        assert part in line
    assert "Of the allocated" not in line


@pytest.mark.parametrize(
    "error",
    [KeyError("x"), TypeError("x"), AttributeError("x"), IndexError(), ZeroDivisionError(),
     RuntimeError("mat1 and mat2 shapes cannot be multiplied (1x2 and 3x4)")],
)  # fmt: skip
def test_a_mistake_in_the_code_keeps_its_traceback(error):
    assert ending(error) is None
    with pytest.raises(type(error)), plain_errors():
        raise error


class Failing(Dataset):
    def __init__(self, error):
        self.error = error

    def __len__(self):
        return 2

    def __getitem__(self, index):
        try:
            raise ValueError("what came before it")
        except ValueError as first:
            raise self.error from first


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (BadImageError('Cannot decode the image "a.png": cut off'),
         'Cannot decode the image "a.png": cut off'),
        (ValueError("label 7 of 3"), "label 7 of 3"),
        (OSError(errno.EMFILE, "Too many open files", "a.png"),
         "Too many open files: 'a.png'; raise the limit (ulimit -n 4096), or lower "
         "DATALOADER.NUM_WORKERS"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
         "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"),
    ],
)  # fmt: skip
def test_an_error_of_a_worker_process_is_its_cause_alone(error, line):
    with pytest.raises(SystemExit) as stop, plain_errors():
        list(DataLoader(Failing(error), num_workers=1))
    assert stop.value.code == f"error: {line}"


def test_a_mistake_in_a_worker_process_keeps_its_traceback():
    with pytest.raises(KeyError, match="Original Traceback"), plain_errors():
        list(DataLoader(Failing(KeyError("x")), num_workers=1))


def test_debug_shows_where_an_error_came_from(monkeypatch):
    with pytest.raises(ValueError, match="x"), plain_errors(debug=True):
        raise ValueError("x")
    monkeypatch.setenv(DEBUG_VARIABLE, "1")
    with pytest.raises(ValueError, match="x"):
        plain_main(lambda: int("x"))()
    monkeypatch.setenv(DEBUG_VARIABLE, "0")
    assert plain_main(lambda: int("x"))() == 1


def test_a_main_returns_its_status_or_that_of_its_error(capsys):
    @plain_main
    def main(number):
        if number == 130:
            raise KeyboardInterrupt
        if number == 2:
            sys.exit(2)
        if number == 1:
            raise FileNotFoundError("no such run")
        return number

    assert main(0) == 0
    assert capsys.readouterr().err == ""
    assert main(1) == 1
    assert capsys.readouterr().err == "error: no such run\n"
    for number in (2, 130):
        with pytest.raises(SystemExit) as stop:
            main(number)
        assert stop.value.code == number
    assert capsys.readouterr().err == "error: interrupted; what was finished is kept\n"


WRITER = """
from dassl.errors import plain_errors
with plain_errors():
    for number in range(200_000):
        print(number)
"""


def write(**where):
    return subprocess.Popen(
        [sys.executable, "-c", WRITER], cwd=REPOSITORY, stderr=subprocess.PIPE, text=True, **where
    )


def test_a_reader_that_goes_ends_the_program_with_one_line():
    process = write(stdout=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == "error: the reader of the output has gone (as after | head)\n"
    assert process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has /dev/full")
def test_output_to_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        process = write(stdout=full)
        said = process.communicate()[1]
    assert said == "error: No space left on device; make space there, or write to another folder\n"
    assert process.returncode == 1


LIMITED = """
import resource, signal, sys, torch
from dassl.errors import plain_errors
from dassl.utils.torchtools import atomic_torch_save
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
with plain_errors():
    atomic_torch_save({"weights": torch.zeros(50_000)}, sys.argv[1])
"""


def test_a_checkpoint_that_cannot_be_written_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "model.pth.tar-1"
    atomic_torch_save({"weights": torch.ones(3)}, path)
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(path)], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f'error: "{path}": File too large; raise the limit')
    assert done.stderr.count("\n") == 1
    assert torch.load(path, weights_only=True)["weights"].sum() == 3
    assert os.listdir(tmp_path) == [path.name]


def test_what_goes_wrong_in_all_processes_of_a_run_is_said_once(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(REPOSITORY)!r})\n"
        "from dassl.errors import plain_errors\n"
        "with plain_errors():\n    raise ValueError('the same everywhere')\n"
    )
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]
    done = subprocess.run([*launcher, str(program)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr.count("error: the same everywhere") == 1
