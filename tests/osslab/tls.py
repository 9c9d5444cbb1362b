"""A certificate authority for one test run: https with a CA bundle that nobody else trusts."""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import ssl
from dataclasses import dataclass

HOSTS = (
    "localhost",
    "*.localhost",
    "*.oss-cn-hangzhou.aliyuncs.com",
    "*.oss-cn-hangzhou-internal.aliyuncs.com",
    "models.example",
)


@dataclass(frozen=True)
class Certificates:
    """`ca` is the path of the bundle that clients must trust, `context` what the server uses."""

    ca: str
    context: ssl.SSLContext


def certificates(folder: str, *, hosts: tuple[str, ...] = HOSTS, days: int = 1) -> Certificates:
    """New ones for 127.0.0.1 and `hosts`; `folder` gets ca.pem and server.pem."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    now = dt.datetime.now(dt.UTC)
    ca_name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "osslab CA")])
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def begun(subject: x509.Name, public: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(ca_name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - dt.timedelta(hours=1))
            .not_valid_after(now + dt.timedelta(days=days))
        )

    usage = x509.KeyUsage(
        digital_signature=True, key_cert_sign=True, crl_sign=True, content_commitment=False, key_encipherment=False,
        data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip
    ca_id = x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key())
    ca = (
        begun(ca_name, ca_key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(ca_id, critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    names = [x509.DNSName(host) for host in hosts]
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    server = (
        begun(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "osslab")]), key.public_key())
        .add_extension(x509.SubjectAlternativeName([*names, address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(ca_id), critical=False)
        .sign(ca_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    ca_path, server_path = os.path.join(folder, "ca.pem"), os.path.join(folder, "server.pem")
    with open(ca_path, "wb") as out:
        out.write(ca.public_bytes(pem))
    with open(server_path, "wb") as out:
        out.write(
            key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
            + server.public_bytes(pem)
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server_path)
    return Certificates(ca_path, context)
