"""What stays of the first process of a node: its number.

Whoever started the node (systemd, a container, a terminal) knows it by that process, and takes its
end for the node's. So when another process has taken over, the first one becomes this program,
which has nothing left of it: 8 MB, no secrets, no clients. It hands signals on, by number, and ends
as the last of its successors does, of which it says so if that was no orderly end.

A successor of a successor is its child, too: the kernel gives it whatever its children leave
(PR_SET_CHILD_SUBREAPER, set before). If it is killed, the pipe ends, which ends the node in order.

It runs as a script, isolated and without site-packages: nothing of Cachecast is imported here.
"""

import os
import signal
import sys
import time

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR2)


def stand_in(orders: int) -> int:
    """Hand signals on to whoever reads from a pipe, until no child is left; gives the exit code."""
    code = 0
    last = 0
    waited_for = {*SIGNALS, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, waited_for)
    while True:
        # First, for a child may have ended before signals were blocked.
        try:
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                last, code = ended[0], os.waitstatus_to_exitcode(ended[1])
        except ChildProcessError:
            if code:
                say_end(last, code)
            return code if code >= 0 else 128 - code
        number = signal.sigwait(waited_for)
        if number != signal.SIGCHLD:
            try:
                os.write(orders, bytes([number]))
            except OSError:
                pass  # it has ended, of which SIGCHLD tells


def say_end(pid: int, code: int) -> None:
    """Write a line for the log: the process that was the node has failed, and nobody else can."""
    end = f"exit code {code}" if code > 0 else signal.Signals(-code).name
    now = time.time()
    instant = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1e6):06}Z"
    line = (
        f'{{"pid": {pid}, "end": "{end}", '
        '"event": "the node has failed, its cached values are lost", '
        f'"level": "error", "timestamp": "{instant}"}}\n'
    )
    try:
        os.set_blocking(2, False)
        os.write(2, line.encode())
    except OSError:
        pass  # nobody reads it


if __name__ == "__main__":
    sys.exit(stand_in(int(sys.argv[1])))
