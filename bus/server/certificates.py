"""A certificate authority of our own, and the certificate that a server shows.

Everybody who talks to a home trusts exactly one file, ``ca.pem``.  It stays the same for ten
years while the server's certificate is renewed at each start that finds it old, so agents never
have to be told anything.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from .errors import ServerError
from .files import write

CA_LIFE: Final = timedelta(days=3652)
LEAF_LIFE: Final = timedelta(days=365)
#: A certificate with less than this left is made anew.
RENEW_BEFORE: Final = timedelta(days=30)
#: Machines that were just rented often have a clock that is behind.
BACKDATE: Final = timedelta(hours=1)

_LOCAL: Final = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Certificates:
    """Where the PEM files of one server are."""

    #: The certificate of our own authority: what clients trust.
    ca: Path
    #: The server's certificate, then the authority's.
    certificate: Path
    #: The server's private key, readable by its owner only.
    key: Path
    #: All three in one file, readable by its owner only, for servers that want it so.
    combined: Path


def ensure(folder: Path, domain: str, hosts: Sequence[str] = ()) -> Certificates:
    """Make what is missing in the folder, renew what is old, and say where it all is.

    The server's certificate covers ``domain``, its direct subdomains, the loopback addresses and
    ``hosts`` (names or addresses).  Calling it again changes nothing until a name is missing or
    less than :data:`RENEW_BEFORE` is left.  Several processes may call it at once.

    Raises :class:`ServerError` if the authority's key is needed and is gone, or a file is not
    what it should be.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = Certificates(
        folder / "ca.pem",
        folder / "server.pem",
        folder / "server-key.pem",
        folder / "server-all.pem",
    )
    names = _names(domain, hosts)
    with _locked(folder):
        authority = _Authority(files.ca, folder / "ca-key.pem")
        leaf = _load_leaf(files.combined)
        if leaf is None or not leaf.good_for(authority.certificate, names):
            leaf = _Leaf.issue(authority, names)
            # The one file that holds both certificate and key goes first; the other two follow
            # from it, so that a crash in between cannot leave a pair that does not fit.
            write(files.combined, leaf.chain + leaf.key, 0o600)
        for path, content, mode in (
            (files.certificate, leaf.chain, 0o644),
            (files.key, leaf.key, 0o600),
        ):
            if not path.exists() or path.read_bytes() != content:
                write(path, content, mode)
    return files


class _Authority:
    """The certificate authority of one folder; its key is read only when something is signed."""

    def __init__(self, path: Path, key_path: Path) -> None:
        self._path = path
        self._key_path = key_path
        self._key: ec.EllipticCurvePrivateKey | None = None
        if path.exists():
            self.certificate = _certificates(path)[0]
            if _left(self.certificate) >= RENEW_BEFORE:
                return
        elif not key_path.exists():
            self._key = ec.generate_private_key(ec.SECP256R1())
            write(key_path, _key_pem(self._key), 0o600)
        self.certificate = self._issue()
        write(path, self.pem, 0o644)

    @property
    def pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key(self) -> ec.EllipticCurvePrivateKey:
        if self._key is None:
            if not self._key_path.exists():
                raise ServerError(
                    f"{self._key_path} is gone, so no certificate can be made: put it back from "
                    f"a backup, or delete {self._path} and hand the new one to every agent"
                )
            self._key = _private_key(self._key_path, self._key_path.read_bytes())
        return self._key

    def _issue(self) -> x509.Certificate:
        key = self.key
        serial = x509.random_serial_number()
        # The name differs from authority to authority, so that a machine that trusts several
        # finds the right one.
        name = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Spinal"),
                x509.NameAttribute(NameOID.COMMON_NAME, f"Spinal CA {serial % 16**8:08x}"),
            ]
        )
        now = datetime.now(UTC)
        ski = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(serial)
            .not_valid_before(now - BACKDATE)
            .not_valid_after(now + CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(sign_certificates=True), critical=True)
            .add_extension(ski, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ski), critical=False
            )
            .sign(key, hashes.SHA256())
        )


