"""Several sessions: of one instance, of instances that share, and of those that fight; and what the server says."""

import collections
import concurrent.futures
import contextlib
import time

import expect
from native_peer import (
    SETTINGS_OF_AN_AGENT,
    NotAttached,
    VisitorOne,
    VisitorTwo,
    asked,
    attach,
    dial,
    fields_of,
    instance,
    is_connected,
    raw_tunnel,
    says,
    tunnel_of,
)
from scripted_agent import Ended, Http1

SOON = 3.0


def checks(long):
    return [
        ("two of one instance", same_instance),
        ("the fewest in progress", fewest),
        ("two instances that share", share),
        ("two instances that fight", fight),
        ("shares that only one wants", one_sided),
        ("what is open at a takeover finishes", takeover_finishes),
        ("a takeover is told at once", takeover_is_told),
        ("make before break", make_before_break),
        ("the SDK's wire takes over, and is taken over", sdk),
        ("a rename", renamed),
        ("a rename of a passthrough tunnel", renamed_raw),
        ("a tunnel is deleted", deleted),
        ("a key is revoked", key_revoked),
        ("a secret is replaced", secret_rotated),
        ("the server drains", drains),
        ("the server does not wait for who does not listen", deaf),
        ("an agent's limit of streams", few_streams),
        ("many attach and leave", churn),
    ]


def ask(tunnel, path="/", kind=VisitorOne, **named):
    with contextlib.closing(kind(tunnel)) as visitor:
        return visitor.ask(path, **named)


def words(tunnel, count=20):
    """Who answers."""
    return collections.Counter(ask(tunnel).body.decode() for _ in range(count))


def same_instance(rig):
    tunnel = tunnel_of(rig.server, "same")
    changes = {"Adit-Instance": instance()}
    with attach(tunnel, says("one"), changes=changes) as one, attach(tunnel, says("two"), changes=changes) as two:
        expect.that("each has its session", one.session != two.session, one.session)
        came = words(tunnel)
        expect.that("one of them answers each", sum(came.values()) == 20 and set(came) <= {"one", "two"}, came)
        one.leave()
        expect.equal("when one has left the other serves", set(words(tunnel)), {"two"})
        with attach(tunnel, says("three"), changes=changes) as three:
            two.leave()
            expect.equal("and another", set(words(tunnel)), {"three"})
            expect.equal("nobody was told to go", one.told + two.told + three.told, [])
    expect.until("nobody is left", SOON, lambda: not is_connected(tunnel))


def fewest(rig):
    tunnel = tunnel_of(rig.server, "fewest")
    changes = {"Adit-Instance": instance()}
    with attach(tunnel, changes=changes) as one, attach(tunnel, changes=changes) as two:
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            streams = [visitor.open(f"/{number}") for number in range(10)]
            expect.until("all are asked", SOON, lambda: len(one.streams) + len(two.streams) == 10)
            counts = [len(one.streams), len(two.streams)]
            expect.equal("each has half", counts, [5, 5])
            for _ in range(5):
                one.next().answer(b"done")
            time.sleep(0.2)
            more = [visitor.open(f"/more-{number}") for number in range(5)]
            expect.until("all are asked", SOON, lambda: len(one.streams) + len(two.streams) == 15)
            expect.equal("who has none gets what comes", len(one.streams), 10)
            for peer in (one, two):
                for _ in range(5):
                    peer.next().answer(b"done")
            for stream in streams + more:
                expect.equal("all are answered", visitor.visited(stream).body, b"done")


def share(rig):
    tunnel = tunnel_of(rig.server, "share")
    shares = {"Adit-Share": "true"}
    with (
        attach(tunnel, changes=shares) as one,
        attach(tunnel, changes=shares) as two,
        attach(tunnel, changes=shares) as three,
    ):
        with contextlib.closing(VisitorTwo(tunnel)) as visitor:
            streams = [visitor.open(f"/{number}") for number in range(9)]
            expect.until("all are asked", SOON, lambda: sum(len(each.streams) for each in (one, two, three)) == 9)
            expect.equal("each has a third", [len(each.streams) for each in (one, two, three)], [3, 3, 3])
            for peer in (one, two, three):
                for _ in range(3):
                    peer.next().answer(b"done")
            expect.that("all are answered", all(visitor.visited(each).body == b"done" for each in streams))
        expect.equal("nobody is told to go", one.told + two.told + three.told, [])
        two.leave()
        expect.until("it is gone", SOON, lambda: two.ended_at)


def told_to_go(peer, within=5.0):
    expect.that("the old one is told", peer.hears("/superseded", within), (peer.told, peer.ended_at))
    expect.that("and its link ends", peer.has_ended(within), peer.frames)


