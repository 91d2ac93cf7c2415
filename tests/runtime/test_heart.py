from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import faulthandler, io, os, signal, sys
from pathlib import Path
from dist_train.runtime import children
from dist_train.runtime.heart import redirect_output

sys.stdout, sys.stderr = open(sys.argv[2], "w"), open(sys.argv[2], "w")  # as Ray does
redirect_output(Path(sys.argv[1]))
children.dump_stacks_on_request()
print("said")
print("complained", file=sys.stderr)
os.kill(os.getpid(), signal.SIGQUIT)
os.write(1, b"written")
"""


def test_all_that_a_process_prints_and_its_stacks_go_to_its_log(tmp_path: Path) -> None:
    log, elsewhere = tmp_path / "logs" / "worker.log", tmp_path / "elsewhere"
    subprocess.run([sys.executable, "-c", PROGRAM, str(log), str(elsewhere)], check=True, timeout=60)
    text = log.read_text()
    for expected in ("said", "complained", "most recent call first", "written"):
        assert expected in text
    assert elsewhere.read_text() == ""


DEAF = """
import os, signal, threading
from dist_train.runtime.heart import leave_interrupts_to_the_conductor

thread = threading.Thread(target=leave_interrupts_to_the_conductor)
thread.start()
thread.join()
for number in (signal.SIGTERM, signal.SIGINT):
    os.kill(os.getpid(), number)
print("alive")
"""


def test_what_a_scheduler_sends_to_all_processes_ends_only_the_conductor() -> None:
    ended = subprocess.run([sys.executable, "-c", DEAF], check=True, timeout=60, capture_output=True)
    assert ended.stdout == b"alive\n"
