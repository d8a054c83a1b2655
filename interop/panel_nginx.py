"""nginx in front of a panel: it ends TLS, knows `crl.pem`, and says who the client is.

    python panel_nginx.py --server ../target/release/api-server

Debian's nginx with `ssl_verify_client optional`, `ssl_crl`, protected locations with the client's headers and
a public one without. Certificates of version 1 and 3 get in; a revoked one is refused by the panel at once and
by nginx itself after a reload; one that a rotation superseded may fetch the new bundle until that is used; what a
client says in such headers reaches nobody.
"""

import argparse
import pathlib
import subprocess
import tempfile

import expect
from panel_server import (
    MTLS_REQUIRED,
    REVOKED,
    Caller,
    Panel,
    answers,
    csr_of,
    ec_key,
    free_port,
    from_p12,
    keep,
    openssl,
    pem_of,
)

CONFIGURATION = """
daemon on; pid {root}/nginx.pid; error_log {root}/error.log; user root;
events {{}}
http {{
  access_log off; client_body_temp_path {root}/body; proxy_temp_path {root}/proxy;
  fastcgi_temp_path {root}/fastcgi; uwsgi_temp_path {root}/uwsgi; scgi_temp_path {root}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl;
    ssl_certificate {pki}/self-signed.pem; ssl_certificate_key {pki}/self-signed-key.pem;
    ssl_client_certificate {pki}/ca.crt; ssl_crl {pki}/crl.pem; ssl_verify_client optional;
    proxy_set_header Host $http_host; proxy_set_header X-Real-IP $remote_addr;
    location = /api/enroll {{
      proxy_set_header X-SSL-Client-Verify ""; proxy_set_header X-SSL-Client-DN "";
      proxy_set_header X-SSL-Client-Serial ""; proxy_set_header X-Real-IP $remote_addr;
      proxy_pass http://127.0.0.1:{panel};
    }}
    location / {{
      if ($ssl_client_verify != SUCCESS) {{ return 403; }}
      proxy_set_header X-SSL-Client-Verify $ssl_client_verify; proxy_set_header X-SSL-Client-DN $ssl_client_s_dn;
      proxy_set_header X-SSL-Client-Serial $ssl_client_serial; proxy_set_header X-Real-IP $remote_addr;
      proxy_pass http://127.0.0.1:{panel};
    }}
  }}
}}
"""


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server", required=True)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch, Panel(arguments.server) as panel:
        # The first start makes the port's certificate, which nginx is to show.
        panel.kill9()
        panel.settings["panel_proxy"] = "127.0.0.1"
        nginx = Nginx(pathlib.Path(scratch), panel)
        panel.settings["panel_nginx_test"] = nginx.command("-t")
        panel.settings["panel_nginx_reload"] = nginx.command("-s reload")
        panel.start()
        with nginx:
            expect.each(
                [
                    ("who is let in", lambda: let_in(panel, nginx)),
                    ("what clients say of themselves", lambda: spoofed(panel, nginx)),
                    ("rotation through nginx", lambda: rotation(panel, nginx)),
                    ("a restart and a reset after a rotation", lambda: grace_and_restart(panel, nginx)),
                    ("revocation, by the panel and by nginx", lambda: revocation(panel, nginx)),
                ]
            )


class Nginx:
    def __init__(self, root, panel):
        self.root, self.port = root, free_port()
        text = CONFIGURATION.format(root=root, port=self.port, pki=panel.pki, panel=panel.panel_port)
        (root / "nginx.conf").write_text(text)

    def command(self, words):
        return f"/usr/sbin/nginx -c {self.root}/nginx.conf -e {self.root}/error.log {words}"

    def __enter__(self):
        self.tell("")
        return self

    def __exit__(self, *_):
        self.tell("-s stop")

    def tell(self, words):
        done = subprocess.run(self.command(words).split(), capture_output=True, text=True, timeout=30)
        expect.equal(f"nginx {words}: {done.stderr}", done.returncode, 0)

    def ask(self, identity, method, path, body=None, headers=None):
        with Caller(self.port, identity) as caller:
            return caller.ask(method, path, body, headers)


def let_in(panel, nginx):
    admin = panel.admin()
    expect.status("the admin", nginx.ask(admin, "GET", "/api/certs"), 200)
    for what, subject, status in (
        ("an admin of version 1", "/CN=Portlama Client/O=Portlama", 200),
        ("version 1, and nobody", "/CN=somebody/O=Portlama", 403),
        ("two names", "/CN=agent:x/CN=admin", 403),
    ):
        expect.status(what, nginx.ask(version_1(panel, subject), "GET", "/api/certs"), status)
    expect.status("no certificate", nginx.ask(None, "GET", "/api/certs"), 403)
    made = nginx.ask(admin, "POST", "/api/certs/agent/enroll", {"label": "through-nginx"})
    expect.status("a token", made, 200)
    key = ec_key()
    enrolled = nginx.ask(None, "POST", "/api/enroll", {"token": made.json["token"], "csr": csr_of(key)})
    expect.status("enrol without a certificate", enrolled, 200)
    agent = keep(panel.work, enrolled.json["cert"], pem_of(key))
    expect.status("the agent", nginx.ask(agent, "GET", "/api/tunnels"), 200)
    expect.status("is no admin", nginx.ask(agent, "GET", "/api/certs"), 403)