def fight(rig):
    tunnel = tunnel_of(rig.server, "fight")
    with attach(tunnel, says("one")) as one:
        expect.equal("the first serves", set(words(tunnel, 3)), {"one"})
        with attach(tunnel, says("two")) as two:
            told_to_go(one)
            expect.equal("it is told once", one.told, ["/superseded"])
            expect.equal("the second serves", set(words(tunnel, 5)), {"two"})
            expect.equal("and is told nothing", two.told, [])
            with attach(tunnel, says("three")) as three:
                told_to_go(two)
                expect.equal("and so on", set(words(tunnel, 5)), {"three"})
                expect.equal("connected", is_connected(tunnel), True)
                expect.equal("the third is told nothing", three.told, [])
    # All sessions of the old instance.
    changes = {"Adit-Instance": instance()}
    with attach(tunnel, says("old"), changes=changes) as first, attach(tunnel, says("old"), changes=changes) as second:
        with attach(tunnel, says("new")):
            told_to_go(first)
            told_to_go(second)
            expect.equal("the new one serves", set(words(tunnel, 5)), {"new"})


def one_sided(rig):
    tunnel = tunnel_of(rig.server, "one-sided")
    for old, new in (("true", "false"), ("false", "true"), (None, "true"), ("true", None)):
        with attach(tunnel, says("old"), changes={"Adit-Share": old}) as first:
            with attach(tunnel, says("new"), changes={"Adit-Share": new}):
                told_to_go(first)
                expect.equal(f"{old}, then {new}: the new one serves", set(words(tunnel, 3)), {"new"})


def takeover_finishes(rig):
    tunnel = tunnel_of(rig.server, "finishes")
    with attach(tunnel) as one, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        streams = [visitor.open(), visitor.open()]
        expect.until("both are asked", SOON, lambda: len(one.streams) == 2)
        begun, waiting = one.streams.values()
        begun.head(200)
        begun.send(b"begun, ")
        with attach(tunnel, says("new")):
            expect.equal("the new one serves", ask(tunnel).body, b"new")
            time.sleep(0.3)
            begun.send(b"ended", end=True)
            waiting.answer(b"late")
            came = sorted(visitor.visited(each).body for each in streams)
            expect.equal("what was open is finished by the old one", came, [b"begun, ended", b"late"])
            told_to_go(one)


def takeover_is_told(rig):
    """At once, whatever is open."""
    tunnel = tunnel_of(rig.server, "told")
    with attach(tunnel) as one, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        visitor.open()
        one.next().head(200)
        with attach(tunnel, says("new")):
            expect.that("the old one is told at once", one.hears("/superseded", 1), one.told)


def make_before_break(rig):
    """An agent that moves to a new link loses nothing."""
    tunnel = tunnel_of(rig.server, "moves")
    changes = {"Adit-Instance": instance()}
    over, outcomes = [], []

    def visits():
        with contextlib.closing(VisitorOne(tunnel)) as visitor:
            while not over:
                outcomes.append(visitor.ask("/", timeout=10).status)

    peer = attach(tunnel, says("here"), changes=changes)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(visits) for _ in range(4)]
        try:
            for _ in range(10):
                time.sleep(0.2)
                following = attach(tunnel, says("here"), changes=changes)
                peer.goes_away(peer.newest)
                expect.that("the old link ends", peer.has_ended(5), peer.frames)
                peer = following
        finally:
            over.append(True)
        for future in futures:
            future.result(20)
    peer.close()
    failed = [each for each in outcomes if each != 200]
    expect.equal(f"none of {len(outcomes)} requests failed over ten links", failed, [])
    print(f"        {len(outcomes)} requests")


def sdk(rig):
    tunnel = tunnel_of(rig.server, "sdk")
    with attach(tunnel, says("native")) as native:
        expect.equal("the native one serves", ask(tunnel).body, b"native")
        agent = tunnel.agent(lambda agent, envelope: agent.reply(envelope.id, b"sdk"))
        told_to_go(native)
        expect.equal("an agent of the SDK takes over", ask(tunnel).body, b"sdk")
        with attach(tunnel, says("back")) as back:
            expect.until("it is taken over", 5, lambda: agent.intake_answers or agent.ended_at)
            answers = [stream.status for stream in agent.intake_answers]
            expect.that("and told so in its own way", not answers or set(answers) == {409}, agent.intake_answers)
            expect.equal("the native one serves again", ask(tunnel).body, b"back")
            expect.equal("and is told nothing", back.told, [])
        agent.close()
    # Sharing is nothing to the SDK's agents.
    with attach(tunnel, says("native"), changes={"Adit-Share": "true"}) as native:
        agent = tunnel.agent(lambda agent, envelope: agent.reply(envelope.id, b"sdk"))
        told_to_go(native)
        expect.equal("one that shares is taken over, too", ask(tunnel).body, b"sdk")
        agent.close()


