"""What the sections share: a panel whose log and files are kept for the search for secrets, and lists of checks."""

import contextlib
import functools
import os
import threading

from panel_server import Caller, Panel, answers, mode_of


class Rig:
    """What the sections share: the binary, a directory, and all that is searched for secrets at the end."""

    def __init__(self, binary, work, seen):
        self.binary, self.work, self.seen = binary, work, seen
        self.secrets = Secrets()
        self.logs = []  # of servers that are gone
        self.readable = {}  # files that others than the owner may read, with their content

    def panel(self, **settings):
        return Watched(self, **settings)


class Watched(Panel):
    """A panel whose log and files are kept for the search for secrets."""

    strictly = ("-x509_strict",)  # how `openssl verify` judges what it issues

    def __init__(self, rig, **settings):
        # Certbot's directory is empty, so that the machine's own certbot is not asked.
        nowhere = rig.work / "no-letsencrypt"
        (nowhere / "live").mkdir(parents=True, exist_ok=True)
        defaults = {"log": "debug", "panel_letsencrypt_dir": nowhere, "panel_certbot": "/bin/false"}
        super().__init__(rig.binary, **{**defaults, **settings})
        self._rig = rig

    def start(self):
        super().start()
        self._rig.secrets.gather(self.pki)

    def look(self):
        """Remembers the secrets and the readable files that are there now."""
        self._rig.secrets.gather(self.pki)
        for path in self.data_dir.rglob("*"):
            if path.is_file() and mode_of(path) & 0o077:
                self._rig.readable[path] = path.read_bytes()

    def __exit__(self, *error):
        with contextlib.suppress(OSError):
            self.look()
            self._rig.logs.append(self.log.read_text(errors="replace"))
        super().__exit__(*error)


class Secrets:
    """Texts that may be nowhere but in the one answer that gives them away, with what they are."""

    def __init__(self):
        self.known = {}

    def add(self, what, text):
        if text:
            self.known[text] = what

    def gather(self, pki):
        """Passwords and keys that lie in the directory."""
        with contextlib.suppress(OSError):
            self.add(".p12-password", (pki / ".p12-password").read_text().strip())
        for path in [*pki.glob("*key*"), *pki.glob("agents/*/client.key")]:
            with contextlib.suppress(OSError):
                lines = [line for line in path.read_text().splitlines() if not line.startswith("-----")]
                # A line in which there is a part of the private key and not of the public one alone.
                if len(lines) > 2:
                    self.add(f"{path.name} of {pki}", lines[1] if len(lines) < 6 else lines[-3])

    def listen(self):
        """Tokens and passwords in all answers so far: (text, how many answers had it)."""
        for _, _, answer in Caller.heard:
            with contextlib.suppress(ValueError, AttributeError):
                for name in ("token", "p12Password"):
                    self.add(name, answer.json.get(name))

    def found_in(self, content):
        content = content if isinstance(content, bytes) else content.encode()
        return sorted({what for text, what in self.known.items() if text.encode() in content})


class Arguments:
    """Notes the arguments of every process that runs meanwhile."""

    def __enter__(self):
        self.all, self._over = set(), threading.Event()
        self._thread = threading.Thread(target=self._note, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._over.set()
        self._thread.join()

    def _note(self):
        while not self._over.wait(0.02):
            for name in os.listdir("/proc"):
                if name.isdigit():
                    with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                        self.all.add(file.read())


class Checks(list):
    """The checks of a section.

    @checks("1 the name of the check")
    def _(): …
    """

    def __call__(self, name):
        return lambda function: self.append((name, function))

    def table(self, prefix, ask, rows):
        """Rows of (name, request, status, body): `ask(*request)` gets exactly this answer."""
        for name, request, status, body in rows:
            self.append((f"{prefix} {name}", functools.partial(self._row, name, ask, request, status, body)))

    @staticmethod
    def _row(name, ask, request, status, body):
        answers(name, ask(*request), status, body)
