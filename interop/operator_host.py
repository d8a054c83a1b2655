"""A host on which a page for operators can be followed to the letter: used by `panel_operator.py`.

`enter` goes on in namespaces of mounts, processes and the network, on a copy of this machine's files that is
thrown away: what is installed in /etc is installed there, every port is free, and nothing of the machine's own
is touched. Needs root and Debian's tools.

systemd cannot run there. `Systemd` stands in for it: a program `systemctl` asks a thread of this script, which reads
the units that lie in /etc and /lib, asks the real polkit whether the caller may, and runs what they say. Their
sandbox is made of `setpriv`, of mounts, and of filters for system calls, address families, namespaces and memory that
is written and run, as systemd would load them (libseccomp, by `python3-seccomp`).
"""

import contextlib
import json
import os
import pathlib
import re
import shlex
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time

import expect

MARK = "INTEROP_HOST"
SOCKET = "/run/systemd-stand-in"
# certbot is written in it, so that it is there; the one that runs this script may be hidden from the unit.
SYSTEMCTL = """#!/usr/bin/python3
import json, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({socket!r})
asked.sendall(json.dumps(sys.argv[1:]).encode())
asked.shutdown(socket.SHUT_WR)
status, out, err = json.loads(b"".join(iter(lambda: asked.recv(65536), b"")))
sys.stdout.write(out)
sys.stderr.write(err)
sys.exit(status)
"""
# Runs a command with the filters of a unit. Python's own binding of libseccomp is Debian's.
FILTERED = """
import errno, json, os, sys
import seccomp as s
unit, command = json.load(open(sys.argv[1])), sys.argv[2:]

def filtered(otherwise, rules):
    each = s.SyscallFilter(otherwise)
    for action, call, *arguments in rules:
        try:
            each.add_rule(action, call, *arguments)
        except (OSError, RuntimeError, ValueError):
            # A call that this machine does not have, or that this library does not know yet.
            continue
    each.load()

refused, both = s.ERRNO(errno.EPERM), 0x2 | 0x4
families = [n for n in range(46) if n not in unit["families"]]
filtered(s.ALLOW, [(s.ERRNO(errno.EAFNOSUPPORT), "socket", s.Arg(0, s.EQ, n)) for n in families])
filtered(s.ALLOW, [(refused, "mmap", s.Arg(2, s.MASKED_EQ, both, both)),
                   *((refused, call, s.Arg(2, s.MASKED_EQ, 0x4, 0x4)) for call in ("mprotect", "pkey_mprotect"))])
flags = (0x80, 0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)
filtered(s.ALLOW, [(s.ERRNO(errno.ENOSYS), "clone3"),
                   *((refused, call, s.Arg(0, s.MASKED_EQ, flag, flag)) for call in ("clone", "unshare") for flag in flags)])
filtered(s.KILL_PROCESS, [(s.ALLOW, call) for call in unit["calls"]])
if unit["listening"] is not None:
    # As systemd gives a service what its socket unit has opened.
    os.dup2(unit["listening"], 3)
    os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(command[0], command)
"""
FAMILIES = {"AF_UNIX": 1, "AF_INET": 2, "AF_INET6": 10}
MANAGE_UNITS = "org.freedesktop.systemd1.manage-units"


def enter():
    """Comes back on the copy only: outside, runs the script again there and exits as that does."""
    if MARK not in os.environ:
        command = ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", sys.executable, *sys.argv]
        with tempfile.TemporaryDirectory(prefix="adit-host-") as place:
            sys.exit(subprocess.run(command, env={**os.environ, MARK: place}).returncode)
    here, place = pathlib.Path.cwd(), pathlib.Path(os.environ[MARK])
    run("mount --make-rprivate /")
    run(f"mount -t tmpfs tmpfs {place}")
    for name in ("upper", "work", "root"):
        (place / name).mkdir()
    root = place / "root"
    others = [line.split()[4] for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines()]
    run(f"mount -t overlay overlay -o lowerdir=/,upperdir={place}/upper,workdir={place}/work {root}")
    run(f"mount -t proc proc {root}/proc")
    run(f"mount -t tmpfs tmpfs {root}/run")
    for name in ("sys", "dev"):
        run(f"mount --rbind /{name} {root}/{name}")
    # A checkout, or a temporary directory, may lie in a file system of its own.
    for other in others:
        if not re.match(r"/($|proc|run|sys|dev)", other) and other != str(place) and (root / other[1:]).is_dir():
            run(f"mount --bind {other} {root}{other}")
    os.chroot(root)
    os.chdir(here)
    run("ip link set lo up")


