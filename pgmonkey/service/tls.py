"""The service's certificate. It is read again when its files change."""

from __future__ import annotations

import logging
import os
import ssl

from pgmonkey.config.secret_files import Signature, signature_of
from pgmonkey.errors import PgmonkeyError

_log = logging.getLogger("pgmonkey.service")


class CertificateError(PgmonkeyError):
    """The certificate and its key cannot be used."""


class Certificate:
    """A certificate with its chain, and its key that is not encrypted, both files in PEM form.

    Raises `CertificateError` if they cannot be read, or do not belong together.
    """

    def __init__(self, certificate: str | os.PathLike[str], key: str | os.PathLike[str]) -> None:
        self.paths = os.fspath(certificate), os.fspath(key)
        self._signatures = self._look()
        #: For the server. It hands each handshake on to the newest context, and never changes
        #: itself: handshakes fail while a certificate is loaded into the context that they use.
        self.context = self._newest = self._load()
        self.context.sni_callback = self._use_newest

    def refresh(self) -> None:
        """Read the files again if they have changed. The old pair stays if the new one is bad."""
        signatures = self._look()
        if signatures == self._signatures:
            return
        self._signatures = signatures
        try:
            self._newest = self._load()
        except CertificateError as error:
            _log.warning("%s; the one before stays in use", error)
        else:
            _log.info("the certificate %s was read again", self.paths[0])

    def _use_newest(
        self, connection: ssl.SSLObject | ssl.SSLSocket, _name: str | None, _context: ssl.SSLContext
    ) -> None:
        connection.context = self._newest

    def _look(self) -> list[Signature] | None:
        try:
            return [signature_of(os.stat(path)) for path in self.paths]  # noqa: PTH116 - as there
        except OSError:
            return None

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        certificate, key = self.paths
        for path in self.paths:
            try:
                with open(path, "rb"):  # noqa: PTH123 - only to name the one that cannot be read
                    pass
            except OSError as error:
                raise CertificateError(f"{path}: {error.strerror}") from None
        try:
            # Without a password OpenSSL would ask for that of an encrypted key on the terminal.
            context.load_cert_chain(certificate, key, password=lambda: "")
        except (ssl.SSLError, ValueError):
            raise CertificateError(
                f"{certificate} and {key} are not a certificate and its private key, in PEM form"
                " and not encrypted"
            ) from None
        return context
