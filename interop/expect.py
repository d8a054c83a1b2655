"""Expectations: each one that holds is counted, the first that does not ends the script.

Where the rest can be judged all the same, `each` runs them as named checks. A script
hands its main function to `run`, which prints `N passed, 0 failed` and exits 0, or
prints what was expected and what came and exits 1.
"""

import concurrent.futures
import sys
import time

_passed = []


class Failed(Exception):
    """An expectation that did not hold; the text says what was expected and what came."""


def that(what, holds, came=""):
    """`what` is a sentence that must be true; `came` is shown when it is not."""
    if not holds:
        raise Failed(f"{what}\n  came: {_shown(came)}")
    _passed.append(True)


def equal(what, came, wanted):
    that(f"{what}\n  expected: {_shown(wanted)}", came == wanted, came)


def one_of(what, came, *wanted):
    that(f"{what}\n  expected one of: {_shown(wanted)}", came in wanted, came)


def status(what, answer, *wanted):
    """The answer has one of the wanted statuses; its body is shown when it has not."""
    that(f"{what}\n  expected status: {_shown(wanted)}", answer.status in wanted, answer)


def problem(what, answer, *wanted):
    """The answer is an RFC 9457 problem document with one of the wanted statuses."""
    status(what, answer, *wanted)
    kind = answer.headers.get("content-type", "")
    that(
        f"{what}: the content type is application/problem+json", kind.split(";")[0] == "application/problem+json", kind
    )
    try:
        document = answer.json
    except ValueError:
        document = None
    that(f"{what}: the body is a JSON object", isinstance(document, dict), answer)
    equal(f"{what}: `status` repeats the status", document.get("status"), answer.status)
    for member in ("type", "title"):
        that(f"{what}: `{member}` is a text", isinstance(document.get(member), str), document)
    # A handle conflict carries an object here, because the clients read one.
    that(f"{what}: `detail` is a text or an object", isinstance(document.get("detail"), (str, dict)), document)


def raises(what, error_class, call, *values, **named):
    """The call raises exactly `error_class`, not a class derived from it. Returns the error."""
    try:
        result = call(*values, **named)
    except Exception as error:
        that(
            f"{what}\n  expected: {error_class.__name__}",
            type(error) is error_class,
            f"{type(error).__name__}: {error}",
        )
        return error
    raise Failed(f"{what}\n  expected: {error_class.__name__}\n  came: {_shown(result)}")


def raises_any(what, call):
    """The call raises whatever error; what it answers is a failure."""
    try:
        result = call()
    except Exception:
        _passed.append(True)
        return
    raise Failed(f"{what} fails\n  came: {_shown(result)}")


def until(what, within, holds):
    """`holds` answers something true within so many seconds; it is asked again and again."""
    begun, came = time.monotonic(), False
    while not came and time.monotonic() - begun < within:
        time.sleep(0.02)
        came = holds()
    took = time.monotonic() - begun
    that(f"{what} within {within} s", came and took <= within, f"{came}, after {took:.1f} s")


def each(checks, at_once=1):
    """Calls every (name, call) and prints a line for each; fails at the end if one of them did."""
    failures = [name for name in together(checks, at_once) if name]
    if failures:
        raise Failed(f"{len(failures)} of {len(checks)} checks do not hold: {'; '.join(failures)}")


def together(checks, at_once):
    """Like `each`, but answers the names of the checks that failed, and None for the others."""

    def one(check):
        name, call = check
        began, came = time.monotonic(), None
        try:
            call()
        except Exception as error:
            kind = "" if isinstance(error, Failed) else f"{type(error).__name__}: "
            came = f"{kind}{error}".replace("\n", "\n    ")
        _passed.extend([True] * (came is None))
        took = f"{time.monotonic() - began:.1f} s"
        line = f"ok      {name} ({took})\n" if came is None else f"FAILED  {name} ({took})\n    {came}\n"
        # In one piece: others print too.
        print(line, end="", flush=True)
        return name if came is not None else None

    with concurrent.futures.ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(one, checks))


def run(main):
    try:
        main()
    except Failed as failure:
        print(f"FAILED: {failure}", file=sys.stderr)
        sys.exit(1)
    print(f"{len(_passed)} passed, 0 failed")


def _shown(value):
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 1000 else f"{text[:1000]}... ({len(text)} characters)"