def spoofed(panel, nginx):
    said = {"X-SSL-Client-Verify": "SUCCESS", "X-SSL-Client-DN": "CN=admin", "X-SSL-Client-Serial": "01"}
    expect.status("without a certificate", nginx.ask(None, "GET", "/api/certs", headers=said), 403)
    expect.status("on the public path", nginx.ask(None, "POST", "/api/enroll", {}, headers=said), 400)
    # The panel's own port believes its proxy, and nobody at another address.
    with Caller(panel.panel_port, plain=True, source="127.0.0.2") as caller:
        answers("from another address", caller.ask("GET", "/api/certs", headers=said), 403, MTLS_REQUIRED)


def rotation(panel, nginx):
    """The old certificate may fetch the new bundle through nginx, too, until the new one is used."""
    old, agent = panel.admin(), an_agent(panel, nginx, "meanwhile")
    rotated = nginx.ask(old, "POST", "/api/certs/mtls/rotate")
    expect.status("rotate", rotated, 200)
    expect.that("nginx was told", "nginx" not in rotated.json["warning"], rotated.json["warning"])
    expect.that("the panel refuses it at once", old.serial in panel.revoked_serials())
    expect.that("nginx will hear of it later", old.serial not in panel.crl_serials())
    answers("it does nothing else", nginx.ask(old, "GET", "/api/certs"), 403, REVOKED)
    bundle = nginx.ask(old, "GET", "/api/certs/mtls/download")
    expect.status("the download", bundle, 200)
    new = from_p12(panel.work, bundle.body, rotated.json["p12Password"])
    expect.status("as often as it likes", nginx.ask(old, "GET", "/api/certs/mtls/download"), 200)
    expect.status("the new one", nginx.ask(new, "DELETE", "/api/certs/agent/meanwhile"), 200)
    expect.until("crl.pem names the old one", 5, lambda: old.serial in panel.crl_serials())
    expect.that("and the agent", agent.serial in panel.crl_serials())
    expect.until("nginx is told of it", 5, lambda: is_refused_by_nginx(nginx, old, "/api/certs/mtls/download"))
    nginx.tell("-s reload")
    expect.until("and of the agent at any reload", 5, lambda: is_refused_by_nginx(nginx, agent, "/api/tunnels"))
    expect.status("and of nobody else", nginx.ask(new, "GET", "/api/certs"), 200)


def grace_and_restart(panel, nginx):
    """A restart in the grace keeps it, and a reset ends it."""
    old = panel.admin()
    rotated = nginx.ask(old, "POST", "/api/certs/mtls/rotate")
    expect.status("rotate", rotated, 200)
    panel.stop()
    panel.start()
    expect.status("the download", nginx.ask(old, "GET", "/api/certs/mtls/download"), 200)
    expect.that("not named yet", old.serial not in panel.crl_serials())
    reset = panel.reset_admin()
    expect.equal(f"the reset: {reset.stderr}", reset.returncode, 0)
    expect.that("named", old.serial in panel.crl_serials())
    expect.until("nginx was told", 5, lambda: is_refused_by_nginx(nginx, old, "/api/certs/mtls/download"))
    expect.status("the admin of the reset", nginx.ask(panel.admin(), "GET", "/api/certs"), 200)


def an_agent(panel, nginx, label):
    made = nginx.ask(panel.admin(), "POST", "/api/certs/agent/enroll", {"label": label}).json
    key = ec_key()
    enrolled = nginx.ask(None, "POST", "/api/enroll", {"token": made["token"], "csr": csr_of(key)}).json
    return keep(panel.work, enrolled["cert"], pem_of(key))


def is_refused_by_nginx(nginx, identity, path):
    answer = nginx.ask(identity, "GET", path)
    return answer.status == 400 and b"<html>" in answer.body


def revocation(panel, nginx):
    admin, agent = panel.admin(), an_agent(panel, nginx, "to-go")
    expect.status("before", nginx.ask(agent, "GET", "/api/tunnels"), 200)
    expect.status("revoke", nginx.ask(admin, "DELETE", "/api/certs/agent/to-go"), 200)
    answers("the panel refuses it at once", nginx.ask(agent, "GET", "/api/tunnels"), 403, REVOKED)
    nginx.tell("-s reload")
    expect.until("nginx refuses it by crl.pem", 5, lambda: is_refused_by_nginx(nginx, agent, "/api/tunnels"))
    expect.status("and nobody else", nginx.ask(admin, "GET", "/api/certs"), 200)


def version_1(panel, subject):
    """As OpenSSL 3.0 makes it of a request."""
    stem = panel.work / f"v1-{free_port()}"
    key, csr, crt = (stem.with_suffix(f".{kind}") for kind in ("key", "csr", "crt"))
    openssl("req", "-new", "-newkey", "rsa:2048", "-noenc", "-keyout", key, "-out", csr, "-subj", subject)
    authority = ("-CA", panel.pki / "ca.crt", "-CAkey", panel.pki / "ca.key", "-set_serial", f"0x{free_port():x}01")
    openssl("x509", "-req", "-in", csr, *authority, "-days", "730", "-out", crt)
    return keep(panel.work, crt.read_bytes(), key.read_bytes())


if __name__ == "__main__":
    expect.run(main)
