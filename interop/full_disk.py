"""Fills the server's disk, and gives it directories it cannot use.

On a small file system of its own the server is asked for changes until no more
can be written. What fails must fail with a 5xx problem that does not tell the
cause; with space again everything acknowledged must be there, also after a
SIGKILL on the full disk. A data directory that cannot be used must end the
start with a text that names it. Mounting needs root; without it that part is
skipped.

    sudo python full_disk.py --server ../target/release/api-server
"""

import contextlib
import os
import pathlib
import subprocess
import tempfile
import time

import expect
from csr import new_csr, new_key
from server import ZONE, Server, StartError, arguments
from state import read_whole

SIZE = "16m"
LEAVE = 512 * 1024  # bytes free when the changes begin
FAILURES = 40  # then the disk counts as full
RECOVERS_WITHIN = 10.0  # seconds
# What a caller must not learn.
CAUSES = (
    "disk",
    "sqlite",
    "database",
    "space",
    "enospc",
    "errno",
    "os error",
    "i/o",
    "readonly",
    "read-only",
    ".db",
    "-wal",
    "/tmp",
)


def main():
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory(prefix="adit-disk-") as work:
        work = pathlib.Path(work)
        under_a_file(options.server, work)
        already_in_use(options.server)
        try:
            with mounted(work / "small", SIZE) as place:
                full(options.server, place)
            with mounted(work / "locked", SIZE) as place:
                read_only(options.server, place)
        except CannotMount as error:
            print(f"SKIPPED the full and the read-only disk: {error}")


# --- directories that cannot be used ------------------------------------------


def under_a_file(binary, work):
    (work / "file").write_text("no directory")
    does_not_start(binary, work / "file" / "data")
    does_not_start(binary, work / "file")


def already_in_use(binary):
    with Server(binary) as server:
        does_not_start(binary, server.data_dir)
        expect.status("the first server goes on", server.ask("GET", "/api/v1/tunnels/"), 200)


def read_only(binary, place):
    """Once for a first start, once for a directory that was good before."""
    with Server(binary, place / "data"):
        pass
    remount(place, "ro")
    does_not_start(binary, place / "other")
    does_not_start(binary, place / "data")
    remount(place, "rw")
    with Server(binary, place / "data") as server:
        expect.status("it starts when it can write again", server.ask("GET", "/api/v1/tunnels/"), 200)


def does_not_start(binary, data_dir):
    what = f"with the data directory {data_dir}"
    try:
        with Server(binary, data_dir):
            pass
    except StartError as error:
        expect.that(
            f"{what} the server ends with an exit status other than 0",
            error.exit_status not in (None, 0),
            error.exit_status,
        )
        expect.that(f"{what} the server names it", str(data_dir) in error.output, error.output)
        expect.that(f"{what} the server does not panic", "panicked at" not in error.output, error.output)
    else:
        raise expect.Failed(f"{what} the server ends\n  came: it became ready")


# --- a full disk --------------------------------------------------------------


def full(binary, place):
    ballast = place / "ballast"
    with Server(binary, place / "data") as server:
        changes = Changes(server)
        for _ in range(5):
            changes.make_one()
        expect.equal("with space nothing fails", changes.failures, 0)
        fill(ballast, LEAVE)
        while changes.failures == 0:
            changes.make_one()
        # The last corners, too: what still fits is acknowledged, what does not is refused.
        while changes.failures < FAILURES:
            fill(ballast, 0)
            changes.make_one()
        made = f"{len(changes.tunnels)} tunnels and {len(changes.certificates)} certificates acknowledged"
        print(f"{made}, {changes.failures} requests failed")
        answer = server.ask("GET", "/api/v1/tunnels/")
        if answer.status != 200:
            fails_without_cause("reading on a full disk", answer)

        ballast.unlink()
        works_again(changes)
        changes.are_all_there()

        # Once more, and now the server dies on the full disk.
        failures = changes.failures
        while changes.failures < failures + FAILURES:
            fill(ballast, 0)
            changes.make_one()
        server.kill9()
        try:
            server.start()
            server.kill9()
        except StartError as error:
            # Alive and not ready is right, too: it reads, and says that it cannot write.
            expect.that("a start on a full disk does not pretend to end well", error.exit_status != 0, error.output)
            expect.that("a start on a full disk does not panic", "panicked at" not in error.output, error.output)
        ballast.unlink()
        server.start()
        changes.are_all_there()
        works_again(changes)
        expect.equal("SIGTERM ends the server with 0", server.stop(), 0)