def rename(tunnel, handle):
    answer = tunnel.server.ask("PATCH", f"/api/v1/identities/{tunnel.handle}", {"agent_handle": handle})
    expect.status("it is renamed", answer, 200)
    tunnel.handle = handle


def renamed(rig):
    tunnel = tunnel_of(rig.server, "renamed")
    with attach(tunnel) as peer, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        stream, old = visitor.open(), tunnel.host
        asked = peer.next()
        rename(tunnel, "renamed-after")
        expect.that("the agent is told", peer.hears("/renamed"), peer.told)
        asked.answer(b"of the old name")
        expect.equal("what was open finishes", visitor.visited(stream).body, b"of the old name")
        with contextlib.closing(VisitorOne(tunnel)) as other:
            other.send(f"GET / HTTP/1.1\r\nHost: {tunnel.host}\r\n\r\n".encode())
            asked = peer.next(SOON)
            expect.equal("the new name is served by the same session", asked.authority, tunnel.host)
            asked.answer(b"of the new name")
            expect.equal("it is answered", other.visited().body, b"of the new name")
        came = visitor.ask(host=old)
        expect.that(
            "the old name is nobody's, on an old connection, too", came.status in (404, 421, 502, 503, None), came
        )
        expect.that("the link lives", peer.ping() and peer.told == ["/renamed"], peer.told)


def renamed_raw(rig):
    tunnel, _ = raw_tunnel(rig.server, "renamed-raw")
    with attach(tunnel) as peer:
        rename(tunnel, "renamed-raw-after")
        expect.that("the agent is told", peer.hears("/renamed"), (peer.told, peer.ended_at))
        print(f"        its link has ended: {bool(peer.ended_at)}")


def deleted(rig):
    tunnel = tunnel_of(rig.server, "deleted")
    with attach(tunnel, says("here")) as peer:
        expect.equal("it serves", ask(tunnel).body, b"here")
        expect.status("it is deleted", rig.server.ask("DELETE", f"/api/v1/identities/{tunnel.handle}"), 200, 204)
        expect.that("the agent is told", peer.hears("/revoked"), (peer.told, peer.ended_at))
        expect.that("and the link ends", peer.has_ended(5), peer.frames)
    with contextlib.suppress(Ended, OSError):
        expect.that("visitors are told", ask(tunnel).status in (404, 502, 503))
    try:
        attach(tunnel).close()
        raise expect.Failed("attaching again is refused")
    except NotAttached as refusal:
        expect.equal("attaching again tells which", refusal.response.status, 403)


def key_revoked(rig):
    tunnel = tunnel_of(rig.server, "revoked")
    made = rig.server.ask("POST", "/api/v1/api-keys", {"label": "one", "scoped_identity_id": tunnel.identity}).json
    changes = {"X-API-Key": made["api_key"]}
    with attach(tunnel, says("here"), changes=changes) as peer:
        expect.equal("it serves", ask(tunnel).body, b"here")
        expect.status("the key is revoked", rig.server.ask("DELETE", f"/api/v1/api-keys/{made['record']['id']}"), 200)
        expect.that("the agent is told", peer.hears("/revoked"), (peer.told, peer.ended_at))
        expect.that("and the link ends", peer.has_ended(5), peer.frames)
        expect.until("the tunnel is offline", SOON, lambda: not is_connected(tunnel))
    with contextlib.closing(Http1(dial(rig.server))) as connection:
        answer = connection.ask(asked(fields_of(tunnel, **changes)))
        expect.equal("attaching again tells which", answer.status, 401)
    # The sessions of another key are not concerned.
    keys = [
        rig.server.ask("POST", "/api/v1/api-keys", {"label": "one", "scoped_identity_id": tunnel.identity}).json
        for _ in range(2)
    ]
    same = instance()
    peers = [attach(tunnel, says("here"), changes={"X-API-Key": key["api_key"], "Adit-Instance": same}) for key in keys]
    rig.server.ask("DELETE", f"/api/v1/api-keys/{keys[0]['record']['id']}")
    expect.that("the one with the revoked key ends", peers[0].has_ended(5), peers[0].frames)
    expect.that("the other does not", peers[1].ping() and not peers[1].told, peers[1].told)
    expect.equal("and serves", ask(tunnel).body, b"here")
    for peer in peers:
        peer.close()


