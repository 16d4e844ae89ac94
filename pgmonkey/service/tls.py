"""The service's certificate: what it encrypts with, read again when its files change."""

from __future__ import annotations

import logging
import os
import ssl

from pgmonkey.config.secret_files import Signature, signature_of
from pgmonkey.errors import PgmonkeyError

_log = logging.getLogger("pgmonkey.service")


class CertificateError(PgmonkeyError):
    """Report that certificate and key cannot be used."""


class Certificate:
    """Hold a certificate and its key; connections made after a change get the new one.

    Args:
        certificate: The file of the certificate, with its chain, in PEM form.
        key: The file of its private key, not encrypted.

    Raises:
        CertificateError: They cannot be read, or do not belong together.
    """

    def __init__(self, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
        self._paths = os.fspath(certificate), os.fspath(key)
        #: For the listener. It is changed in place.
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self._loaded = self._signatures()
        self._load(self.context)

    def refresh(self) -> None:
        """Read the files again if they have changed. What cannot be used is said, and not used."""
        signatures = self._signatures()
        if signatures == self._loaded:
            return
        self._loaded = signatures
        try:
            # First elsewhere: a pair that does not fit would leave half of itself in the context.
            self._load(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
            self._load(self.context)
        except CertificateError as error:
            _log.warning("%s; the one before goes on", error)
        else:
            _log.info("the certificate %s was read again", self._paths[0])

    def _signatures(self) -> tuple[Signature | None, ...]:
        return tuple(map(_signature, self._paths))

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._paths
        for path in self._paths:
            try:
                with open(path, "rb"):  # noqa: PTH123 - only to name the one that cannot be read
                    pass
            except OSError as error:
                raise CertificateError(f"{path}: {error.strerror}") from None
        try:
            # An encrypted key would have it ask for a password on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (ssl.SSLError, ValueError):
            raise CertificateError(
                f"{certificate} and {key} are no certificate and its private key, in PEM form"
                " and not encrypted"
            ) from None


def _signature(path: str) -> Signature | None:
    try:
        return signature_of(os.stat(path))  # noqa: PTH116 - as the signature's own module does
    except OSError:
        return None
