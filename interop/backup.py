"""Backup and restore: while the server is at work, and killed at any moment.

A backup that is there is whole: everything that was acknowledged before it
began is in it, the panel's files fit each other, and a server on the restored
directory serves agents and admins as before. A restore that was killed is seen
by the server, which refuses to start, and is made up for by another one.

    judges/bin/python backup.py --server ../target/release/api-server --kills 12
"""

import fcntl
import json
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time

import expect
from csr import new_csr, new_key
from panel_server import ADMIN_ONLY, Panel
from server import ZONE, StartError, arguments
from state import read_whole

TIMEOUT = 60
KEY = new_key()


def main():
    parser = arguments(__doc__)
    parser.add_argument("--kills", type=int, default=12)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="adit-backup-") as place:
        place = pathlib.Path(place)
        with Panel(options.server) as panel:
            scene = Scene(panel, place, options)
            expect.each(
                [
                    ("what is there comes back", scene.comes_back),
                    ("a panel elsewhere comes back there", scene.elsewhere),
                    ("what cannot be done is said, and nothing changes", scene.refusals),
                    ("where the parts lie makes no difference", scene.layouts),
                    ("any way to name the place is good, or refused at once", scene.places),
                    ("a restore that failed can be tried again", scene.tried_again),
                    ("files that differ are found", scene.altered),
                    ("under load, what was acknowledged is in it", scene.under_load),
                    ("a backup that is killed is not there", scene.backup_killed),
                    ("a restore that is killed is made up for", scene.restore_killed),
                ]
            )