def run(command, **named):
    """A command of an operator, which must succeed; what it prints."""
    named = {"shell": isinstance(command, str), "timeout": 120, "stdin": subprocess.DEVNULL, **named}
    done = subprocess.run(command, capture_output=True, text=True, **named)
    expect.equal(f"{command}: {done.stdout}{done.stderr}", done.returncode, 0)
    return done.stdout


class Polkit:
    """The system's D-Bus and polkit, as they are installed."""

    def __init__(self):
        pathlib.Path("/run/dbus").mkdir()
        run("dbus-daemon --system --fork --nopidfile")
        silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.daemon = subprocess.Popen(["/usr/lib/polkit-1/polkitd", "--no-debug"], **silent)
        expect.until("polkit answers", 10, lambda: self.check(os.getpid(), 0, "x.service", "start") == 0)

    def check(self, pid, uid, unit, verb):
        """0 if the process may; else what `pkcheck` says it is."""
        begun = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
        words = ["pkcheck", "--action-id", MANAGE_UNITS, "--process", f"{pid},{begun},{uid}"]
        details = ["--detail", "unit", unit, "--detail", "verb", verb]
        return subprocess.run([*words, *details], capture_output=True, timeout=20).returncode


class Unit:
    """A unit file, with the instance of a template filled in."""

    def __init__(self, name):
        stem, _, self.kind = name.rpartition(".")
        stem, at, instance = stem.partition("@")
        self.name, self.stem, file = name, stem, f"{stem}{at}.{self.kind}"
        places = [pathlib.Path(place) / file for place in ("/etc/systemd/system", "/lib/systemd/system")]
        self.path = next((path for path in places if path.exists()), None)
        self.values = {}
        for line in self.path.read_text().splitlines() if self.path else []:
            name, is_setting, value = line.partition("=")
            if is_setting and not line.startswith("#"):
                for written, meant in (("%i", instance), ("%t", "/run")):
                    value = value.replace(written, meant)
                self.values.setdefault(name, []).append(value)

    def __getitem__(self, name):
        return self.values.get(name, [None])[-1]

    def commands(self, name):
        """What is to be run: words, and whether its failure is none."""
        for line in self.values.get(name, []):
            words = [word.replace("$$", "$") for word in shlex.split(line.lstrip("-"))]
            yield words, line.startswith("-")


