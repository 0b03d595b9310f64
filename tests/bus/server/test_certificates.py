from __future__ import annotations

import os
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509

from spinal.bus.server import certificates
from spinal.bus.server.certificates import Certificates, ensure
from spinal.bus.server.errors import ServerError


def handshake(files: Certificates, name: str, ca: Path | None = None) -> str:
    """Connect as strictly as Python 3.13 does by default, and give the TLS version."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.certificate, files.key)
    asking = ssl.create_default_context(cafile=str(ca or files.ca))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    ours, theirs = socket.socketpair()

    def serve() -> None:
        # That the client leaves is the client's to report.
        try:
            with serving.wrap_socket(theirs, server_side=True) as stream:
                stream.recv(1)
        except OSError:
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        with ours, asking.wrap_socket(ours, server_hostname=name) as stream:
            return str(stream.version())
    finally:
        thread.join(10)


def names(files: Certificates) -> set[str]:
    leaf = x509.load_pem_x509_certificate(files.certificate.read_bytes())
    found = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return {str(one.value) for one in found}


def set_clock(monkeypatch: pytest.MonkeyPatch, ahead: timedelta) -> None:
    class Later(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]
            return datetime.now(UTC) + ahead

    monkeypatch.setattr(certificates, "datetime", Later)


@pytest.mark.parametrize(
    "name",
    (
        *("bus.test", "upload.bus.test", "any.bus.test", "localhost", "127.0.0.1", "::1"),
        *("10.0.0.9", "host.example.org"),
    ),
)
def test_a_strict_client_accepts_every_name(tmp_path: Path, name: str) -> None:
    files = ensure(tmp_path, "bus.test", ["10.0.0.9", "host.example.org"])
    assert handshake(files, name) == "TLSv1.3"


@pytest.mark.parametrize("domain", ["bus", "home.localhost", "192.0.2.1", "büro.example", "A.Test"])
def test_unusual_domains_work(tmp_path: Path, domain: str) -> None:
    handshake(ensure(tmp_path, domain), domain.lower())


def test_a_single_label_has_its_services_named_one_by_one(tmp_path: Path) -> None:
    files = ensure(tmp_path, "bus")
    handshake(files, "upload.bus")
    handshake(files, "conference.bus")


def test_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(ensure(tmp_path, "bus.test"), "other.test")


def test_another_authority_is_refused(tmp_path: Path) -> None:
    files, other = ensure(tmp_path / "a", "bus.test"), ensure(tmp_path / "b", "bus.test")
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(files, "bus.test", other.ca)


def test_keys_are_for_their_owner_only(tmp_path: Path) -> None:
    files = ensure(tmp_path / "new", "bus.test")
    for secret in (files.key, files.combined, files.ca.with_name("ca-key.pem")):
        assert secret.stat().st_mode & 0o777 == 0o600
    assert files.ca.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


def test_the_combined_file_serves_alone(tmp_path: Path) -> None:
    files = ensure(tmp_path, "bus.test")
    alone = Certificates(files.ca, files.combined, files.combined, files.combined)
    handshake(alone, "bus.test")


def test_asking_again_changes_nothing(tmp_path: Path) -> None:
    before = contents(ensure(tmp_path, "bus.test", ["10.0.0.1", "10.0.0.2"]))
    assert contents(ensure(tmp_path, "bus.test", ["10.0.0.2"])) == before


def test_a_missing_name_renews_the_certificate_and_keeps_the_authority(tmp_path: Path) -> None:
    before = ensure(tmp_path, "bus.test")
    ca = before.ca.read_bytes()
    after = ensure(tmp_path, "bus.test", ["10.0.0.1"])
    assert "10.0.0.1" in names(after)
    assert after.ca.read_bytes() == ca
    handshake(after, "10.0.0.1")


def test_an_old_certificate_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(ensure(tmp_path, "bus.test"))
    set_clock(monkeypatch, timedelta(days=300))
    assert contents(ensure(tmp_path, "bus.test")) == before
    set_clock(monkeypatch, timedelta(days=340))
    after = contents(ensure(tmp_path, "bus.test"))
    assert after["ca.pem"] == before["ca.pem"]
    assert after["server.pem"] != before["server.pem"]


def test_an_old_authority_is_renewed_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(ensure(tmp_path, "bus.test"))
    set_clock(monkeypatch, timedelta(days=3640))
    after = contents(ensure(tmp_path, "bus.test"))
    assert after["ca.pem"] != before["ca.pem"]
    assert after["ca-key.pem"] == before["ca-key.pem"]


def test_the_key_of_the_authority_may_be_kept_elsewhere_until_it_is_needed(tmp_path: Path) -> None:
    ensure(tmp_path, "bus.test")
    (tmp_path / "ca-key.pem").unlink()
    ensure(tmp_path, "bus.test")
    with pytest.raises(ServerError, match="put it back"):
        ensure(tmp_path, "bus.test", ["10.0.0.1"])


@pytest.mark.parametrize("file", ["server.pem", "server-key.pem", "server-all.pem"])
def test_a_lost_file_is_made_again(tmp_path: Path, file: str) -> None:
    files = ensure(tmp_path, "bus.test")
    (tmp_path / file).unlink()
    ensure(tmp_path, "bus.test")
    handshake(files, "bus.test")


def test_a_pair_that_does_not_fit_is_mended(tmp_path: Path) -> None:
    files = ensure(tmp_path / "a", "bus.test")
    files.key.write_bytes(ensure(tmp_path / "b", "bus.test").key.read_bytes())
    handshake(ensure(tmp_path / "a", "bus.test"), "bus.test")


@pytest.mark.parametrize("file", ["ca.pem", "server-all.pem"])
def test_a_file_that_is_no_certificate_is_named(tmp_path: Path, file: str) -> None:
    ensure(tmp_path, "bus.test")
    (tmp_path / file).write_text("nonsense")
    with pytest.raises(ServerError, match=file):
        ensure(tmp_path, "bus.test")


@pytest.mark.parametrize("name", ["", "a b", "x" * 64 + "ü.test"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ServerError, match="host name"):
        ensure(tmp_path, name)


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    ensure(tmp_path, "bus.test")
    assert sorted(os.listdir(tmp_path)) == sorted(contents(ensure(tmp_path, "bus.test")))


def contents(files: Certificates) -> dict[str, bytes]:
    ca_key = files.ca.with_name("ca-key.pem")
    paths = (files.ca, files.certificate, files.key, files.combined, ca_key)
    return {path.name: path.read_bytes() for path in paths}
