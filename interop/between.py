"""What stands between an agent and its server, for `ways.py`: nginx, tinyproxy, microsocks; and other servers.

Debian's programs on ports of the script's own namespace, with files in a directory that goes with the script.
"""

import contextlib
import datetime
import ipaddress
import json
import pathlib
import queue
import signal
import socket
import ssl
import subprocess
import threading
import time
import uuid

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import NameOID

import expect
from csr import new_key
from server import ZONE

# Names of the script's own: see its hosts file.
GATE, SIX, DEAD = "gate.test", "six.test", "dead.test"
# The namespace is the script's own, and so is every port in it.
UPGRADES, OLD_HTTP, NO_UPGRADE, NO_PATH, OTHER_NAME, BY_NAME = range(9441, 9447)
DOCUMENTATION = pathlib.Path(__file__).parent.parent / "docs" / "operating.md"
STREAM_MODULE = "/usr/lib/nginx/modules/ngx_stream_module.so"
NGINX = """
{load} daemon off; pid {place}/nginx.pid; error_log {place}/error.log; user root; worker_processes 1;
events {{}}
http {{
  access_log off; client_body_temp_path {place}/body; proxy_temp_path {place}/proxy;
  fastcgi_temp_path {place}/fastcgi; uwsgi_temp_path {place}/uwsgi; scgi_temp_path {place}/scgi;
  ssl_certificate {roots}/gate.pem; ssl_certificate_key {roots}/gate.key;
  proxy_set_header Host $host;
  {documented}
  server {{ listen 127.0.0.1:{old_http} ssl; location / {{ proxy_pass http://127.0.0.1:{api}; }} }}
  server {{
    listen 127.0.0.1:{no_upgrade} ssl;
    location / {{ proxy_pass http://127.0.0.1:{api}; proxy_http_version 1.1; proxy_set_header Connection ""; }}
  }}
  server {{ listen 127.0.0.1:{no_path} ssl; location /api/ {{ proxy_pass http://127.0.0.1:{api}; }} }}
  server {{
    listen 127.0.0.1:{other_name} ssl; ssl_certificate {roots}/only.pem; ssl_certificate_key {roots}/only.key;
    location / {{ proxy_pass http://127.0.0.1:{api}; }}
  }}
}}
{stream}
"""
BY_NAME_ONLY = """
stream {{
  map $ssl_preread_server_name $behind {{ hostnames; .{zone} 127.0.0.1:{edge}; default 127.0.0.1:9; }}
  server {{ listen 127.0.0.1:{by_name}; ssl_preread on; proxy_pass $behind; }}
}}
"""


def has_six():
    """Has this machine IPv6? Containers may have none."""
    disabled = pathlib.Path("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
    return disabled.exists() and disabled.read_text().strip() == "0"


class Roots:
    """An authority of the script's own, and what it has signed."""

    def __init__(self, place):
        self.place, self._key = place, new_key()
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "A private root")])
        self.root = self._write("root.pem", self._sign(self._key, self._name, None))
        self.leaf("gate", [GATE, ZONE, SIX, DEAD, "::1"])
        self.leaf("only", [GATE])

    def leaf(self, file, names):
        key = new_key()
        cert = self._write(f"{file}.pem", self._sign(key, x509.Name([]), names))
        pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
        self._write(f"{file}.key", key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
        return cert, self.place / f"{file}.key"

    def _sign(self, key, subject, names):
        now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
        builder = x509.CertificateBuilder().issuer_name(self._name).subject_name(subject).public_key(key.public_key())
        builder = builder.serial_number(x509.random_serial_number()).not_valid_before(now - day)
        builder = builder.not_valid_after(now + day)
        if names is None:
            builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        else:
            names = [
                x509.IPAddress(ipaddress.ip_address(name)) if ":" in name else x509.DNSName(name) for name in names
            ]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _write(self, file, octets):
        (self.place / file).write_bytes(octets)
        return str(self.place / file)


class Process:
    """Somebody else's program, which listens on a port."""

    ends_by = signal.SIGKILL

    def __init__(self, place, port, host="127.0.0.1"):
        self.place, self.port, self.host = place, port, host
        self._log = place / f"{type(self).__name__}-{port}.log"

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_error):
        self.stop()

    def start(self):
        with open(self._log, "ab") as output:
            self._process = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        expect.until(
            f"{type(self).__name__} listens, or ends", 10, lambda: self._listens() or self._process.poll() is not None
        )
        expect.equal(f"{type(self).__name__} runs: {self.log()}", self._process.poll(), None)

    def signal(self, number):
        self._process.send_signal(number)

    def stop(self):
        self.signal(self.ends_by)
        self._process.wait(10)

    def log(self):
        return self._log.read_text(errors="replace")

    def _listens(self):
        with contextlib.suppress(OSError), socket.create_connection((self.host, self.port)):
            return True


