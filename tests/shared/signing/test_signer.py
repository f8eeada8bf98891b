"""Signatures: only what was signed, under the name it was signed for, with a key that is known."""

from __future__ import annotations

import hmac
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from farpool.shared.errors import ConfigError, SignatureError
from farpool.shared.signing import signer
from farpool.shared.signing.signer import FILE_VARIABLE, SECRET_VARIABLE, Key, Signer

OLD, NEW = b"an old secret that was long", b"a new secret that is longer"
OURS = Signer([NEW])
Job = tuple[str, tuple[bytes, ...], bytes]
bits = st.binary(max_size=3)
covered_fields = st.tuples(bits) | st.tuples(bits, bits, bits, bits, bits)
jobs = st.tuples(st.text(max_size=3), covered_fields, bits)


@given(name=st.text(max_size=9), data=st.binary(), change=st.data())
def test_only_what_was_sealed_is_opened(name: str, data: bytes, change: st.DataObject) -> None:
    sealed = OURS.seal(name, data)
    assert OURS.open(name, sealed) == data
    assert signer.unsealed(sealed) == data
    at = change.draw(st.integers(0, len(sealed) - 1))
    bit = 1 << change.draw(st.integers(0, 7))
    altered = sealed[:at] + bytes([sealed[at] ^ bit]) + sealed[at + 1 :]
    with pytest.raises(SignatureError):
        OURS.open(name, altered)
    with pytest.raises(SignatureError):
        OURS.open(name + "x", sealed)
    with pytest.raises(SignatureError):
        OURS.open(name, sealed[:at])
    with pytest.raises(SignatureError):
        OURS.open(name, data)


@given(secret=st.binary(max_size=200), head=st.binary(), data=st.binary())
def test_a_code_is_what_hmac_makes_of_it(secret: bytes, head: bytes, data: bytes) -> None:
    assert Key(secret).code(head, data) == hmac.digest(secret, head + data, "sha256")


@given(first=jobs, second=jobs)
def test_no_two_jobs_have_the_same_signature(first: Job, second: Job) -> None:
    same = OURS.sign_covered(*first) == OURS.sign_covered(*second)
    assert same == (meaning(first) == meaning(second))


def meaning(job: Job) -> tuple[str, bytes, list[bytes], bytes]:
    job_id, (tag, *called), data = job
    return job_id, tag, called if any(called) else [], data


@given(name=st.text(max_size=3), data=bits)
def test_things_of_different_kinds_have_different_signatures(name: str, data: bytes) -> None:
    job, called = (b"",), (b"", b"mail.send", b"", b"", b"")
    made = (
        OURS.sign_covered(name, job, data),
        OURS.sign_covered(name, called, data),
        OURS.sign(b"sealed", name, data),
        OURS.sign(b"failure", name, data),
    )
    assert len(set(made)) == len(made)


def test_keys_can_be_changed_without_a_stop() -> None:
    before, between, after = Signer([OLD]), Signer([NEW, OLD]), Signer([NEW])
    assert between.open("a", before.seal("a", b"data")) == b"data"
    assert after.open("a", between.seal("a", b"data")) == b"data"
    with pytest.raises(SignatureError, match="another secret"):
        after.open("a", before.seal("a", b"data"))


def test_what_a_signed_job_calls_cannot_be_changed() -> None:
    none = [None] * len(signer.COVERED_FIELDS)
    covered = [b"tag", b"mail.send", b"", None, None]
    signature = OURS.sign_covered("a", covered, b"data")
    OURS.check_job("a", signature, [value or b"" for value in covered], b"data")
    for changed in (
        [b"tag", b"mail.spam", None, None, None],
        [b"tag", None, b"mail.send", None, None],
        [b"tag", b"mail.send", None, None, b"[]"],
        [b"tags", b"mail.send", None, None, None],
        none,
    ):
        with pytest.raises(SignatureError, match=r"another secret, or altered.*FARPOOL_SECRET"):
            OURS.check_job("a", signature, changed, b"data")
    with pytest.raises(SignatureError, match="is not signed"):
        OURS.check_job("a", None, none, b"data")


def test_the_secret_comes_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert signer.from_environment() is None
    monkeypatch.setenv(SECRET_VARIABLE, f"{NEW.decode().replace(' ', '-')} {'o' * 16}")
    found = signer.from_environment()
    assert found is not None
    assert found.count == 2
    assert found.open("a", Signer([b"o" * 16]).seal("a", b"data")) == b"data"
    file = tmp_path / "secret"
    file.write_text(f"{'n' * 16}\n{'o' * 16}\n")
    monkeypatch.setenv(FILE_VARIABLE, str(file))
    with pytest.raises(ConfigError, match="not both"):
        signer.from_environment()
    monkeypatch.delenv(SECRET_VARIABLE)
    found = signer.from_environment()
    assert found is not None
    assert Signer([b"n" * 16]).open("a", found.seal("a", b"data")) == b"data"


@pytest.mark.parametrize(
    ("text", "message"),
    [("short", "fewer than 16 characters"), (" \n", "holds no secret"), (None, "cannot read")],
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
        signer.from_environment()
    assert str(file) in str(caught.value)
    assert "short" not in str(caught.value).replace(str(file), "")
