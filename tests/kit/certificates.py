"""Certificates for a server with TLS: an authority that signs what a test wants."""

from __future__ import annotations

import datetime as dt
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


class Authority:
    """A certificate authority of its own.

    Args:
        common_name: What it is called.
    """

    def __init__(self, common_name: str) -> None:
        self._name = _name(common_name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._sign(self._name, self._key, authority=True)

    @property
    def pem(self) -> str:
        """Its own certificate: what `sslrootcert` names."""
        return self._certificate.public_bytes(serialization.Encoding.PEM).decode()

    def issue(
        self, common_name: str, directory: Path, *, days: int = 30, name: str = "server"
    ) -> tuple[Path, Path]:
        """Write a certificate for an address or a user, and its key that only its owner may read.

        Args:
            common_name: An IP address, a host name, or the user of a client certificate.
            directory: Where to.
            days: How long it is valid; negative if it has expired.
            name: What the two files are called, without their suffix.

        Returns:
            The paths of certificate and key.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(_name(common_name), key, days=days)
        paths = directory / f"{name}.crt", directory / f"{name}.key"
        for path, data in (
            (paths[0], certificate.public_bytes(serialization.Encoding.PEM)),
            (
                paths[1],
                key.private_bytes(
                    serialization.Encoding.PEM,
                    serialization.PrivateFormat.PKCS8,
                    serialization.NoEncryption(),
                ),
            ),
        ):
            # Renamed into place, so that a reader sees the old one or the new one.
            temporary = path.with_name(f".{path.name}")
            temporary.touch(mode=0o600)
            temporary.write_bytes(data)
            temporary.replace(path)
        return paths

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        *,
        authority: bool = False,
        days: int = 30,
    ) -> x509.Certificate:
        now = dt.datetime.now(dt.UTC)
        common_name = str(subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(days=60))
            .not_valid_after(now + dt.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=authority, path_length=None), critical=True)
        )
        # What a strict client looks for (`ssl.VERIFY_X509_STRICT`, Python's default from 3.13 on).
        builder = builder.add_extension(
            x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False
        )
        if authority:
            usage = dict.fromkeys(
                (
                    "digital_signature", "content_commitment", "key_encipherment",
                    "data_encipherment", "key_agreement", "encipher_only", "decipher_only",
                ),
                False,
            )  # fmt: skip
            builder = builder.add_extension(
                x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True
            )
        else:
            builder = builder.add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            try:
                alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(common_name))
            except ValueError:
                alternative = x509.DNSName(common_name)
            builder = builder.add_extension(
                x509.SubjectAlternativeName([alternative]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())
