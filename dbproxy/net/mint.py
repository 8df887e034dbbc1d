"""Makes certificates: the interception root, its leaves, and our own localhost certificate.

Owns every use of cryptography and trustme. Import it inside the function that needs it: the import costs 65 to 100 ms
and 9 MB (performance 7), and a process that finds its certificates on disk never needs it.
Never touches files, clocks or sockets: PEM in, PEM out, times are arguments (seconds since the epoch).

Invariants: a root is a true self-signed certificate (issuer equals subject, subject and authority key identifiers
agree, path length 0) whose critical name constraints permit only the names that it was made for; a leaf is for TLS
servers only and never outlives its root; a key never appears in an exception text.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Final

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID

from dbproxy.errors import CertificateError

if TYPE_CHECKING:
    from collections.abc import Sequence

_ORGANISATION: Final = "dbproxy"
# Constraints bind per type of name: a root that permits addresses alone would leave DNS names free. This name, which
# can never exist (RFC 6761 6.4), takes up the type then.
_NO_NAME: Final = "dbproxy.invalid"
_ALL_V4: Final = IPv4Network("0.0.0.0/0")
_ALL_V6: Final = IPv6Network("::/0")
_MAX_COMMON_NAME: Final = 64  # RFC 5280 appendix A, ub-common-name


@dataclass(frozen=True, slots=True)
class Minted:
    """A certificate and its private key, both PEM; the key is not encrypted."""

    certificate: bytes
    key: bytes


def root(names: Sequence[str], *, not_before: float, not_after: float) -> Minted:
    """A new interception root that may sign for ``names`` and nothing else.

    A permitted DNS name permits its subdomains too: X.509 (RFC 5280 4.2.1.10) has no way to say less. All addresses
    are excluded, except those in ``names``, which become single-address networks. Clients on BoringSSL (the native
    client's runtime, measured with Bun 1.4) take such a root and its leaves for host names, but refuse every leaf for
    an address as "unsupported name constraint type": an intercepted address works with OpenSSL's clients only.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    label = f"dbproxy interception root {secrets.token_hex(8)}"
    subject = _subject(label)
    certificate = (
        _builder(subject, subject, key.public_key(), not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(sign_certificates=True), critical=True)
        .add_extension(_constraints(names), critical=True)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _minted(certificate, key)


def leaf(root_certificate: bytes, root_key: bytes, name: str, *, not_before: float, not_after: float) -> Minted:
    """A certificate for ``name`` signed by the root.

    trustme issues it. What trustme cannot be told is then corrected by signing its certificate again with other
    extensions: it always adds client authentication and code signing to the purposes, key encipherment to the uses
    of an EC key, and refuses names with an underscore. Raises CertificateError for a name or root of no use.
    """
    try:
        issued = trustme.CA.from_pem(root_certificate, root_key).issue_cert(
            name.replace("_", "-"),
            organization_name=_ORGANISATION,
            not_before=_moment(not_before),
            not_after=_moment(not_after),
            key_type=trustme.KeyType.ECDSA,
        )
        draft = x509.load_pem_x509_certificate(issued.cert_chain_pems[0].bytes())
        signer = serialization.load_pem_private_key(root_key, password=None)
    except (ValueError, TypeError) as error:
        raise CertificateError(
            f"no certificate can be made for {name!r}: {error}", hint="Check DBPROXY_INTERCEPT and the files in ca/"
        ) from error
    if not isinstance(signer, ec.EllipticCurvePrivateKey):
        raise CertificateError("the interception root has no EC key", hint="Run: dbproxy certs rotate")
    general_name = _general_name(name)
    # OpenSSL takes a common name for a DNS name where there is no other, and an address is permitted as none.
    is_address = isinstance(general_name, x509.IPAddress)
    ours: dict[x509.ObjectIdentifier, tuple[x509.ExtensionType, bool]] = {
        ExtensionOID.KEY_USAGE: (_usage(sign_certificates=False), True),
        ExtensionOID.EXTENDED_KEY_USAGE: (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME: (x509.SubjectAlternativeName([general_name]), False),
    }
    builder = x509.CertificateBuilder(
        issuer_name=draft.issuer,
        subject_name=_subject("dbproxy leaf" if is_address or len(name) > _MAX_COMMON_NAME else name),
        public_key=draft.public_key(),
        serial_number=draft.serial_number,
        not_valid_before=draft.not_valid_before_utc,
        not_valid_after=draft.not_valid_after_utc,
    )
    for extension in draft.extensions:
        value, critical = ours.get(extension.oid, (extension.value, extension.critical))
        builder = builder.add_extension(value, critical)
    return Minted(
        builder.sign(signer, hashes.SHA256()).public_bytes(serialization.Encoding.PEM), issued.private_key_pem.bytes()
    )


def own(names: Sequence[str], *, not_before: float, not_after: float) -> Minted:
    """A self-signed server certificate for our own port, unrelated to any interception root."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = _subject(f"dbproxy on this computer {secrets.token_hex(4)}")
    certificate = (
        _builder(subject, subject, key.public_key(), not_before, not_after)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(sign_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_general_name(name) for name in names]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    return _minted(certificate, key)


def permitted_names(certificate: bytes) -> tuple[str, ...]:
    """The host names and addresses that the constraints of a root permit, sorted.

    Raises CertificateError if the certificate cannot be read or is not constrained as ours are.
    """
    try:
        extensions = x509.load_pem_x509_certificate(certificate).extensions
        constraints = extensions.get_extension_for_class(x509.NameConstraints).value
    except (ValueError, x509.ExtensionNotFound) as error:
        raise CertificateError(f"a root without readable name constraints: {error}") from error
    names = set()
    for permitted in constraints.permitted_subtrees or ():
        if isinstance(permitted, x509.IPAddress):
            names.add(str(permitted.value).partition("/")[0])
        elif isinstance(permitted, x509.DNSName) and permitted.value != _NO_NAME:
            names.add(permitted.value)
    return tuple(sorted(names))


def subject_of(certificate: bytes) -> str:
    """The subject of a PEM certificate in RFC 4514 form, for people."""
    return x509.load_pem_x509_certificate(certificate).subject.rfc4514_string()


def _subject(common_name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, _ORGANISATION),
            x509.NameAttribute(NameOID.COMMON_NAME, common_name),
        ]
    )


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, not_before: float, not_after: float
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_moment(not_before))
        .not_valid_after(_moment(not_after))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _usage(*, sign_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not sign_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=sign_certificates,
        crl_sign=sign_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _constraints(names: Sequence[str]) -> x509.NameConstraints:
    wanted = [_general_name(name) for name in names]
    permitted: list[x509.GeneralName] = [name for name in wanted if isinstance(name, x509.DNSName)]
    if not permitted:
        permitted.append(x509.DNSName(_NO_NAME))
    networks = [ip_network(name.value) for name in wanted if isinstance(name, x509.IPAddress)]
    permitted.extend(x509.IPAddress(network) for network in networks)
    # An exclusion beats a permission, so a family with an intercepted address is bounded by its permission alone.
    families = {network.version for network in networks}
    excluded: list[x509.GeneralName] = []
    if 4 not in families:
        excluded.append(x509.IPAddress(_ALL_V4))
    if 6 not in families:
        excluded.append(x509.IPAddress(_ALL_V6))
    return x509.NameConstraints(permitted_subtrees=permitted, excluded_subtrees=excluded or None)


def _general_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)


def _minted(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Minted:
    return Minted(
        certificate.public_bytes(serialization.Encoding.PEM),
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