class Nginx(Process):
    """In front of a server, in all ways: the first port passes upgrades, the next ones do not."""

    # Its workers go with it.
    ends_by = signal.SIGTERM

    def __init__(self, place, scene, roots, module=None, first=UPGRADES):
        super().__init__(place, first)
        self._scene, self._roots = scene, roots
        self.by_name = module is not None and pathlib.Path(module).exists()
        self._load = f"load_module {module};" if self.by_name else ""

    def command(self):
        ports = range(self.port, self.port + 6)
        names = ("upgrades", "old_http", "no_upgrade", "no_path", "other_name", "by_name")
        words = dict(zip(names, ports, strict=True), zone=ZONE, place=self.place, roots=self._roots.place)
        words |= {"load": self._load, "api": self._scene.server.port, "edge": self._scene.port}
        words["documented"] = self._documented(words)
        stream = BY_NAME_ONLY.format(**words) if self.by_name else ""
        (self.place / "nginx.conf").write_text(NGINX.format(stream=stream, **words))
        return ["/usr/sbin/nginx", "-c", self.place / "nginx.conf", "-e", self.place / "error.log"]

    def _documented(self, words):
        """What docs/operating.md says, with our ports and files."""
        six = f"listen [::1]:{self.port} ssl http2;" if has_six() else ""
        sample = DOCUMENTATION.read_text().partition("```nginx\n")[2].partition("```")[0]
        for theirs, ours in (
            ("127.0.0.1:8080", f"127.0.0.1:{words['api']}"),
            ("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl http2; {six}"),
            ("/etc/ssl/tunnels.example.com.crt", f"{self._roots.place}/gate.pem"),
            ("/etc/ssl/tunnels.example.com.key", f"{self._roots.place}/gate.key"),
        ):
            expect.that(f"docs/operating.md has {theirs}", theirs in sample, sample)
            sample = sample.replace(theirs, ours)
        return sample


class Proxy(Process):
    scheme = "http"

    def __init__(self, place, port, *more, host="127.0.0.1"):
        super().__init__(place, port, host)
        self._more = more

    def url(self, user=""):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{user}{host}:{self.port}"


class Tinyproxy(Proxy):
    def command(self):
        lines = [f"Port {self.port}", f"Listen {self.host}", f"Allow {self.host}", "Timeout 600", "MaxClients 100"]
        lines += [f'PidFile "{self.place}/tinyproxy-{self.port}.pid"', "LogLevel Connect", *self._more, ""]
        file = self.place / f"tinyproxy-{self.port}.conf"
        file.write_text("\n".join(lines))
        return ["tinyproxy", "-d", "-c", file]


class Microsocks(Proxy):
    scheme = "socks5"

    def command(self):
        return ["microsocks", "-i", self.host, "-p", str(self.port), *self._more]


class Far:
    """A long way to a port of this machine: what is sent arrives `delay` later."""

    def __init__(self, port, delay):
        self._to, self._delay = port, delay

    def __enter__(self):
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._start(self._accept)
        return self

    def __exit__(self, *_error):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                for one, other in ((near, far), (far, near)):
                    under_way = queue.SimpleQueue()
                    self._start(self._take, one, under_way)
                    self._start(self._bring, under_way, other)

    def _take(self, stream, under_way):
        octets = b"?"
        while octets:
            try:
                octets = stream.recv(65536)
            except OSError:
                octets = b""
            under_way.put((time.monotonic() + self._delay, octets))

    def _bring(self, under_way, stream):
        with contextlib.suppress(OSError):
            while True:
                due, octets = under_way.get()
                time.sleep(max(0, due - time.monotonic()))
                if not octets:
                    return stream.shutdown(socket.SHUT_WR)
                stream.sendall(octets)

    def _start(self, call, *values):
        threading.Thread(target=call, args=values, daemon=True).start()


