"""Start a command again whenever it fails: `python -m common.supervise [OPTIONS] -- COMMAND`.

    python -m common.supervise -- python -m born_mlp.train configs/born_mlp/paper.py
    python -m common.supervise --processes 2 -- python -m born_mlp.train CONFIG.py

One supervisor on each host of a pod keeps the run going by itself: when a process dies, JAX ends
the others, each supervisor starts its own again, and the run goes on from the newest checkpoint.
With `--processes` the supervisor makes a cluster of one machine.

Status 0 ends the supervisor; so do 2, a command line that no restart mends, and 143, a run
that was asked to stop and has saved: whoever asked decides what comes next. So do too many failures
one after the other without a newer checkpoint. A run says from which checkpoint it starts in the
file that the variable SUPERVISE_START names, as `common.checkpoint` does.
"""

import argparse
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from common.checkpoint import START_FILE

FINAL = (0, 2, 143)
"""Statuses after which nothing is started again."""


def supervise(
    command: Sequence[str],
    *,
    processes: int = 1,
    restarts: int = 10,
    backoff: float = 1.0,
) -> int:
    """Run a command until it ends well.

    Args:
      command: program and arguments.
      processes: how many of it make one run on this machine; 1 leaves the environment as it is.
      restarts: starts anew, one after the other from the same checkpoint, before giving up.
      backoff: seconds before the first restart, doubled at each up to a minute.

    Returns:
      The status of the last start: that of the first process that failed.
    """
    asked: list[int] = []
    running: list[subprocess.Popen[bytes]] = []

    def forward(signum: int, _: object) -> None:
        asked.append(signum)
        for process in running:
            process.send_signal(signum)

    previous = {s: signal.signal(s, forward) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        with tempfile.TemporaryDirectory() as folder:
            told = pathlib.Path(folder, "start")
            told.touch()
            failures, checkpoint = 0, ""
            while True:
                port = _free_port()
                running[:] = [
                    subprocess.Popen(
                        command, env={**_environment(i, processes, port), START_FILE: str(told)}
                    )
                    for i in range(processes)
                ]
                for signum in tuple(asked):  # what came while they were being started
                    forward(signum, None)
                status = _wait(running)
                if status in FINAL or asked:
                    return status
                # From another checkpoint than last time: the start before made progress.
                began_at = told.read_text()
                failures = failures + 1 if began_at == checkpoint else 1
                checkpoint = began_at
                if failures > restarts:
                    _say(f"status {status}; given up after {restarts} restarts")
                    return status
                pause = min(60.0, backoff * 2 ** (failures - 1))
                _say(f"status {status}; restart {failures} of {restarts} in {pause:g} s")
                time.sleep(pause)
                if asked:
                    return 128 + asked[0]
    finally:
        for process in running:
            process.kill()
        for signum, handler in previous.items():
            signal.signal(signum, handler)


def _wait(running: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; when one fails, the others, which cannot go on without it, are killed."""
    while True:
        statuses = [process.poll() for process in running]
        # 143 is no failure: the others are about to end with it, too.
        failed = [s for s in statuses if s not in (None, 0, 143)]
        if failed or None not in statuses:
            break
        time.sleep(0.05)
    for process in running:
        process.kill()
        process.wait()
    status = failed[0] if failed else max(s for s in statuses if s is not None)
    return status if status >= 0 else 128 - status


def _environment(process: int, processes: int, port: int) -> dict[str, str]:
    if processes == 1:
        return dict(os.environ)
    return {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(process),
    }


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("localhost", 0))
        port: int = found.getsockname()[1]
        return port


def _say(text: str) -> None:
    print(f"supervise: {text}", file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the options, and end with the status of the command."""
    head, _, rest = (__doc__ or "").partition("\n")  # python -OO keeps none
    parser = argparse.ArgumentParser(
        prog="python -m common.supervise",
        description=head,
        epilog=rest,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--processes", type=int, default=1, help="processes on this machine")
    parser.add_argument(
        "--restarts", type=int, default=10, help="starts anew from one checkpoint before giving up"
    )
    parser.add_argument("--backoff", type=float, default=1.0, help="seconds before the first")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    options = vars(parser.parse_args(argv))
    command = options.pop("command")
    command = command[1:] if command[:1] == ["--"] else command
    if not command:
        parser.error("no command: put it after --")
    sys.exit(supervise(command, **options))


if __name__ == "__main__":
    main()
