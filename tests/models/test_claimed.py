"""Worker processes of one machine get different devices, and a device is free again when its process has died."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from compcomp.models.claimed import claimed

pytest.importorskip("fcntl")
CLAIM = """
import sys
from pathlib import Path
from compcomp.models.claimed import claim
print(claim(2, Path(sys.argv[1])), claim(2, Path(sys.argv[1])), flush=True)
sys.stdin.read()
"""


@contextmanager
def worker(directory: Path) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-c", CLAIM, str(directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
        process.kill()


def test_each_process_has_its_own(tmp_path: Path) -> None:
    with worker(tmp_path) as (first, one), worker(tmp_path) as (second, _):
        assert (first, second) == ("0 0", "1 1"), "asked again, a process has the device that it had"
        with worker(tmp_path) as (third, _):
            assert third == "None None", "there are no more"
        one.kill()
        one.wait()
        with worker(tmp_path) as (fourth, _):
            assert fourth == "0 0", "that of the process that was killed"


def test_other_devices_are_shared() -> None:
    assert claimed(torch.device("cpu")) == torch.device("cpu")