# --- servers of other kinds


def answer(status, body, *fields):
    lines = [f"HTTP/1.1 {status}", *fields, f"Content-Length: {len(body)}", "Connection: close", "", body]
    return "\r\n".join(lines).encode()


def problem(status, kind, detail, *fields):
    document = {"type": f"urn:adit:problem:{kind}", "title": "T", "status": int(status[:3]), "detail": detail}
    return answer(status, json.dumps(document), "Content-Type: application/problem+json", *fields)


def page(status, *fields):
    return answer(status, "<html>nothing to see</html>", "Content-Type: text/html", *fields)


def switching(protocol, then=b""):
    return f"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: {protocol}\r\n\r\n".encode() + then


OTHER_VERSION = "attach with Upgrade: adit-h2 and Adit-Version: 7: the agent speaks other versions"
# What a server answers to an attach, and what of it the agent tells.
OTHERS = [
    ("an old one", problem("404 Not Found", "unknown-path", "no such path"), ["older", "update the server"]),
    ("a new one", problem("426 Upgrade", "unsupported-version", OTHER_VERSION, "Adit-Version: 7"), ["426", "7"]),
    ("a wrong method", problem("405 Not Allowed", "method-not-allowed", "use POST"), ["405", "use POST"]),
    ("a wrong field", problem("400 Bad Request", "invalid-attach", "not like that"), ["400", "not like that"]),
    ("full", problem("503 Unavailable", "unavailable", "it is full", "Retry-After: 2"), ["503", "it is full"]),
    ("unknown", problem("418 Teapot", "of-tomorrow", "new words"), ["418", "new words"]),
    ("a page: 404", page("404 Not Found"), ["404", "proxy", "/_system/attach"]),
    ("a page: 401", page("401 Unauthorized"), ["401", "proxy"]),
    ("a page: 403", page("403 Forbidden"), ["403", "proxy"]),
    ("a page: 200", page("200 OK"), ["200", "proxy"]),
    ("a page: 301", page("301 Moved Permanently", "Location: https://elsewhere.test/"), ["301", "proxy"]),
    ("a page: 429", page("429 Too Many Requests", "Retry-After: 2"), ["429", "proxy"]),
    ("a page: 502", page("502 Bad Gateway"), ["502", "proxy"]),
    ("another upgrade", switching("websocket"), ["101", "proxy"]),
    ("an upgrade, and the end", switching("adit-h2"), ["connection to the edge broke"]),
    ("no HTTP/2", switching("adit-h2", b"HTTP/1.1 400 Bad Request\r\n\r\n"), ["connection to the edge broke"]),
    ("no answer", b"", ["HTTP failed"]),
    ("no HTTP", b"SSH-2.0-OpenSSH_9.2\r\n", ["HTTP failed"]),
]
# The same, of what no other attempt mends.
FINAL = [
    ("no such key", problem("401 Unauthorized", "unauthorized", "who?"), "unauthorized"),
    ("no such tunnel", problem("403 Forbidden", "tunnel-forbidden", "not yours"), "tunnel-forbidden"),
]


class Other:
    """A server that knows the tunnel, whatever its name, and has one answer to all who attach."""

    def __init__(self, roots, answer):
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(roots.place / "gate.pem", roots.place / "gate.key")
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self._listener.getsockname()[1]
        self.answer, self.attached = answer, []

    def __enter__(self):
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_error):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                stream, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(stream,), daemon=True).start()

    def _serve(self, stream):
        with contextlib.suppress(OSError), self._context.wrap_socket(stream, server_side=True) as tls:
            tls.settimeout(10)
            asked = tls.makefile("rb").readline().decode()
            if asked.startswith("POST /_system/attach "):
                self.attached.append(time.monotonic())
                tls.sendall(self.answer)
            else:
                name = asked.split(" ")[1].rpartition("=")[2]
                tunnel = {"id": str(uuid.uuid4()), "tunnel_name": name, "public_host": f"{name}.{ZONE}", "zone": ZONE}
                listed = {"tunnels": [{**tunnel, "tls_mode": "edge", "status": "active"}]}
                tls.sendall(answer("200 OK", json.dumps(listed), "Content-Type: application/json"))
            tls.unwrap()
