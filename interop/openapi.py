"""The REST API against its own OpenAPI document, by schemathesis.

It makes requests of what the document allows and of what it forbids, follows
answers to further requests, and looks whether each answer is one that the
document knows: status, type, headers and body, and no 500. It must find nothing.

What it may not judge, and why, stands in EXCLUDED.
"""

import pathlib
import subprocess
import sys

import expect
import server

# All but these:
EXCLUDED = {
    # The schema says "a string"; that a name is not taken, or a request is signed, it cannot say.
    "positive_data_acceptance",
    # A deleted tunnel is shown until its restore window is over.
    "use_after_free",
}


# One that an answer names may be the key that asks; judged last, and alone.
REVOCATION = "/api/v1/api-keys/{key_id}"


def main(arguments):
    with server.Server(arguments.server) as running:
        judge(running, arguments, arguments.seconds, "--exclude-path", REVOCATION)
        expect.status("the key is of use", running.ask("GET", "/api/whoami"), 200)
        judge(running, arguments, 10, "--exclude-path", REVOCATION, key=scoped_key(running))
        judge(running, arguments, 5, "--include-path", REVOCATION)
        expect.that("the server lives", running.running)


def scoped_key(running):
    identity = running.ask("POST", "/api/v1/identities", {"agent_handle": "judged-agent"})
    expect.status("an identity", identity, 201)
    key = running.ask("POST", "/api/v1/api-keys", {"label": "judged", "scoped_identity_id": identity.json["id"]})
    expect.status("its key", key, 201)
    return key.json["api_key"]


def judge(running, arguments, seconds, *operations, key=None):
    schemathesis = pathlib.Path(sys.executable).with_name("schemathesis")
    command = [schemathesis, "run", f"{running.url}/openapi.json", *operations]
    command += ["--header", f"X-API-Key: {key or running.key}", "--checks", "all"]
    command += ["--exclude-checks", ",".join(sorted(EXCLUDED)), "--continue-on-failure", "--warnings", "off"]
    command += ["--max-time", str(seconds), "--request-timeout", "30", "--seed", str(arguments.seed), "--no-color"]
    found = subprocess.run(command, cwd=running.data_dir, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if found.returncode != 0:
        print(found.stdout)
    expect.equal("schemathesis finds nothing", found.returncode, 0)
    print("\n".join(line for line in found.stdout.splitlines() if "test cases" in line.lower() or "passed" in line))


if __name__ == "__main__":
    parser = server.arguments(__doc__)
    parser.add_argument("--seconds", type=int, default=60, help="how long to look [default: 60]")
    parser.add_argument("--seed", type=int, default=1)
    parsed = parser.parse_args()
    expect.run(lambda: main(parsed))
