"""A throw-away certificate for 127.0.0.1, so that the TLS scenarios need no files of the user's."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import trustme

from cachecast_bench.target import Certificate

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def temporary_certificate() -> Iterator[Certificate]:
    """Write certificate and key into a folder that is gone when the block is left.

    The key is trustme's default (ECDSA on P-256), which is what public authorities issue by default
    too.
    """
    issued = trustme.CA().issue_cert("127.0.0.1", "localhost")
    with TemporaryDirectory() as folder:
        cert, key = Path(folder, "cert.pem"), Path(folder, "key.pem")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(cert, append=True)
        issued.private_key_pem.write_to_path(key)
        yield Certificate(cert, key)
