from __future__ import annotations

import hashlib
from typing import Any

import pytest
from slixmpp.util.sasl import client

from spinal.bus.transports import scram

# RFC 7677, section 3.
NONCE = b"rOprNGfwEbeRWgbNEkqO"
SERVER_FIRST = (
    b"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
)
CLIENT_FINAL = (
    b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,"
    b"p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ="
)
SERVER_FINAL = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4="


def login() -> Any:
    credentials = {
        "username": b"user",
        "password": b"pencil",
        "authzid": b"",
        "channel_binding": b"",
    }
    security = {"encrypted": True, "binding_proposed": True, "tls_version": "TLSv1.3"}
    mech: Any = client.MECHANISMS["SCRAM-SHA-256"]("SCRAM-SHA-256", credentials, security)
    mech.process()
    mech.cnonce = NONCE
    mech.client_first_message_bare = b"n=user,r=" + NONCE
    return mech


def test_the_exchange_of_the_rfc_is_spoken() -> None:
    mech = login()
    assert isinstance(mech, scram.Scram)
    assert mech.process(SERVER_FIRST) == CLIENT_FINAL
    assert mech.process(SERVER_FINAL) == b""


def test_a_server_that_does_not_know_the_password_is_refused() -> None:
    mech = login()
    mech.process(SERVER_FIRST)
    with pytest.raises(client.SASLMutualAuthFailed):
        mech.process(SERVER_FINAL[:-2] + b"A=")


def test_a_password_is_salted_once_and_anew_for_another_salt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    salted: list[bytes] = []
    real = hashlib.pbkdf2_hmac

    def note(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        salted.append(salt)
        return real(name, password, salt, iterations)

    scram.salted.cache_clear()
    monkeypatch.setattr(hashlib, "pbkdf2_hmac", note)
    for _ in range(3):
        assert login().process(SERVER_FIRST) == CLIENT_FINAL
    other = SERVER_FIRST.replace(b"s=W22", b"s=X22")
    assert login().process(other) != CLIENT_FINAL
    assert len(salted) == 2 and salted[0] != salted[1]


def test_slixmpp_ranks_it_as_it_ranks_its_own() -> None:
    scores = client.MECH_SEC_SCORES
    assert client.MECHANISMS["SCRAM-SHA-256"] is scram.Scram
    assert scores["PLAIN"] < scores["SCRAM-SHA-1"] < scores["SCRAM-SHA-256"]
    assert scores["SCRAM-SHA-256"] < scores["SCRAM-SHA-256-PLUS"]
