"""Signatures: only what was signed, under the name it was signed for, with a key that is known."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared import signing
from farpool.shared.errors import ConfigError, SignatureError
from farpool.shared.signing import FILE_VARIABLE, SECRET_VARIABLE, Signer

OLD, NEW = b"an old secret that was long", b"a new secret that is longer"
signer = Signer([NEW])
parts = st.lists(st.binary(max_size=6), min_size=1, max_size=4)


@given(name=st.text(max_size=9), data=st.binary(), change=st.data())
def test_only_what_was_sealed_is_opened(name: str, data: bytes, change: st.DataObject) -> None:
    sealed = signer.seal(name, data)
    assert signer.open(name, sealed) == data
    assert signing.unsealed(sealed) == data
    at = change.draw(st.integers(0, len(sealed) - 1))
    bit = 1 << change.draw(st.integers(0, 7))
    altered = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
    with pytest.raises(SignatureError):
        signer.open(name, altered)
    with pytest.raises(SignatureError):
        signer.open(name + "x", sealed)
    with pytest.raises(SignatureError):
        signer.open(name, sealed[:at])
    with pytest.raises(SignatureError):
        signer.open(name, data)


@given(first=parts, second=parts)
def test_no_two_things_have_the_same_signature(first: list[bytes], second: list[bytes]) -> None:
    same = signer.sign(b"a", first) == signer.sign(b"a", second)
    assert same == (first == second)
    assert signer.sign(b"a", first) != signer.sign(b"b", first)


@pytest.mark.parametrize("size", [0, signing._INLINE_BYTES - 1, signing._INLINE_BYTES, 1 << 20])
def test_a_signature_does_not_depend_on_how_it_is_made(size: int) -> None:
    data = bytes(size)
    sealed = Signer([NEW]).seal("a", data)
    assert signer.open("a", sealed) == data
    with pytest.raises(SignatureError):
        signer.open("a", sealed + b"\0")


def test_keys_can_be_changed_without_a_stop() -> None:
    before, between, after = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    assert between.open("a", before.seal("a", b"data")) == b"data"
    assert after.open("a", between.seal("a", b"data")) == b"data"
    with pytest.raises(SignatureError, match="another secret"):
        after.open("a", before.seal("a", b"data"))


def test_what_a_signed_job_calls_cannot_be_changed() -> None:
    none = [None] * len(signing.COVERED_FIELDS)
    covered = [b"tag", b"mail.send", b"", None, None]
    signature = signer.sign_covered("a", covered, b"data")
    signer.check_job("a", signature, [value or b"" for value in covered], b"data")
    for changed in (
        [b"tag", b"mail.spam", None, None, None],
        [b"tag", None, b"mail.send", None, None],
        [b"tag", b"mail.send", None, None, b"[]"],
        [b"tags", b"mail.send", None, None, None],
        none,
    ):
        with pytest.raises(SignatureError, match="was altered"):
            signer.check_job("a", signature, changed, b"data")
    with pytest.raises(SignatureError, match="is not signed"):
        signer.check_job("a", None, none, b"data")


def test_the_secret_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert signing.from_environment() is None
    monkeypatch.setenv(SECRET_VARIABLE, f"{NEW.decode().replace(' ', '-')} {'o' * 16}")
    found = signing.from_environment()
    assert found is not None
    assert found.count == 2
    assert found.open("a", Signer([b"o" * 16]).seal("a", b"data")) == b"data"
    file = tmp_path / "secret"
    file.write_text(f"{'n' * 16}\n{'o' * 16}\n")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(ConfigError, match="not both"):
        signing.from_environment()
    monkeypatch.delenv(SECRET_VARIABLE)
    found = signing.from_environment()
    assert found is not None
    assert Signer([b"n" * 16]).open("a", found.seal("a", b"data")) == b"data"


@pytest.mark.parametrize(
    ("text", "message"),
    [("short", "less than 16 characters"), (" \n", "there is no secret"), (None, "cannot read")],
)
def test_a_secret_that_cannot_be_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / (text or "nothing").strip()
    if text is not None:
        file = tmp_path / "secret"
        file.write_text(text)
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(ConfigError, match=message) as caught:
        signing.from_environment()
    assert str(file) in str(caught.value)
    assert "short" not in str(caught.value).replace(str(file), "")
