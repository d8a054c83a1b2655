"""A directory that the original has made."""

import datetime
import json
import shutil

import expect
from panel_sections.judging import curl, is_listed, iso, profile, refused_as_revoked, snapshot, together
from panel_sections.rig import Checks
from panel_server import (
    REVOKED,
    answers,
    csr_of,
    ec_key,
    end_of,
    from_p12,
    keep,
    mode_of,
    openssl,
    replace_file,
    sign_by_hand,
)


def adopt(report, rig):
    """The shell commands of section 12.5, the files of section 5; then what its end-to-end tests do by hand."""
    panel, now = rig.panel(), {}
    # The original's CA has no key usage, which the strict ones want.
    panel.strictly = ()
    pki = panel.pki
    (pki / "agents" / "old").mkdir(parents=True)
    pki.chmod(0o700)
    subject = "/CN=Portlama CA/O=Portlama"
    openssl("genrsa", "-out", pki / "ca.key", 2048)
    openssl(
        "req",
        "-x509",
        "-new",
        "-sha256",
        "-key",
        pki / "ca.key",
        "-subj",
        subject,
        "-days",
        3650,
        "-out",
        pki / "ca.crt",
    )

    def by_shell(stem, name, password):
        key, csr, cert, bundle = (stem.with_suffix(f".{kind}") for kind in ("key", "csr", "crt", "p12"))
        openssl("genrsa", "-out", key, 2048)
        openssl("req", "-new", "-key", key, "-out", csr, "-subj", f"/CN={name}/O=Portlama")
        signer = ("-CA", pki / "ca.crt", "-CAkey", pki / "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", csr, *signer, "-out", cert, "-days", 730, "-sha256")
        legacy = ("-keypbe", "PBE-SHA1-3DES", "-certpbe", "PBE-SHA1-3DES", "-macalg", "sha1")
        files = ("-out", bundle, "-inkey", key, "-in", cert, "-certfile", pki / "ca.crt")
        openssl("pkcs12", "-export", *legacy, *files, "-passout", "stdin", input=password)
        csr.unlink()
        for path in (key, bundle):
            path.chmod(0o600)
        return keep(rig.work, cert.read_bytes(), key.read_bytes())

    first = by_shell(pki / "client", "admin", "first-Password_of-the-installer0")
    (pki / ".p12-password").write_text("first-Password_of-the-installer0")
    agent = by_shell(pki / "agents" / "old" / "client", "agent:old", "0" * 32)
    gone = sign_by_hand(rig.work, pki, "/CN=agent:gone/O=Portlama", "rsa2048")
    moment = iso(datetime.datetime.now(datetime.UTC))
    more = {"createdAt": moment, "expiresAt": end_of(agent.cert)}
    registry = [
        {"label": "gone", "serial": gone.serial, **more, "revoked": True, "revokedAt": moment},
        {"label": "old", "serial": agent.serial, "capabilities": ["tunnels:read"], **more, "revoked": False},
    ]
    revoked = [{"serial": gone.serial, "label": "agent:gone", "revokedAt": moment}]
    setup = {
        "ip": "203.0.113.42",
        "domain": None,
        "email": None,
        "dataDir": str(rig.work),
        "onboarding": {"status": "COMPLETED"},
    }
    panel.config.write_text(json.dumps({**setup, "adminAuthMode": "p12", "maxSiteSize": 500}, indent=2) + "\n")
    panel.config.chmod(0o640)
    for path, document in (
        (pki / "agents" / "registry.json", {"agents": registry}),
        (pki / "revoked.json", {"revoked": revoked}),
    ):
        path.write_text(json.dumps(document, indent=2) + "\n")
    text = openssl("x509", "-in", first.cert, "-noout", "-text")
    expect.that("the original's certificates are of version 1", "Version: 1 " in text or "Version: 3 " in text, text)
    before = snapshot(panel)
    checks = Checks()
    with panel:

        @checks("§5 a directory of the original's is taken as it is")
        def _():
            after = snapshot(panel)
            expect.equal("no file is changed", [name for name in before if after.get(name) != before[name]], [])
            panel.done(first, "GET", "/api/certs")
            got = curl(
                panel, "GET", "/api/certs", bundle=pki / "client.p12", password="first-Password_of-the-installer0"
            )
            expect.equal("curl with its bundle", got.status, 200)
            answers("its agent", panel.call(agent, "GET", "/api/tunnels"), 200, {"tunnels": []})
            answers("its revoked agent", panel.call(gone, "GET", "/api/tunnels"), 403, REVOKED)
            bundle = panel.call(first, "GET", "/api/certs/agent/old/download")
            expect.equal("the agent's bundle", bundle.body, (pki / "agents" / "old" / "client.p12").read_bytes())
            expect.equal("crl.pem", panel.crl_serials(), [gone.serial])
            expect.equal("the mode of panel.json", mode_of(panel.config), 0o640)

        @checks("§5 and goes on: rotation, revocation, new agents, beside the old ones")
        def _():
            made = panel.done(first, "POST", "/api/certs/mtls/rotate")
            bundle = panel.call(first, "GET", "/api/certs/mtls/download").body
            now["admin"] = admin = from_p12(panel.work, bundle, made["p12Password"])
            profile(panel, admin.cert, "admin")
            panel.done(admin, "GET", "/api/certs")
            refused_as_revoked(panel, first)
            fresh, _ = panel.agent(admin, "fresh")
            panel.done(admin, "DELETE", "/api/certs/agent/old")
            is_listed(panel, agent.serial, "agent:old", agent.cert)
            answers("the old agent", panel.call(agent, "GET", "/api/tunnels"), 403, REVOKED)
            answers("the fresh one", panel.call(fresh, "GET", "/api/tunnels"), 200, {"tunnels": []})
            expect.equal("what panel.json had beside", json.loads(panel.config.read_text())["maxSiteSize"], 500)

        @checks("§5 what operators do by hand after an upgrade: files, an empty list, jq, a restart")
        def _():
            upgraded = panel.call(
                now["admin"], "POST", "/api/certs/admin/upgrade-to-hardware-bound", {"csr": csr_of(ec_key())}
            )
            expect.status("upgrade", upgraded, 200)
            made = sign_by_hand(rig.work, pki, "/CN=Portlama Client/O=Portlama", "rsa2048")
            shutil.copy(made.cert, pki / "client.crt")
            shutil.copy(made.key, pki / "client.key")
            (pki / "revoked.json").write_text('{"revoked":[]}')
            config = json.loads(panel.config.read_text())
            replace_file(panel.config, json.dumps({**config, "adminAuthMode": "p12"}, indent=2))
            for again in (False, True):
                if again:
                    panel.stop()
                    panel.start()
                answers(
                    "the mode", panel.call(made, "GET", "/api/certs/admin/auth-mode"), 200, {"adminAuthMode": "p12"}
                )
                answers(
                    "no bundle",
                    panel.call(made, "GET", "/api/certs/mtls/download"),
                    404,
                    {"error": "No client certificate found"},
                )
            panel.done(made, "POST", "/api/certs/mtls/rotate")
            together(panel)

        report(checks)
