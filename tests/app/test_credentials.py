"""Content credentials: signed here, with certificates made here, and broken in every way that must be told apart."""

import datetime
import io
import json
import zlib

import pytest
from bad_files import encoded, picture

from dfd.app import metadata

c2pa = pytest.importorskip("c2pa", reason="pip install c2pa-python")
x509 = pytest.importorskip("cryptography.x509", reason="pip install cryptography")


def certificate(subject, issuer, key, signer, is_root):
    from cryptography.hazmat.primitives import hashes

    def name(text):
        kinds = (x509.oid.NameOID.COMMON_NAME, x509.oid.NameOID.ORGANIZATION_NAME)
        return x509.Name([x509.NameAttribute(kind, text) for kind in kinds])

    now = datetime.datetime.now(datetime.UTC)
    uses = dict.fromkeys(
        "content_commitment key_encipherment data_encipherment key_agreement encipher_only decipher_only".split(), False
    ) | {"digital_signature": not is_root, "key_cert_sign": is_root, "crl_sign": is_root}
    made = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name(issuer)).public_key(key.public_key())
    made = made.serial_number(x509.random_serial_number()).not_valid_before(now - datetime.timedelta(days=1))
    made = made.not_valid_after(now + datetime.timedelta(days=30))
    made = made.add_extension(x509.BasicConstraints(is_root, None), True).add_extension(x509.KeyUsage(**uses), True)
    made = made.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
    made = made.add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), False)
    if not is_root:
        usage = x509.ExtendedKeyUsage([x509.oid.ExtendedKeyUsageOID.EMAIL_PROTECTION])
        made = made.add_extension(usage, False)
    return made.sign(signer, hashes.SHA256())


@pytest.fixture(scope="module")
def maker(tmp_path_factory):
    """A function from a term of the IPTC to a signed JPEG's bytes, and the PEM file of the root that vouches for it."""
    from cryptography.hazmat.primitives import serialization as form
    from cryptography.hazmat.primitives.asymmetric import ec

    root_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    signer_name = "<b>Camera</b>\u202e Maker"
    root = certificate("Root", "Root", root_key, root_key, True)
    leaf = certificate(signer_name, "Root", key, root_key, False)
    pems = [one.public_bytes(form.Encoding.PEM) for one in (leaf, root)]
    private = key.private_bytes(form.Encoding.PEM, form.PrivateFormat.PKCS8, form.NoEncryption())
    signer = c2pa.Signer.from_info(c2pa.C2paSignerInfo(c2pa.C2paSigningAlg.ES256, b"".join(pems), private, None))
    trust = tmp_path_factory.mktemp("trust") / "roots.pem"
    trust.write_bytes(pems[1])

    def sign(term, format="JPEG", *more):
        kind = f"http://cv.iptc.org/newscodes/digitalsourcetype/{term}"
        action = {"action": "c2pa.created", "digitalSourceType": kind}
        claim = {"assertions": [{"label": "c2pa.actions", "data": {"actions": [action, {"action": "c2pa.resized"}]}}]}
        claim["assertions"] += more
        claim["claim_generator_info"] = [{"name": "Painter", "version": "2"}]
        out = io.BytesIO()
        context = c2pa.Context.from_dict(
            {"verify": {"verify_after_sign": False}, "core": {"decode_identity_assertions": False}}
        )
        c2pa.Builder(claim, context=context).sign(
            signer, f"image/{format.lower()}", io.BytesIO(encoded(picture(3), format)), out
        )
        return out.getvalue()

    return sign, trust


@pytest.fixture(scope="module")
def signed(maker):
    """A signed JPEG's bytes, which says that a model made it, and the PEM file of the root."""
    return maker[0]("trainedAlgorithmicMedia"), maker[1]


def cbor(value):
    """RFC 8949, as far as an identity needs it: of texts, bytes, lists, maps and small numbers."""
    kind = {int: 0 if isinstance(value, int) and value >= 0 else 1, bytes: 2, str: 3, list: 4, dict: 5}[type(value)]
    length = (value if kind == 0 else -1 - value) if isinstance(value, int) else len(value)
    head = bytes([kind << 5 | length]) if length < 24 else bytes([kind << 5 | 25]) + length.to_bytes(2)
    content = value.encode() if isinstance(value, str) else value if isinstance(value, bytes) else b""
    parts = value if isinstance(value, list) else [part for pair in value.items() for part in pair] if kind == 5 else ()
    return head + content + b"".join(map(cbor, parts))


