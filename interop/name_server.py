"""The zone's name server, as other implementations see it: dig, drill, Unbound in front of it, dnsperf.

Judges an api-server that has --dns-listen, or the example of the crate `name-server`, which can do more:
its zone changes while it is served, and its limits hold on loopback, too. With `--bench` nothing is judged
but its speed, which is printed.

    python3 name_server.py --server ../target/release/api-server
    python3 name_server.py --program ../target/release/examples/serve
    python3 name_server.py --program ../target/release/examples/serve --bench
"""

import argparse
import os
import pathlib
import random
import re
import socket
import struct
import subprocess
import tempfile
import time

import expect
from server import ZONE, Server

ADDRESSES = {"A": ["192.0.2.1", "192.0.2.2"], "AAAA": ["2001:db8::1"]}
ALL_ADDRESSES = [*ADDRESSES["A"], *ADDRESSES["AAAA"]]
NAMES = [ZONE, f"host.{ZONE}", f"HoSt.{ZONE.upper()}", f"a.b.c.d.{ZONE}", f"_acme-challenge.{ZONE}", f"*.{ZONE}"]
TYPES = ["A", "AAAA", "CAA", "CNAME", "DNSKEY", "DS", "HTTPS", "MX", "NS", "PTR", "SOA", "SRV", "TXT", "TYPE65280"]
CHALLENGED = f"_acme-challenge.{ZONE}"
ANSWERS_PER_SECOND, MEAN_LATENCY = 80_000, 0.0015
KIB = 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judged = parser.add_mutually_exclusive_group(required=True)
    judged.add_argument("--server", metavar="PATH", help="the api-server binary")
    judged.add_argument("--program", metavar="PATH", help="the example `serve` of the crate name-server")
    parser.add_argument("--bench", action="store_true", help="measure, and judge nothing else")
    parser.add_argument("--seconds", type=int, default=10, metavar="N", help="how long to measure")
    options = parser.parse_args()
    start = (lambda: Program(options.program)) if options.program else (lambda: Wired(options.server))
    with start() as served:
        if options.bench:
            bench(served, options.seconds)
            return
        checks = BOTH + (WITH_COMMANDS if options.program else [])
        expect.each([(check.__doc__.split("\n")[0], lambda check=check: check(served)) for check in checks])
    if options.program:
        expect.each([(limits.__doc__, lambda: limits(options.program))])


class Program:
    """The example. Its zone is changed by lines on its stdin."""

    def __init__(self, binary, *flags):
        self.port = free_port()
        self._command = [binary, "--dns-listen", f"127.0.0.1:{self.port}", "--zone", ZONE, *flags]
        for address in ALL_ADDRESSES:
            self._command += ["--public-address", address]

    def __enter__(self):
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self._process.pid
        expect.equal("the first line", self._process.stdout.readline(), f"listening at 127.0.0.1:{self.port}\n")
        return self

    def __exit__(self, *_error):
        self._process.stdin.close()
        try:
            expect.equal("exit status after the end of stdin", self._process.wait(timeout=5), 0)
        finally:
            self._process.kill()

    def say(self, *words):
        self._process.stdin.write(" ".join(words) + "\n")
        said = self._process.stdout.readline().strip()
        expect.that(f"{words} is done", not said.startswith("error"), said)
        return said


class Wired:
    """An api-server with a name server."""

    def __init__(self, binary):
        self.port = free_port()
        self._server = Server(binary, dns_listen=f"127.0.0.1:{self.port}", public_address=ALL_ADDRESSES)

    def __enter__(self):
        self._server.__enter__()
        self.pid = self._server.pid
        return self

    def __exit__(self, *error):
        self._server.__exit__(*error)


def free_port():
    """A port that nobody has, over UDP and TCP."""
    while True:
        port = random.randrange(20_000, 25_000)
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams, socket.socket() as streams:
            try:
                datagrams.bind(("127.0.0.1", port))
                streams.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


class Told:
    """What dig or drill says."""

    def __init__(self, text):
        self.text = text
        found = re.search(r"(?:status|rcode): (\w+)", text)
        self.status = found.group(1) if found else None
        found = re.search(r"flags: ?([a-z ]*?) ?[;,]", text)
        self.flags = set(found.group(1).split()) if found else set()
        found = re.search(r"QUESTION SECTION:\n;+ ?(\S+)", text)
        self.question = found.group(1) if found else None
        self.answers = self._section("ANSWER")
        self.authorities = self._section("AUTHORITY")

    def _section(self, name):
        """(owner, ttl, type, data) of each record."""
        found = re.search(rf"{name} SECTION:\n((?:[^;\n].*\n)*)", self.text)
        records = [line.split(None, 4) for line in found.group(1).splitlines()] if found else []
        return [(owner, int(ttl), kind, data.strip()) for owner, ttl, _class, kind, data in records]

    def __repr__(self):
        return self.text

    @property
    def data(self):
        return [data for _owner, _ttl, _type, data in self.answers]


