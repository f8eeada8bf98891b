"""What a process made before it was forked, used in both processes after that."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

FORKS = """
import os, sys
from farpool import Pool, Queue

def forked(act):
    child = os.fork()
    if child == 0:
        os._exit(0 if act() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0

def refused(pool):
    try:
        pool.apply(abs, (-1,))
    except ValueError as error:
        return "make one after forking" in str(error)

def absolute(url):
    with Pool(1, url=url) as pool:
        return pool.map(abs, [-2]) == [2]

if __name__ == "__main__":
    url = sys.argv[1]
    queue = Queue(url=url)
    assert queue.enqueue(abs, -1).get(20) == 1
    forked(lambda: queue.enqueue(abs, -2).get(20) == 2)
    assert queue.enqueue(abs, -3).get(20) == 3
    for where in (None, url):
        with Pool(1, url=where) as pool:
            assert pool.apply(abs, (-4,)) == 4
            forked(lambda: refused(pool) and absolute(where))
            assert pool.apply(abs, (-5,)) == 5
"""


@pytest.mark.usefixtures("node")
def test_both_processes_go_on(url: str, tmp_path: Path) -> None:
    script = tmp_path / "forks.py"
    script.write_text(FORKS)
    done = subprocess.run(
        [sys.executable, script, url], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