def test_an_identity_whose_issuer_is_a_server_is_not_looked_up_there(maker):
    """A signature may name who vouches for it by an address, which must not be told that the file was opened."""
    about = {"referenced_assertions": [], "sig_type": "cawg.identity_claims_aggregation"}
    known = {"type": "cawg.social_media", "username": "x", "uri": "https://example.com/x"}
    known |= {"verifiedAt": "2025-01-01T00:00:00Z", "provider": {"id": "https://example.com", "name": "X"}}
    vouched = {
        "@context": ["https://www.w3.org/ns/credentials/v2", "https://cawg.io/identity/1.1/ica/context/"],
        "type": ["VerifiableCredential", "IdentityClaimsAggregationCredential"],
        "issuer": "did:web:issuer.invalid:opened",
        "validFrom": "2025-01-01T00:00:00Z",
        "credentialSubject": {"verifiedIdentities": [known], "c2paAsset": about},
    }
    sign1 = cbor([cbor({1: -8, 3: "application/vc"}), {}, json.dumps(vouched).encode(), bytes(64)])  # COSE, RFC 9052
    identity = {"signer_payload": about, "signature": list(b"\xd2" + sign1), "pad1": []}
    data = maker[0]("digitalCapture", "JPEG", {"label": "cawg.identity", "data": identity})
    with c2pa.Reader("image/jpeg", io.BytesIO(data)) as reader:  # as it comes it asks that host, in vain
        codes = [failure["code"] for failure in reader.get_validation_results()["activeManifest"]["failure"]]
    assert "cawg.ica.did_unavailable" in codes
    assert metadata.read_credentials(data, "JPEG").reason.startswith("The signature holds and the file is unchanged")


@pytest.mark.parametrize(
    ("term", "generated"),
    [("compositeWithTrainedAlgorithmicMedia", True), ("algorithmicMedia", True), ("digitalCapture", False)],
)
def test_what_made_the_image_is_read_by_the_terms_of_the_iptc(maker, term, generated):
    assert metadata.read_credentials(maker[0](term), "JPEG").says_generated is generated


def test_a_signature_that_nobody_vouches_for_is_not_verified(signed, monkeypatch):
    data, trust = signed
    monkeypatch.delenv(metadata.TRUST, raising=False)
    found = metadata.read_credentials(data, "JPEG")
    assert found.state == "not verified" and metadata.TRUST in found.reason and "unchanged" in found.reason
    monkeypatch.setenv(metadata.TRUST, str(trust))
    assert metadata.read_credentials(data, "JPEG").state == "verified"


def test_the_trust_list_can_stand_in_the_environment(signed, monkeypatch):
    data, trust = signed
    monkeypatch.setenv(metadata.TRUST, str(trust))
    found = metadata.read_metadata(data).credentials
    assert found.state == "verified"
    assert found.signer == "<b>Camera</b> Maker"  # a direction mark is no letter; escaping is the page's business
    assert found.says_generated


def test_a_file_that_was_changed_after_signing_is_told(signed, monkeypatch):
    data, trust = signed
    changed = data[:-30] + bytes([data[-30] ^ 255]) + data[-29:]
    monkeypatch.setenv(metadata.TRUST, str(trust))
    found = metadata.read_credentials(changed, "JPEG")
    assert found.state == "not verified" and "changed after it was signed" in found.reason


def test_damaged_credentials_are_no_error(signed, monkeypatch):
    data, trust = signed
    monkeypatch.setenv(metadata.TRUST, str(trust))
    start = data.index(metadata.MARK)
    for offset in range(0, 4000, 97):
        broken = data[: start + offset] + b"\xff" * 8 + data[start + offset + 8 :]
        assert metadata.read_credentials(broken, "JPEG").state in ("none", "not verified")


def test_a_text_that_nobody_can_read_hides_no_credentials(maker):
    """The pixels are judged without it, and what the file says of its maker is said."""
    image = maker[0]("trainedAlgorithmicMedia", "PNG")
    text = b"zTXt" + b"a\0\0" + b"no stream"
    chunk = (len(text) - 4).to_bytes(4) + text + zlib.crc32(text).to_bytes(4)
    told = metadata.read_metadata(image[:33] + chunk + image[33:])
    assert told.credentials.says_generated and told.credentials.state == "not verified"


def test_most_files_have_none_and_that_says_nothing():
    plain = encoded(picture(3), "JPEG")
    assert metadata.read_credentials(plain, "JPEG") == metadata.NO_CREDENTIALS
    assert metadata.read_credentials(plain + b"c2pa", "JPEG") == metadata.NO_CREDENTIALS
    assert {"image/avif", "image/heif"} <= set(metadata.MIME.values()) <= set(c2pa.Reader.get_supported_mime_types())
