"""Judges the native wire from outside: the server by an agent whose every frame is the script's, and by visitors.

Attaching and its refusals, requests and replies over both versions of HTTP, every octet in paths,
WebSockets, raw connections, several sessions, and visitors and agents who stall. Half of it is what
no decent agent does.

    judges/bin/python native.py --server ../target/release/api-server
    judges/bin/python native.py --server ../target/release/api-server --only attach,paths

`--long` adds what takes minutes: links that fall silent.
"""

import contextlib
import functools
import importlib

import expect
from server import Server, arguments

SECTIONS = (
    "agent",
    "attach",
    "paths",
    "fields",
    "bodies",
    "replies",
    "websockets",
    "raw",
    "retries",
    "sessions",
    "flow",
)


class Rig:
    """A server for all checks that can share one, and others for those that cannot."""

    def __init__(self, options, stack):
        self.options = options
        self.server = stack.enter_context(self.another())

    def another(self, **settings):
        return Server(self.options.server, **settings)


def main():
    parser = arguments(__doc__)
    parser.add_argument(
        "--only", default="", metavar="SECTION,WORD", help=f"of {', '.join(SECTIONS)}, or words of checks"
    )
    parser.add_argument("--long", action="store_true", help="what takes minutes, too")
    options = parser.parse_args()
    wanted = [word for word in options.only.split(",") if word]
    with contextlib.ExitStack() as stack:
        rig = Rig(options, stack)
        checks = []
        for name in SECTIONS:
            section = importlib.import_module(f"native_sections.{name}")
            found = [(f"{name}: {what}", functools.partial(call, rig)) for what, call in section.checks(options.long)]
            words = [word for word in wanted if word not in SECTIONS]
            chosen = [each for each in found if any(word in each[0] for word in words)]
            checks += found if not wanted or name in wanted else chosen
        expect.each(checks, at_once=2)


if __name__ == "__main__":
    expect.run(main)
