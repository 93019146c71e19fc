"""Programs as processes of their own, without the seconds that imports take.

One process has imported what they import, and becomes two for each: arguments, output and exit
status are those of `python -m NAME`.
"""

import gc
import importlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

TIMEOUT_S = 240


class Programs:
    """Runs some modules, one after another."""

    def __init__(self, *names: str):
        command = [sys.executable, "-m", "tests.programs", *names]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._server = subprocess.Popen(command, **pipes, text=True)

    def run(self, name: str, *flags: str, **environment) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            request = json.dumps([name, flags, os.getcwd(), environment, str(out), str(err)])
            print(request, file=self._server.stdin, flush=True)
            status = int(self._server.stdout.readline())
            return subprocess.CompletedProcess(
                [name, *flags], status, out.read_text(), err.read_text()
            )

    def close(self) -> None:
        self._server.communicate()


def serve(names: list[str]) -> list | None:
    """Answer requests with exit statuses; in a new process, the request that it is for."""
    for name in names:
        importlib.import_module(name)
        del sys.modules[name]  # what is run is imported as it starts
        package, _, last = name.rpartition(".")
        delattr(sys.modules[package], last)
    gc.freeze()  # else each process that ends looks through all of it: 0.3 s
    for line in sys.stdin:
        if (child := os.fork()) == 0:
            return json.loads(line)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


def become(name: str, flags: list[str], cwd: str, environment: dict, out: str, err: str) -> None:
    for number, path in enumerate((os.devnull, out, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT)
        os.dup2(file, number)
        os.close(file)
    signal.alarm(TIMEOUT_S)
    os.chdir(cwd)
    os.environ.update(environment)
    sys.argv[1:] = flags
    runpy.run_module(name, run_name="__main__", alter_sys=True)


if __name__ == "__main__" and (request := serve(sys.argv[1:])):
    become(*request)
