"""A DER encoder that hides nothing: every function returns the octets of one element."""

NULL = b"\x05\x00"
FALSE = b"\x01\x01\x00"
TRUE = b"\x01\x01\xff"


def tlv(tag: int, *content: bytes) -> bytes:
    value = b"".join(content)
    return bytes([tag]) + length(len(value)) + value


def length(octets: int) -> bytes:
    if octets < 0x80:
        return bytes([octets])
    encoded = octets.to_bytes((octets.bit_length() + 7) // 8)
    return bytes([0x80 | len(encoded)]) + encoded


def sequence(*elements: bytes) -> bytes:
    return tlv(0x30, *elements)


def set_of(*elements: bytes) -> bytes:
    """A SET OF in the order that DER wants."""
    return tlv(0x31, *sorted(elements))


def set_as_given(*elements: bytes) -> bytes:
    return tlv(0x31, *elements)


def context(number: int, *content: bytes) -> bytes:
    """A constructed, context-specific element."""
    return tlv(0xA0 | number, *content)


def context_primitive(number: int, value: bytes) -> bytes:
    return tlv(0x80 | number, value)


def integer(number: int) -> bytes:
    return tlv(0x02, number.to_bytes(number.bit_length() // 8 + 1, signed=True))


def oid(dotted: str) -> bytes:
    first, second, *rest = map(int, dotted.split("."))
    return tlv(0x06, *map(_base128, [40 * first + second, *rest]))


def _base128(arc: int) -> bytes:
    octets = [arc & 0x7F]
    while arc := arc >> 7:
        octets.append(0x80 | arc & 0x7F)
    return bytes(reversed(octets))


def bit_string(octets: bytes, unused_bits: int = 0) -> bytes:
    return tlv(0x03, bytes([unused_bits]), octets)


def octet_string(octets: bytes) -> bytes:
    return tlv(0x04, octets)


def utf8(text: str) -> bytes:
    return tlv(0x0C, text.encode())


def printable(text: str) -> bytes:
    return tlv(0x13, text.encode("ascii"))


def teletex(text: str) -> bytes:
    return tlv(0x14, text.encode("latin-1"))


def ia5(text: str) -> bytes:
    return tlv(0x16, text.encode("ascii"))


def visible(text: str) -> bytes:
    return tlv(0x1A, text.encode("ascii"))


def universal(text: str) -> bytes:
    return tlv(0x1C, text.encode("utf-32-be"))


def bmp(text: str) -> bytes:
    return tlv(0x1E, text.encode("utf-16-be"))
