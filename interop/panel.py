"""Judges the certificates API of the panel from outside, by curl, openssl and Python's TLS.

Every section belongs to an item of the conformance checklist of the API's
specification, and every check says to which: the order of the checks, what a
proxy may say and a stranger may not, the bodies octet by octet, all kinds of
client certificates, requests that must not be signed, PKCS #12 bundles,
revocation, rotation, the upgrade to hardware-bound keys, reset-admin beside a
running server, broken state files, and that no secret is seen anywhere. Needs
`openssl` 3, `curl` and requirements.txt; as root it checks a little more.

    python panel.py --server ../target/release/api-server
    python panel.py --server ../target/release/api-server --only requests,bundles
"""

import functools
import pathlib
import tempfile
import time

import expect
from panel_sections.adoption import adopt
from panel_sections.bodies import bodies
from panel_sections.broken_files import state
from panel_sections.bundles import bundles, cheat_sheet
from panel_sections.catalogue import catalogue
from panel_sections.certificates import certificates
from panel_sections.headers import headers
from panel_sections.limits import limits
from panel_sections.many import many
from panel_sections.order import order
from panel_sections.other_clients import helpers
from panel_sections.rig import Arguments, Rig
from panel_sections.rotation import revocation, rotation
from panel_sections.secrecy import modes, secrets
from panel_sections.signing import requests
from panel_sections.tables import tables
from panel_sections.upgrade import agent_upgrade, upgrade
from panel_server import sections
from server import arguments


def main():
    parser = arguments(__doc__)
    parser.add_argument("--only", metavar="NAME,NAME", help="the names of sections, from: " + ", ".join(SECTIONS))
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else SECTIONS
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="adit-panel-") as work, Arguments() as seen:
        rig = Rig(options.server, pathlib.Path(work), seen)
        named = []
        for name in chosen:
            title, section = SECTIONS[name]
            named.append((f"{name}: {title}", functools.partial(timed, section, rig)))
        try:
            sections(*named)
        finally:
            print(f"{time.monotonic() - began:.1f} s in all")


def timed(section, rig, report):
    began = time.monotonic()
    section(report, rig)
    print(f"        {time.monotonic() - began:.1f} s", flush=True)


SECTIONS = {
    "order": ("1, order of the checks; 2, names that are refused", order),
    "headers": ("2, headers", headers),
    "limits": ("2, the rate of enrolments", limits),
    "bodies": ("3, methods, paths, bodies", bodies),
    "tables": ("3, the tables of section 7", tables),
    "catalogue": ("3, messages of validation", catalogue),
    "helpers": ("§9, what other clients ask", helpers),
    "certificates": ("4, client certificates", certificates),
    "bundles": ("5, 6, PKCS #12", bundles),
    "curl": ("5, the commands of the documentation", cheat_sheet),
    "many": ("7, many at once, kill -9", many),
    "requests": ("8, 12, certificate requests", requests),
    "rotation": ("9, rotation and its grace", rotation),
    "revocation": ("10, revocation", revocation),
    "upgrade": ("10, the admin's own key, and reset-admin", upgrade),
    "agent-upgrade": ("10, an agent's own key", agent_upgrade),
    "state": ("11, broken files", state),
    "adopt": ("§5, a directory of the original's", adopt),
    "modes": ("§5, modes of files", modes),
    "secrets": ("13, secrets", secrets),
}
if __name__ == "__main__":
    expect.run(main)