def dig(served, name, kind, *options, port=None):
    command = ["dig", "@127.0.0.1", "-p", str(port or served.port), "+tries=1", "+time=3", *options]
    # -q and -t, so that no name is taken for an option.
    done = subprocess.run([*command, "-q", name, "-t", kind], check=False, capture_output=True, text=True, timeout=30)
    return Told(done.stdout)


def drill(served, name, kind, *options):
    command = ["drill", "-p", str(served.port), *options, name, "@127.0.0.1", kind]
    return Told(subprocess.run(command, check=False, capture_output=True, text=True, timeout=30).stdout)


def wanted(name, kind):
    is_apex = name.lower() == ZONE
    if is_apex and kind == "NS":
        return [f"ns1.{ZONE}."]
    return ADDRESSES.get(kind, [])


def judge(what, told, name, kind):
    """An answer with authority: what there is, or the SOA of "there is no such record"."""
    expect.equal(f"{what}: status", told.status, "NOERROR")
    expect.that(f"{what}: has authority, and no recursion", "aa" in told.flags and "ra" not in told.flags, told)
    expect.equal(f"{what}: the question comes back as it was", told.question, f"{name}.")
    if name.lower() == ZONE and kind == "SOA":
        expect.that(f"{what}: SOA", told.data[0].startswith(f"ns1.{ZONE}. hostmaster.{ZONE}. "), told)
        return
    expect.equal(f"{what}: records", told.data, wanted(name, kind))
    kinds = [(owner.lower(), kind) for owner, _ttl, kind, _data in told.authorities]
    expect.equal(f"{what}: authority", kinds, [] if told.data else [(f"{ZONE}.", "SOA")])


def matrix(served):
    """every name has every type, or has none of it, for dig over UDP and TCP, with and without EDNS"""
    for name in NAMES:
        for kind in TYPES:
            for options in ([], ["+tcp"], ["+norec", "+noedns"], ["+bufsize=4096", "+dnssec"]):
                judge(f"{name} {kind} {options}", dig(served, name, kind, *options), name, kind)


def matrix_drill(served):
    """the same, for drill"""
    for name in NAMES:
        for kind in TYPES:
            for options in ([], ["-t"], ["-b", "512"]):
                judge(f"{name} {kind} {options}", drill(served, name, kind, *options), name, kind)


def refusals(served):
    """what is not ours, transfers and other classes are refused"""
    for name, kind, options in [
        ("example.com", "A", []),
        ("example.com", "A", ["+tcp"]),
        (".", "NS", []),
        ("localhost", "SOA", []),
        (f"x{ZONE}", "A", []),
        ("version.bind", "TXT", ["-c", "CH"]),
        ("id.server", "TXT", ["-c", "CH"]),
        (ZONE, "A", ["-c", "HS"]),
    ]:
        told = dig(served, name, kind, *options)
        what = f"{name} {kind} {options}"
        expect.equal(f"{what}: status", told.status, "REFUSED")
        expect.that(f"{what}: nothing else", "aa" not in told.flags and not told.answers and not told.authorities, told)
    for kind in ("AXFR", "IXFR=1"):
        expect.that(f"{kind} fails", "Transfer failed" in dig(served, ZONE, kind).text)
    told = drill(served, ZONE, "AXFR")
    expect.that("AXFR gives drill nothing", not told.answers, told)


def little(served):
    """ANY is answered with one record, of RFC 8482"""
    for options in ([], ["+tcp"], ["+notcp"]):
        told = dig(served, ZONE, "ANY", *options)
        expect.equal(f"ANY {options}", (told.status, told.data), ("NOERROR", ['"RFC8482" ""']))