class Changes:
    """Asks for changes and remembers what was acknowledged."""

    def __init__(self, server):
        self.server = server
        self.key = new_key()
        self.number = 0
        self.tunnels = {}  # name -> id
        self.certificates = {}  # name -> fingerprint of the last
        self.in_doubt = set()  # names whose last signing failed
        self.failures = 0

    def make_one(self):
        """A tunnel, alone or with an identity, or a certificate for the last one made."""
        self.number += 1
        name = f"disk-{self.number}"
        if self.number % 3 == 0 and self.tunnels:
            self._sign(list(self.tunnels)[-1])
        elif self.number % 3 == 1:
            body = {"tunnel_name": name, "tls_mode": "passthrough", "description": "x" * 1000}
            self._create(name, "/api/v1/tunnels/", body)
        else:
            body = {"agent_handle": name, "tunnel": {"tls_mode": "passthrough"}, "description": "x" * 1000}
            self._create(name, "/api/v1/identities/", body)

    def _create(self, name, path, body):
        answer = self.server.ask("POST", path, body)
        if answer.status in (200, 201):
            self.tunnels[name] = answer.json["tunnel"]["id"]
        else:
            self._failed(f"POST {path}", answer)

    def _sign(self, name):
        body = {"csr_pem": new_csr(self.key, f"{name}.{ZONE}")}
        answer = self.server.ask("POST", f"/api/v1/tunnels/{self.tunnels[name]}/sign-csr", body)
        if answer.status == 200:
            self.certificates[name] = answer.json["cert_fingerprint_sha256"]
            self.in_doubt.discard(name)
        else:
            self.in_doubt.add(name)
            self._failed("signing", answer)

    def _failed(self, what, answer):
        fails_without_cause(f"{what} on a full disk", answer)
        self.failures += 1

    def are_all_there(self):
        tunnels, _ = read_whole(self.server)
        for name, tunnel_id in self.tunnels.items():
            expect.equal(f"{name} was acknowledged and is there", tunnels.get(name, {}).get("id"), tunnel_id)
        for name, fingerprint in self.certificates.items():
            if name not in self.in_doubt:
                expect.equal(
                    f"the certificate of {name} is the one acknowledged",
                    tunnels[name]["cert_fingerprint_sha256"],
                    fingerprint,
                )


def works_again(changes):
    """With space again a server must not need a restart."""
    deadline = time.monotonic() + RECOVERS_WITHIN
    while True:
        before = changes.failures
        changes.make_one()
        if changes.failures == before:
            return
        expect.that(f"changes succeed within {RECOVERS_WITHIN:.0f} s of there being space", time.monotonic() < deadline)
        time.sleep(0.2)


def fails_without_cause(what, answer):
    expect.problem(what, answer, *range(500, 600))
    text = answer.body.decode().lower()
    told = [cause for cause in CAUSES if cause in text]
    expect.that(f"{what} does not tell the cause", not told, f"{told} in {text}")


def fill(ballast, leave):
    """Lets `ballast` grow until only `leave` bytes are free."""
    with contextlib.suppress(OSError), open(ballast, "ab", buffering=0) as file:
        for piece in (65536, 4096):
            while True:
                space = os.statvfs(ballast)
                if space.f_bavail * space.f_frsize < leave + piece:
                    break
                file.write(bytes(piece))


# --- mounting -----------------------------------------------------------------


class CannotMount(Exception):
    pass


@contextlib.contextmanager
def mounted(place, size):
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode != 0:
        raise CannotMount(done.stderr.strip())
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def remount(place, mode):
    subprocess.run(["mount", "-o", f"remount,{mode}", place], check=True)


if __name__ == "__main__":
    expect.run(main)
