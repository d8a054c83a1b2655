"""Requests that the gate must refuse. Each is wrong in one thing; what it can prove, it proves."""

from collections.abc import Iterator

from . import refused_form, refused_keys, refused_names, refused_signatures
from .fixture import Fixture


def fixtures() -> Iterator[Fixture]:
    """In the order of the gate."""
    yield from refused_form.fixtures()
    yield from refused_keys.fixtures()
    yield from refused_signatures.fixtures()
    yield from refused_names.fixtures()
