"""What `make_requests.py` is made of.

der       octets: an encoder that also writes what DER forbids
numbers   reproducible "random" octets and primes
keys      sound keys and their signatures
weak      keys that a certificate authority must not sign
pkcs10    requests (RFC 2986) and their PEM form (RFC 7468)
fixture   one file and what the gate must say about it
accepted  requests that must pass
refused   requests that must not, each wrong in one thing, in four modules
check     what OpenSSL and pyca/cryptography say about the files
"""