@dataclass(frozen=True, slots=True)
class _Leaf:
    """The server's certificate with its chain and key, as PEM."""

    certificate: x509.Certificate
    chain: bytes
    key: bytes

    @classmethod
    def issue(cls, authority: _Authority, names: Sequence[x509.GeneralName]) -> _Leaf:
        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        issuer_ski = authority.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        )
        certificate = (
            x509.CertificateBuilder()
            # No common name: it is limited to 64 characters and nobody may look at it
            # (RFC 6125, 6.4.4).  An empty subject makes the alternative names critical
            # (RFC 5280, 4.2.1.6), which old GnuTLS dislikes; so the subject has a word in it.
            .subject_name(
                x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Spinal server")])
            )
            .issuer_name(authority.certificate.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - BACKDATE)
            .not_valid_after(min(now + LEAF_LIFE, authority.certificate.not_valid_after_utc))
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign_certificates=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(
                x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_ski.value),
                critical=False,
            )
            .sign(authority.key, hashes.SHA256())
        )
        chain = certificate.public_bytes(Encoding.PEM) + authority.pem
        return cls(certificate, chain, _key_pem(key))

    def good_for(self, authority: x509.Certificate, names: Sequence[x509.GeneralName]) -> bool:
        """Whether it can go on being used."""
        if _left(self.certificate) < RENEW_BEFORE:
            return False
        if not self.chain.endswith(authority.public_bytes(Encoding.PEM)):
            return False
        try:
            self.certificate.verify_directly_issued_by(authority)
        except (ValueError, TypeError, InvalidSignature):
            return False
        covered = self.certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        return set(names) <= set(covered.value)


def _load_leaf(combined: Path) -> _Leaf | None:
    if not combined.exists():
        return None
    content = combined.read_bytes()
    certificates = _certificates(combined)
    key = _private_key(combined, content)
    if certificates[0].public_key() != key.public_key():
        return None
    chain = b"".join(one.public_bytes(Encoding.PEM) for one in certificates)
    return _Leaf(certificates[0], chain, _key_pem(key))


def _names(domain: str, hosts: Sequence[str]) -> list[x509.GeneralName]:
    """Give the alternative names, each once."""
    names: dict[x509.GeneralName, None] = {}
    wanted = [domain, *_LOCAL, *hosts]
    if not isinstance(_name(domain), x509.IPAddress):
        # OpenSSL matches no wildcard directly below a single label ("*.bus"), so the services
        # that every home has are also named one by one.
        wanted[1:1] = [f"*.{domain}", f"upload.{domain}", f"conference.{domain}"]
    for text in wanted:
        names[_name(text)] = None
    return list(names)


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(text.strip("[]")))
    except ValueError:
        pass
    try:
        ascii_text = text if text.isascii() else text.encode("idna").decode("ascii")
    except UnicodeError as error:
        raise ServerError(f"{text!r} is not a host name: give a DNS name or an address") from error
    if not ascii_text or ascii_text != "".join(ascii_text.split()):
        raise ServerError(f"{text!r} is not a host name: give a DNS name or an address")
    return x509.DNSName(ascii_text.lower())


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _left(certificate: x509.Certificate) -> timedelta:
    return certificate.not_valid_after_utc - datetime.now(UTC)


def _certificates(path: Path) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(path.read_bytes())
    except ValueError as error:
        raise ServerError(f"{path} is not a certificate: put it back or delete it") from error


def _private_key(path: Path, content: bytes) -> ec.EllipticCurvePrivateKey:
    start = content.find(b"-----BEGIN PRIVATE KEY-----")
    try:
        key = load_pem_private_key(content[max(start, 0) :], None)
    except (ValueError, TypeError) as error:
        raise ServerError(f"{path} holds no usable key: put it back or delete it") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ServerError(f"{path} holds a key of another kind: delete it to have one made")
    return key


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    """Keep other processes out of the folder meanwhile."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