def protocol(served):
    """versions of EDNS, other opcodes, and a header alone have the error that is theirs"""
    for options, status in [
        (["+edns=1", "+noednsneg"], "BADVERS"),
        (["+edns=0", "+ednsopt=65001:abcd"], "NOERROR"),
        (["+edns=0", "+cookie"], "NOERROR"),
        (["+edns=0", "+subnet=192.0.2.0/24"], "NOERROR"),
        (["+edns=0", "+nsid"], "NOERROR"),
        (["+edns=0", "+ednsflags=0x40"], "NOERROR"),
        (["+zflag"], "NOERROR"),
        (["+adflag", "+cdflag"], "NOERROR"),
        (["+opcode=notify"], "NOTIMP"),
        (["+opcode=update"], "NOTIMP"),
        (["+opcode=status"], "NOTIMP"),
        (["+opcode=15"], "NOTIMP"),
        (["+header-only"], "FORMERR"),
    ]:
        for transport in ([], ["+tcp"]):
            told = dig(served, ZONE, "A", *options, *transport)
            expect.equal(f"{options} {transport}", told.status, status)
            expect.that(f"{options}: neither AD nor RA", not {"ad", "ra"} & told.flags, told)


def resolver(served):
    """Unbound in front finds everything, with QNAME minimization and a mix of cases in its questions"""
    with Unbound(served) as unbound:
        for name in NAMES:
            for kind in TYPES:
                # That is its parent's to say, which is not here.
                if (name, kind) == (ZONE, "DS"):
                    continue
                told = dig(served, name, kind, port=unbound.port)
                what = f"{name} {kind} through Unbound"
                expect.equal(f"{what}: status", told.status, "NOERROR")
                if kind != "SOA":
                    expect.equal(f"{what}: records", sorted(told.data), sorted(wanted(name, kind)))
        # A resolver may not conclude from one name that others are missing.
        for number in range(50):
            told = dig(served, f"n{number}.{ZONE}", "A", port=unbound.port)
            expect.equal(f"n{number} through Unbound", sorted(told.data), ADDRESSES["A"])
        if isinstance(served, Program):
            resolver_and_challenges(served, unbound)


def resolver_and_challenges(served, unbound):
    """A resolver that has asked too early finds the challenge in two seconds, and the next one, too."""

    def texts():
        return sorted(dig(served, CHALLENGED, "TXT", port=unbound.port).data)

    expect.equal("no text yet", texts(), [])
    served.say("present", CHALLENGED, "first")
    expect.until("the first text comes through Unbound", 3.0, lambda: texts() == ['"first"'])
    served.say("present", CHALLENGED, "second")
    expect.until("and both do", 3.0, lambda: texts() == ['"first"', '"second"'])
    served.say("withdraw", CHALLENGED, "first")
    served.say("withdraw", CHALLENGED, "second")
    expect.until("and none does", 3.0, lambda: texts() == [])
    served.say("caa", "ca.example", "https://ca.example/acct/1", "dns-01,tls-alpn-01")
    caa = '0 issue "ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01,tls-alpn-01"'
    expect.equal("CAA to dig", dig(served, ZONE, "CAA").data, [caa])
    served.say("caa", "none")


class Unbound:
    """A resolver that asks us for the zone and nobody for anything else. DNSSEC is off."""

    def __init__(self, served):
        self._served, self.port = served, free_port()

    def __enter__(self):
        self._place = tempfile.TemporaryDirectory(prefix="adit-unbound-")
        settings = pathlib.Path(self._place.name) / "unbound.conf"
        settings.write_text(f"""
server:
    interface: 127.0.0.1
    port: {self.port}
    directory: "{self._place.name}"
    chroot: ""
    username: ""
    pidfile: ""
    use-syslog: no
    module-config: "iterator"
    do-not-query-localhost: no
    local-zone: "localhost." nodefault
    private-address: 0.0.0.0/32
    use-caps-for-id: yes
    qname-minimisation: yes
    qname-minimisation-strict: yes
    harden-below-nxdomain: yes
    harden-glue: yes
remote-control:
    control-enable: no
stub-zone:
    name: "{ZONE}"
    stub-addr: 127.0.0.1@{self._served.port}
""")
        self._log = open(pathlib.Path(self._place.name) / "log", "w+")
        command = ["/usr/sbin/unbound", "-d", "-c", settings]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=self._log)
        expect.until("Unbound answers", 10.0, lambda: dig(None, ZONE, "A", port=self.port).status == "NOERROR")
        return self

    def __exit__(self, error_class, *_error):
        self._process.kill()
        self._process.wait()
        if error_class:
            self._log.seek(0)
            print(self._log.read())
        self._log.close()
        self._place.cleanup()


