"""Runs a script in a network namespace of its own: every port is free, every name may be one's own.

Needs root and `ip`. The namespace and its hosts file are gone when the script is.
"""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

MARK = "INTEROP_NETNS"
ANSWERS_WITHIN = 10.0


def enter(hosts):
    """Comes back inside the namespace only: outside, runs the script again in there and exits as that does.

    `hosts` maps an address to the names that resolve to it.
    """
    # So that what the script has started and made goes with it.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    if MARK in os.environ:
        return
    name = f"adit-interop-{os.getpid()}"
    # `ip netns exec` puts the files of this directory over those of /etc.
    etc = pathlib.Path("/etc/netns") / name
    try:
        _ip("netns", "add", name)
        etc.mkdir(parents=True)
        lines = ["127.0.0.1 localhost", *(f"{address} {' '.join(names)}" for address, names in hosts.items())]
        (etc / "hosts").write_text("\n".join(lines) + "\n")
        _ip("-n", name, "link", "set", "lo", "up")
        command = ["ip", "netns", "exec", name, sys.executable, *sys.argv]
        status = _run(command, {**os.environ, MARK: name})
    finally:
        _remove(name, etc)
    sys.exit(status)


def _run(command, environment):
    with subprocess.Popen(command, env=environment) as script:
        try:
            return script.wait()
        except BaseException:
            script.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                script.wait(ANSWERS_WITHIN)
            script.kill()
            raise


def _remove(name, etc):
    # What the script left running has no other network to be in.
    left = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True, check=False)
    for pid in left.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    (etc / "hosts").unlink(missing_ok=True)
    for directory in (etc, etc.parent):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _ip(*arguments):
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`ip {' '.join(arguments)}` failed, which needs root: {done.stderr.strip()}")