def secret_rotated(rig):
    made = rig.server.ask("POST", "/api/v1/tunnels", {"tunnel_name": "rotated", "tls_mode": "edge"}).json
    tunnel = tunnel_of(rig.server, "rotated-user")
    changes = {"X-API-Key": None, "X-Tunnel-Secret": made["connect_secret"], "Adit-Tunnel": made["tunnel"]["id"]}
    with attach(tunnel, says("here"), changes=changes) as peer:
        answer = rig.server.ask("POST", f"/api/v1/tunnels/{made['tunnel']['id']}/rotate-secret")
        expect.status("the secret is replaced", answer, 200)
        time.sleep(0.3)
        print(f"        who came with the old secret hears {peer.told}")
    with contextlib.closing(Http1(dial(rig.server))) as connection:
        expect.equal("the old secret is refused", connection.ask(asked(fields_of(tunnel, **changes))).status, 401)
        changes["X-Tunnel-Secret"] = answer.json["connect_secret"]
        expect.equal("the new one is not", connection.ask(asked(fields_of(tunnel, **changes))).status, 101)


def drains(rig):
    with rig.another(grace_period="20s") as server:
        tunnels = [tunnel_of(server, "drains") for _ in range(2)]
        changes = {"Adit-Instance": instance()}
        peers = [attach(tunnels[0], changes=changes), attach(tunnels[0], changes=changes), attach(tunnels[1])]
        with contextlib.closing(VisitorTwo(tunnels[0])) as visitor:
            stream = visitor.open()
            expect.until("a request is there", SOON, lambda: any(not each.asked.empty() for each in peers))
            (busy,) = [each for each in peers if not each.asked.empty()]
            asked = busy.next()
            began = time.monotonic()
            server._process.terminate()
            for peer in peers:
                expect.that("every session is told", peer.hears("/drain"), peer.told)
            time.sleep(1)
            asked.head(200)
            asked.send(b"begun, ")
            time.sleep(1)
            expect.that("the server waits for what is open", server.running and not busy.ended_at)
            asked.send(b"ended", end=True)
            expect.equal("which finishes", visitor.visited(stream).body, b"begun, ended")
        expect.equal("the server ends", server._process.wait(15), 0)
        took = time.monotonic() - began
        expect.that("as soon as nothing is open", took < 8, took)
        for peer in peers:
            expect.that("every link ends", peer.has_ended(5))
            expect.equal("each is told once", peer.told, ["/drain"])
        print(f"        after {took:.1f} s")


def deaf(rig):
    with rig.another(grace_period="3s") as server:
        tunnel = tunnel_of(server, "deaf")
        with attach(tunnel, lambda _asked: None, answers_system=False):
            with contextlib.closing(VisitorTwo(tunnel)) as visitor:
                visitor.open()
                time.sleep(0.2)
                began = time.monotonic()
                expect.equal("the server ends", server.stop(), 0)
                took = time.monotonic() - began
                expect.that("in its time", took < 8, took)
    # Nor at a takeover.
    tunnel = tunnel_of(rig.server, "deaf")
    with attach(tunnel, says("old"), answers_system=False) as old, attach(tunnel, says("new")):
        told_to_go(old, 10)


def few_streams(rig):
    tunnel = tunnel_of(rig.server, "few")
    settings = ((3, 2), *SETTINGS_OF_AN_AGENT[1:])
    changes = {"Adit-Instance": instance()}
    with attach(tunnel, settings=settings, changes=changes) as peer, contextlib.closing(VisitorTwo(tunnel)) as visitor:
        streams = [visitor.open(f"/{number}") for number in range(6)]
        time.sleep(0.5)
        expect.that("no more than it said are opened", len(peer.streams) <= 2, peer.streams)
        done = 0
        while done < 6:
            try:
                asked = peer.next(SOON)
            except Exception:
                break
            asked.answer(b"done")
            done += 1
        came = collections.Counter(visitor.visited(each).status for each in streams)
        expect.that("the rest waits, or is told", came[200] >= 2 and set(came) <= {200, 502, 503}, came)
        print(f"        {dict(came)}")
    with attach(tunnel, settings=((3, 0), *SETTINGS_OF_AN_AGENT[1:])):
        began = time.monotonic()
        came = ask(tunnel, timeout=45)
        expect.that("none at all is an error, in time", came.status in (502, 503, 504), came)
        print(f"        none: {came.status} after {time.monotonic() - began:.1f} s")


def churn(rig):
    tunnel = tunnel_of(rig.server, "churn")
    changes = {"Adit-Instance": instance()}

    def one(number):
        for _ in range(10):
            with attach(tunnel, says("here"), way=("zone", "api")[number % 2], changes=changes) as peer:
                came = ask(tunnel)
                peer.goes_away(peer.newest)
                if came.status != 200 or not peer.has_ended(5):
                    return came
        return None

    with attach(tunnel, says("here"), changes=changes):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            failed = [each for each in pool.map(one, range(8)) if each]
        expect.equal("none of 80 is in the way of another", failed, [])
    expect.until("nobody is left", SOON, lambda: not is_connected(tunnel))