def rubbish(served):
    """random octets, broken queries and connections that say nothing change nothing"""
    choose = random.Random(20261130)
    good = question(f"host.{ZONE}", 1)
    before = resident(served.pid)
    silent = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(100)]
    for connection in silent[::2]:
        connection.sendall(struct.pack("!H", choose.randrange(65_536)) + choose.randbytes(choose.randrange(40)))
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect(("127.0.0.1", served.port))
        datagrams.setblocking(False)
        for number in range(50_000):
            octets = bytearray(good if number % 2 else choose.randbytes(choose.randrange(300)))
            for _ in range(choose.randrange(4)):
                if octets:
                    octets[choose.randrange(len(octets))] = choose.randrange(256)
            try:
                datagrams.send(octets[: choose.randrange(len(octets) + 1) if number % 3 == 0 else len(octets)])
                datagrams.recv(65_535)
            except OSError:
                pass
    judge("after rubbish", dig(served, f"host.{ZONE}", "A"), f"host.{ZONE}", "A")
    judge("after rubbish, over TCP", dig(served, f"host.{ZONE}", "A", "+tcp"), f"host.{ZONE}", "A")
    grown = resident(served.pid) - before
    expect.that("memory grew by no more than 8 MiB", grown < 8 * KIB * KIB, f"{grown / KIB / KIB:.1f} MiB")
    for connection in silent:
        connection.close()


def question(name, kind, flags=0x0100, identity=4711):
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.split("."))
    return struct.pack("!HHHHHH", identity, flags, 1, 0, 0, 0) + labels + struct.pack("!BHH", 0, kind, 1)


def answers_to_answers(served):
    """an answer is not answered: two servers would never end"""
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        datagrams.connect(("127.0.0.1", served.port))
        datagrams.settimeout(0.5)
        datagrams.send(question(ZONE, 1, flags=0x8100))
        try:
            came = datagrams.recv(2048)
        except TimeoutError:
            came = None
        expect.equal("an answer to an answer", came, None)
        datagrams.send(question(ZONE, 1))
        expect.that("an answer to a question", len(datagrams.recv(2048)) > 12)


def connections(served):
    """quiet connections end by themselves, and do not keep others from asking"""
    held = [socket.create_connection(("127.0.0.1", served.port)) for _ in range(50)]
    judge("beside quiet connections", dig(served, ZONE, "A", "+tcp"), ZONE, "A")
    begun = time.monotonic()
    for connection in held:
        connection.settimeout(30)
        expect.equal("a quiet connection ends", connection.recv(1), b"")
        connection.close()
    expect.that("within 15 s", time.monotonic() - begun < 15)


def load(served):
    """dnsperf over UDP and TCP loses no answer"""
    for mode in ("udp", "tcp"):
        told = dnsperf(served, 3, mode)
        expect.equal(f"{mode}: lost", told["lost"], 0)
        expect.that(f"{mode}: all are NOERROR", "NOERROR" in told["codes"] and "," not in told["codes"], told)
        print(f"  {mode}: {told['per_second']:.0f} answers/s, mean {told['latency'] * 1000:.2f} ms")


def challenges(served):
    """a text is there for the next question and gone after, and many of them make dig come by TCP"""
    for number in range(100):
        served.say("present", CHALLENGED, f"text-{number}")
        expect.equal("present", dig(served, CHALLENGED, "TXT").data, [f'"text-{number}"'])
        served.say("withdraw", CHALLENGED, f"text-{number}")
        expect.equal("withdrawn", dig(served, CHALLENGED, "TXT").data, [])
    texts = [f"{number:0>100}" for number in range(16)]
    for text in texts:
        served.say("present", CHALLENGED, text)
    quoted = [f'"{text}"' for text in texts]
    for options in ([], ["+noedns"], ["+bufsize=4096"]):
        told = dig(served, CHALLENGED, "TXT", "+ignore", *options)
        expect.that(f"{options}: TC, and nothing else", "tc" in told.flags and not told.data, told)
        told = dig(served, CHALLENGED, "TXT", *options)
        expect.equal(f"{options}: all of it by TCP", told.data, quoted)
        expect.that(f"{options}: dig says so", "(TCP)" in told.text or "Truncated" in told.text, told)
    for text in texts:
        served.say("withdraw", CHALLENGED, text)