class Systemd:
    """Runs units as far as it goes; see above."""

    def __init__(self, polkit):
        self.polkit, self.services, self.sockets, self.asked = polkit, {}, {}, []
        systemctl = pathlib.Path("/usr/bin/systemctl")
        systemctl.unlink(missing_ok=True)
        systemctl.write_text(SYSTEMCTL.format(socket=SOCKET))
        systemctl.chmod(0o755)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(SOCKET)
        os.chmod(SOCKET, 0o666)
        self._listener.listen()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self):
        while True:
            peer, _ = self._listener.accept()
            threading.Thread(target=self._answer, args=[peer], daemon=True).start()

    def _answer(self, peer):
        with peer:
            words = json.loads(b"".join(iter(lambda: peer.recv(65536), b"")))
            pid, uid, _ = struct.unpack("3i", peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            try:
                answer = self._do(words, pid, uid)
            except Exception as error:
                answer = 1, "", f"{type(error).__name__}: {error}\n"
            with contextlib.suppress(OSError):
                peer.sendall(json.dumps(answer).encode())

    def _do(self, words, pid, uid):
        is_now = "--now" in words
        verb, *names = [word for word in words if not word.startswith("-")]
        if verb == "daemon-reload":
            return (0, "", "") if uid == 0 else (1, "", "Access denied\n")
        if verb in ("is-active", "show"):
            return 3, "inactive\n", ""
        for name in names:
            name = name if name.endswith((".service", ".socket")) else f"{name}.service"
            unit = Unit(name)
            if uid != 0 and self.polkit.check(pid, uid, name, verb) != 0:
                return 1, "", f"Failed to {verb} {name}: Access denied\n"
            self.asked.append((verb, name, uid))
            if not unit.path:
                return 5, "", f"Failed to {verb} {name}: Unit {name} not found.\n"
            if not all(self._carry_out(unit, each) for each in steps(verb, is_now)):
                see = f'See "systemctl status {name}" and "journalctl -xeu {name}" for details.\n'
                reason = "because the control process exited with error code"
                return 1, "", f"Job for {name} failed {reason}.\n{see}"
        return 0, "", ""

    def _carry_out(self, unit, verb):
        if verb == "reload":
            return all(call(words, unit) or is_fine for words, is_fine in unit.commands("ExecReload"))
        if unit.kind == "socket":
            return self._open(unit) if verb == "start" else self._close(unit)
        if verb == "stop":
            return self._end(unit.name)
        if unit["Type"] in ("oneshot", "forking"):
            every = [*unit.commands("ExecStartPre"), *unit.commands("ExecStart")]
            return all(call(words, unit) or is_fine for words, is_fine in every)
        if self._is_active(unit.name):
            return True
        [(words, _)] = unit.commands("ExecStart")
        log = open(f"/run/{unit.name}.log", "ab")
        opened = self.sockets.get(f"{unit.stem}.socket")
        listening = opened and opened.fileno()
        self.services[unit.name] = subprocess.Popen(
            sandboxed(unit, words, listening),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=ENVIRONMENT,
            cwd="/",
            pass_fds=[listening] if opened else [],
        )
        return True

    def _is_active(self, name):
        service = self.services.get(name)
        return service is not None and service.poll() is None

    def _open(self, unit):
        """Not beside a service that runs, which could not be given it: systemd refuses that, too."""
        if unit.name not in self.sockets:
            if self._is_active(f"{unit.stem}.service"):
                return False
            opened = socket.create_server(
                ("::", int(unit["ListenStream"])), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096
            )
            self.sockets[unit.name] = opened
        return True

    def _close(self, unit):
        opened = self.sockets.pop(unit.name, None)
        if opened:
            opened.close()
        return True

    def _end(self, name):
        service = self.services.pop(name, None)
        if service:
            service.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                service.wait(20)
            service.kill()
            service.wait()
        return True

    def end(self):
        for name in list(self.services):
            self._end(name)


def steps(verb, is_now):
    """What a verb of systemctl's comes to."""
    return {"enable": ["start"] if is_now else [], "restart": ["stop", "start"]}.get(verb, [verb])


ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


def call(words, unit):
    if unit["RuntimeDirectory"]:
        pathlib.Path("/run", unit["RuntimeDirectory"]).mkdir(exist_ok=True)
    limit = float(unit["TimeoutStartSec"] or 90)
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "stdin": subprocess.DEVNULL}
    where = unit["WorkingDirectory"] or "/"
    try:
        return subprocess.run(words, timeout=limit, env=ENVIRONMENT, cwd=where, umask=0o022, **silent).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def sandboxed(unit, words, listening):
    """The command with the unit's user, without privileges, with its filters, on a file system of which its own
    directory alone may be written."""
    state = f"/var/lib/{unit['StateDirectory']}"
    user = unit["User"]
    expect.equal("the unit cannot gain privileges", unit["NoNewPrivileges"], "yes")
    expect.equal("the unit has no capabilities", unit["CapabilityBoundingSet"], "")
    expect.equal("the unit's file system is read-only", unit["ProtectSystem"], "strict")
    for name in ("MemoryDenyWriteExecute", "RestrictNamespaces"):
        expect.equal(name, unit[name], "yes")
    families = [FAMILIES[name] for name in unit["RestrictAddressFamilies"].split()]
    filters, program = (pathlib.Path(f"/run/{unit.name}.{kind}") for kind in ("json", "py"))
    calls = system_calls(unit["SystemCallFilter"])
    filters.write_text(json.dumps({"calls": calls, "families": families, "listening": listening}))
    program.write_text(FILTERED)
    words = ["/usr/bin/python3", str(program), str(filters), *words]
    run(f"install -d -m 700 -o {user} -g {user} {state}")
    privileges = f"--reuid {user} --regid {user} --clear-groups --inh-caps=-all --bounding-set=-all --no-new-privs"
    script = "\n".join(
        [
            "set -e",
            "mount --make-rprivate /",
            f"mount --bind {state} {state}",
            # PrivateTmp, ProtectHome.
            "for place in /tmp /var/tmp; do mount -t tmpfs -o mode=1777 tmpfs $place; done",
            "mount -t tmpfs -o mode=0,ro tmpfs /root",
            "mount -o remount,bind,ro /run",
            "mount -o remount,bind,ro /",
            f"umask {unit['UMask']}",
            f"exec setpriv {privileges} {shlex.join(words)}",
        ]
    )
    return ["unshare", "--mount", "sh", "-c", script]


def system_calls(group):
    """All of a group, as systemd has it."""
    listed = run(["systemd-analyze", "syscall-filter", group]).splitlines()[1:]
    names = [line.strip() for line in listed if line.strip() and not line.strip().startswith("#")]
    return [call for name in names for call in (system_calls(name) if name.startswith("@") else [name])]


def wait_for_port(port):
    def listens():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    expect.until(f"port {port} is open", 30, listens)
    time.sleep(0.1)