class Scene:
    def __init__(self, panel, place, options):
        self.panel, self.place, self.kills = panel, place, options.kills
        self.chance = random.Random(options.seed)
        self.admin = panel.admin()
        self.agent, _ = panel.agent(self.admin, "kept")
        self.revoked, _ = panel.agent(self.admin, "gone")
        panel.done(self.admin, "DELETE", "/api/certs/agent/gone")
        self.count = 0

    def new(self, what):
        self.count += 1
        return self.place / f"{what}-{self.count}"

    def command(self, *words, data=None, **settings):
        settings = {"zone": ZONE, **settings}
        for name in ("pki_dir", "panel_config"):
            if data is None and name in self.panel.settings:
                settings.setdefault(name, self.panel.settings[name])
        command = [self.panel.binary, *words, "--data-dir", data or self.panel.data_dir]
        for name, value in settings.items():
            command += [f"--{name.replace('_', '-')}", value]
        return [str(each) for each in command]

    def run(self, *words, **named):
        return subprocess.run(self.command(*words, **named), capture_output=True, text=True, timeout=TIMEOUT)

    def backup(self):
        to = self.new("backup")
        done = self.run("backup", "--to", to)
        expect.equal(f"a backup is made: {done.stderr}", done.returncode, 0)
        return to

    def restored(self, backup, **settings):
        data = self.new("data")
        done = self.run("restore", "--from", backup, data=data, **settings)
        expect.equal(f"it is restored: {done.stderr}", done.returncode, 0)
        return data

    def serves(self, data, **settings):
        """A server on the directory lets the same people in, and keeps the same ones out."""
        with Panel(self.panel.binary, data, **settings) as other:
            expect.status("it is ready", other.ready(), 200)
            expect.status("its admin key is good", other.ask("GET", "/api/v1/tunnels/"), 200)
            expect.status("the admin is let in", other.call(self.admin, "GET", ADMIN_ONLY), 200)
            expect.status("the agent is let in", other.call(self.agent, "GET", "/api/tunnels"), 200)
            expect.status("who was revoked is not", other.call(self.revoked, "GET", "/api/tunnels"), 403)
            other.one_generation()
            roots = [(path / "ca" / "root.crt").read_text() for path in (data, self.panel.data_dir)]
            expect.equal("the root is the same", roots[0], roots[1])
            return set(read_whole(other)[0])

    def comes_back(self):
        self.tunnel("comes-back")
        backup = self.backup()
        modes = {path.name: path.stat().st_mode & 0o777 for path in [backup, backup / "adit.db", backup / "backup.json"]}
        expect.equal("nobody else reads it", sorted(modes.values()), [0o600, 0o600, 0o700])
        listed = json.loads((backup / "backup.json").read_text())
        paths = {file["path"] for file in listed["files"]}
        there = {str(path.relative_to(backup)) for path in backup.rglob("*") if path.is_file()}
        expect.equal("its list is of its files", paths | {"backup.json"}, there)
        expect.that("the authority is in it", {"ca/issuing.key", "ca/root.crt", "pki/ca.key", "panel.json"} <= paths, paths)
        tunnels = self.serves(self.restored(backup))
        expect.that("the tunnel is there", "comes-back" in tunnels, tunnels)
        modes = {
            name: (self.panel.data_dir / name).stat().st_mode & 0o777
            for name in ["ca/issuing.key", "pki/ca.key", "admin-api-key", "pki/client.p12", "panel.json", "pki/ca.crt"]
        }
        data = self.restored(backup)
        for name, mode in modes.items():
            expect.equal(f"the mode of {name}", (data / name).stat().st_mode & 0o777, mode)

    def elsewhere(self):
        pki, config = self.new("pki"), self.new("panel.json")
        settings = {"pki_dir": pki, "panel_config": config}
        data = self.restored(self.backup(), **settings)
        expect.that("nothing of the panel is in the data directory", not (data / "pki").exists())
        self.serves(data, **settings)

    def refusals(self):
        backup = self.backup()
        before = snapshot(backup)
        for what, done, words in [
            ("a backup in the same place", self.run("backup", "--to", backup), "nothing is overwritten"),
            ("a backup of nothing", self.run("backup", "--to", self.new("b"), data=self.new("no")), "nothing to back up"),
            ("a backup into what is copied", self.run("backup", "--to", self.panel.pki / "b"), "name a place elsewhere"),
            ("a restore into a server's directory", self.run("restore", "--from", backup), "another server is using"),
            ("a restore of no backup", self.run("restore", "--from", self.place, data=self.new("d")), "backup.json"),
            ("another zone", self.run("restore", "--from", backup, data=self.new("d"), zone="x.test"), "set `zone`"),
        ]:
            expect.equal(f"{what} fails", done.returncode, 1)
            expect.that(f"{what} is said", words in done.stderr, done.stderr)
        expect.equal("the backup is as before", snapshot(backup), before)
        data = self.restored(backup)
        then = snapshot(data)
        again = self.run("restore", "--from", backup, data=data)
        expect.that("a directory in use stays", again.returncode == 1 and "is there" in again.stderr, again.stderr)
        expect.equal("nothing in it changed", snapshot(data), then)
        expect.equal("a wrong word is a wrong flag", self.run("backup", "--too", "x").returncode, 2)

    def layouts(self):
        """panel.json inside the directory; keys on another volume; a panel that these settings do not name."""
        backup = self.backup()
        data, pki = self.new("data"), self.new("pki")
        inside = {"pki_dir": pki, "panel_config": pki / "panel.json"}
        done = self.run("restore", "--from", backup, data=data, **inside)
        expect.equal(f"panel.json is restored into the directory: {done.stderr}", done.returncode, 0)
        key, elsewhere = data / "ca" / "issuing.key", self.new("issuing.key")
        key.rename(elsewhere)
        key.symlink_to(elsewhere)
        again = self.new("backup")
        done = self.run("backup", "--to", again, data=data, **inside)
        expect.equal(f"a link to a key is the key: {done.stderr}", done.returncode, 0)
        listed = [file["path"] for file in json.loads((again / "backup.json").read_text())["files"]]
        expect.equal("every file has one place", len(listed), len(set(listed)))
        other = {"pki_dir": self.new("pki")}
        other["panel_config"] = other["pki_dir"] / "panel.json"
        self.serves(self.restored(again, **other), **other)
        self.serves(self.restored(again))
        (data / "ca" / "dangling").symlink_to(self.place / "nowhere")
        done = self.run("backup", "--to", self.new("backup"), data=data, **inside)
        expect.that("what cannot be kept is no warning", done.returncode == 1 and "dangling" in done.stderr, done.stderr)
        done = self.run("backup", "--to", self.new("backup"), pki_dir=self.new("pki"))
        expect.that("a panel that is missed", done.returncode == 1 and "there is no panel" in done.stderr, done.stderr)

    def places(self):
        empty = self.new("empty")
        empty.mkdir()
        for to in (f"{self.new('slash')}/", f"{empty}/", "relative", "./also/"):
            done = subprocess.run(
                self.command("backup", "--to", to), capture_output=True, text=True, timeout=TIMEOUT, cwd=self.place
            )
            expect.equal(f"{to}: {done.stderr}", done.returncode, 0)
            expect.that(f"{to}: it is there", (self.place / to / "backup.json").exists())
        for to in (".", "..", "/", "/proc"):
            done = subprocess.run(
                self.command("backup", "--to", to), capture_output=True, text=True, timeout=TIMEOUT, cwd=self.new_directory()
            )
            expect.equal(f"{to} is refused: {done.stderr}", done.returncode, 1)
        precious = self.place / "precious.partial"
        precious.mkdir()
        (precious / "gold").write_text("gold")
        expect.equal("beside it", self.run("backup", "--to", self.place / "precious").returncode, 0)
        expect.equal("what is another's stays", (precious / "gold").read_text(), "gold")
        expect.equal("nothing is left over", left_over(self.place), [])
        with open(self.panel.pki / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            process = subprocess.Popen(self.command("backup", "--to", self.new("backup")), stdout=subprocess.DEVNULL)
            time.sleep(0.5)
            expect.equal("it waits for who changes the panel", process.poll(), None)
            fcntl.flock(lock, fcntl.LOCK_UN)
            expect.equal("and goes on then", process.wait(TIMEOUT), 0)

    def new_directory(self):
        directory = self.new("cwd")
        directory.mkdir()
        return directory

    def tried_again(self):
        backup, data = self.backup(), self.new_directory()
        (data / ".restoring").write_text("")
        done = self.run("restore", "--from", backup, data=data)
        expect.equal(f"a mark that was not written: {done.stderr}", done.returncode, 0)
        self.serves(data)
        # A directory that stays where it is, as a mount point would.
        data, pki, config = self.new_directory(), self.new_directory(), self.new("panel.json")
        settings = {"pki_dir": pki, "panel_config": config}
        (data / ".restoring").write_text(
            json.dumps(
                [str(data / name) for name in ("adit.db", "ca", "admin-api-key", "acme-account.json", "edge.key")]
                + [str(pki), str(config), str(data / "adit.db-wal"), str(data / "adit.db-shm")],
                separators=(",", ":"),
            )
        )
        (pki / "ca.key").write_text("half")
        (pki / "agents").mkdir()
        before = pki.stat().st_ino
        done = self.run("restore", "--from", backup, data=data, **settings)
        expect.equal(f"what was half there: {done.stderr}", done.returncode, 0)
        expect.equal("the directory is the same one", pki.stat().st_ino, before)
        self.serves(data, **settings)
        (data / ".restoring").write_text(json.dumps(["/elsewhere"]))
        done = self.run("restore", "--from", backup, data=data)
        expect.that("other places", done.returncode == 1 and "with the settings of then" in done.stderr, done.stderr)

    def altered(self):
        for name, change in [
            ("adit.db", lambda octets: octets[:-1]),
            ("pki/ca.key", lambda octets: octets[:40] + b"A" + octets[41:]),
            ("ca/issuing.crt", lambda octets: octets + b"\n"),
            ("backup.json", lambda octets: octets.replace(b'"format": 1', b'"format": 2')),
            ("backup.json", lambda octets: octets.replace(b'"schema": 4', b'"schema": 99')),
            ("backup.json", lambda octets: octets.replace(b'"pki/ca.crt"', b'"../ca.crt"')),
            ("backup.json", lambda octets: octets[:100]),
        ]:
            backup, data = self.backup(), self.new("data")
            octets = (backup / name).read_bytes()
            expect.that(f"{name} is changed", change(octets) != octets)
            (backup / name).write_bytes(change(octets))
            done = self.run("restore", "--from", backup, data=data)
            expect.equal(f"{name}: it is refused", done.returncode, 1)
            expect.that(f"{name}: nothing is written", not data.exists() or not any(data.iterdir()), done.stderr)
        backup = self.backup()
        (backup / "pki" / "ca.crt").unlink()
        expect.equal("a file that is missing", self.run("restore", "--from", backup, data=self.new("d")).returncode, 1)

    def under_load(self):
        stop, acknowledged = threading.Event(), []
        threads = [threading.Thread(target=self.load, args=(index, stop, acknowledged)) for index in range(4)]
        for thread in threads:
            thread.start()
        kept = []
        for _ in range(4):
            time.sleep(0.4)
            before = list(acknowledged)
            kept.append((self.backup(), before))
        stop.set()
        for thread in threads:
            thread.join()
        for backup, before in kept:
            data = self.restored(backup)
            tunnels = self.serves(data)
            agents = {each["label"] for each in json.loads((data / "pki/agents/registry.json").read_text())["agents"]}
            missing = {name for name in before if name not in tunnels | agents}
            expect.equal("all that was acknowledged is there", missing, set())
        expect.that("there was something to lose", len(kept[-1][1]) > 20, len(kept[-1][1]))

    def tunnel(self, name):
        """A passthrough tunnel with its certificate."""
        body = {"tunnel_name": name, "tls_mode": "passthrough"}
        made = self.panel.ask("POST", "/api/v1/tunnels", body)
        expect.status("a tunnel", made, 200, 201)
        signing = {"csr_pem": new_csr(KEY, f"{name}.{ZONE}")}
        path = f"/api/v1/tunnels/{made.json['tunnel']['id']}/sign-csr"
        expect.status("a certificate", self.panel.ask("POST", path, signing), 200)

    def load(self, index, stop, acknowledged):
        for number in range(10_000):
            if stop.is_set():
                return
            name = f"load-{index}-{number}"
            if index % 2:
                if self.panel.call(self.admin, "POST", "/api/certs/agent", {"label": name}).status == 200:
                    acknowledged.append(name)
            else:
                self.tunnel(name)
                acknowledged.append(name)

    def backup_killed(self):
        whole = 0
        started = time.monotonic()
        shutil.rmtree(self.backup())
        takes = time.monotonic() - started
        to = self.new("backup")
        for _ in range(self.kills):
            process = subprocess.Popen(self.command("backup", "--to", to), stdout=subprocess.DEVNULL)
            time.sleep(self.chance.uniform(0, 1.1 * takes))
            process.send_signal(signal.SIGKILL)
            process.wait()
            if to.exists():
                whole += 1
                self.restored(to)
                shutil.rmtree(to)
        expect.that("some were killed early enough", whole < self.kills, whole)
        done = self.run("backup", "--to", to)
        expect.equal(f"the next one is made: {done.stderr}", done.returncode, 0)
        expect.equal("nothing is left beside it", left_over(self.place), [])
        self.serves(self.restored(to))
        expect.status("the server has noticed nothing", self.panel.ready(), 200)

    def restore_killed(self):
        backup = self.backup()
        started = time.monotonic()
        self.restored(backup)
        takes = time.monotonic() - started
        halves = 0
        for _ in range(self.kills):
            data = self.new("data")
            process = subprocess.Popen(self.command("restore", "--from", backup, data=data), stdout=subprocess.DEVNULL)
            time.sleep(self.chance.uniform(0, takes))
            process.send_signal(signal.SIGKILL)
            process.wait()
            if (data / ".restoring").exists():
                halves += 1
                try:
                    with Panel(self.panel.binary, data):
                        expect.that("a server starts on half a restore", False)
                except StartError as error:
                    expect.that("the server says what to do", "run `api-server restore` again" in error.output, error)
            if not (data / "adit.db").exists() or (data / ".restoring").exists():
                done = self.run("restore", "--from", backup, data=data)
                expect.equal(f"it is made up for: {done.stderr}", done.returncode, 0)
            self.serves(data)
        expect.that("some were killed amid it", halves > 0, halves)


def left_over(place):
    return [path.name for path in place.iterdir() if path.name.endswith(".adit-partial")]


def snapshot(directory):
    # A server makes its lock's file anew, and nothing else.
    files = [path for path in sorted(directory.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path.relative_to(directory)): path.read_bytes() for path in files}


if __name__ == "__main__":
    expect.run(main)