def authorities(served):
    """CAA is that of the zone, whoever it names"""
    for words, data in [
        (("ca.example",), ['0 issue "ca.example"']),
        (("nobody",), ['0 issue ";"']),
        (
            ("ca.example", "https://ca.example/acct/1", "dns-01"),
            ['0 issue "ca.example; accounturi=https://ca.example/acct/1; validationmethods=dns-01"'],
        ),
        (("none",), []),
    ]:
        served.say("caa", *words)
        expect.equal("CAA", dig(served, ZONE, "CAA").data, data)
        expect.equal("CAA of a host", dig(served, f"host.{ZONE}", "CAA").data, [])
        expect.equal("CAA, to drill", drill(served, ZONE, "CAA").data, data)


def limits(binary):
    """a network that asks too often is told to come by TCP, with no more octets than it sent"""
    with Program(binary, "--limit-loopback", "--dns-answers-per-second", "10") as served:
        sent = question(f"host.{ZONE}", 28)
        whole, slipped, largest = 0, 0, 0
        with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
            datagrams.connect(("127.0.0.1", served.port))
            datagrams.settimeout(0.3)
            begun = time.monotonic()
            for _ in range(500):
                datagrams.send(sent)
            while True:
                try:
                    answer = datagrams.recv(2048)
                except TimeoutError:
                    break
                if answer[2] & 2:
                    slipped, largest = slipped + 1, max(largest, len(answer))
                else:
                    whole += 1
        most = 50 + 10 * (time.monotonic() - begun) + 1
        expect.that(f"the burst and ten a second are answered, {most:.0f} at most", 50 <= whole <= most, whole)
        half = (500 - whole) / 2
        expect.that(f"half of the others, {half:.0f}, are told", half - 25 <= slipped <= half + 25, slipped)
        expect.that("in no more octets", largest <= len(sent), largest)
        told = dig(served, ZONE, "A")
        expect.that("dig gets through", told.data == ADDRESSES["A"] or "tc" in told.flags or not told.status, told)
        judge("by TCP", dig(served, ZONE, "A", "+tcp"), ZONE, "A")


def dnsperf(served, seconds, mode="udp"):
    choose = random.Random(7)
    with tempfile.NamedTemporaryFile("w", suffix=".queries") as queries:
        for _ in range(20_000):
            kind = choose.choice(["A"] * 6 + ["AAAA"] * 3 + ["TXT", "CAA", "HTTPS"])
            queries.write(f"host{choose.randrange(5000)}.{ZONE} {kind}\n")
        queries.flush()
        command = ["dnsperf", "-s", "127.0.0.1", "-p", str(served.port), "-d", queries.name, "-l", str(seconds)]
        command += ["-m", mode, "-c", "4", "-T", "1"]
        output = subprocess.run(command, check=False, capture_output=True, text=True, timeout=seconds + 30).stdout
    told = re.search(
        r"completed:\s+(\d+).*lost:\s+(\d+).*Response codes:\s+([^\n]*).*"
        r"per second:\s+([\d.]+).*Latency \(s\):\s+([\d.]+)",
        output,
        re.DOTALL,
    )
    expect.that(f"dnsperf says what it did over {mode}", told is not None, output)
    completed, lost, codes, per_second, latency = told.groups()
    return {
        "completed": int(completed),
        "lost": int(lost),
        "codes": codes,
        "per_second": float(per_second),
        "latency": float(latency),
    }


def bench(served, seconds):
    """Answers a second and their mean time; and what the server uses of a core, whoever else is on this machine."""
    used = processor_time(served.pid)
    told = dnsperf(served, seconds)
    used = processor_time(served.pid) - used
    per_core = told["completed"] / used
    print(f"{told['per_second']:.0f} answers/s, mean {told['latency'] * 1000:.2f} ms, {told['lost']} lost")
    print(f"{used / told['completed'] * 1e6:.1f} us of the server's for each: {per_core:.0f} answers/s of one core")
    # dnsperf has the other core, or has not: what it counts on a machine that others use, too, is theirs as well.
    expect.that(f"at least {ANSWERS_PER_SECOND} answers/s of one core", per_core >= ANSWERS_PER_SECOND, told)
    expect.that(f"mean at most {MEAN_LATENCY} s", told["latency"] <= MEAN_LATENCY, told)
    expect.equal("lost", told["lost"], 0)


def resident(pid):
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * KIB


def processor_time(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


BOTH = [matrix, matrix_drill, refusals, little, protocol, answers_to_answers, rubbish, resolver, load, connections]
WITH_COMMANDS = [challenges, authorities]

if __name__ == "__main__":
    expect.run(main)
