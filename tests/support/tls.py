"""TLS before a real server: certificates by the openssl command, and what speaks it.

The embedded server has no TLS of its own, so something before it takes it off.
"""

from __future__ import annotations

import contextlib
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.relay import relay


def make_certificates(folder: Path) -> None:
    """Write ca.crt, and host.crt (for localhost) and other.crt (for other.test) with their keys."""
    if shutil.which("openssl") is None:
        pytest.skip("there is no openssl command to make certificates with")
    key = ["-newkey", "rsa:2048", "-nodes"]
    _openssl(
        folder, "req", "-x509", *key, "-subj", "/CN=Test authority", "-days", "2",
        "-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.crt",
    )  # fmt: skip
    for name, host in (("host", "localhost"), ("other", "other.test")):
        extensions = folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName=DNS:{host}\nauthorityKeyIdentifier=keyid\n")
        _openssl(
            folder, "req", *key, "-subj", f"/CN={host}", "-keyout", f"{name}.key",
            "-out", f"{name}.csr",
        )  # fmt: skip
        _openssl(
            folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
            "-CAcreateserial", "-days", "2", "-extfile", extensions.name, "-out", f"{name}.crt",
        )  # fmt: skip


def _openssl(folder: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@contextlib.contextmanager
def tls_before(path: str, certificate: Path) -> Iterator[int]:
    """Speak TLS on a port, and pass what is said on to the unix socket `path`; yields the port."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    with relay(path, lambda sock: context.wrap_socket(sock, server_side=True)) as port:
        yield port
