"""Content credentials (C2PA): what a file says of its own origin, signed, and whether the signature holds.

They say nothing about pixels, and the networks say nothing about them: a page shows the two apart. Only what is
embedded in the file is read, and nothing is asked of a network: no remote manifests, no revocation lists.
"""

from __future__ import annotations

import contextlib
import io
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MARK = b"c2pa"  # stands in every embedded manifest store (ISO 22144, C2PA 2.x: the label of its JUMBF box)
TRUST = "DFD_C2PA_TRUST"  # environment variable: a PEM file with the certificates that may vouch for a signer
MIME = {"JPEG": "image/jpeg", "MPO": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp", "TIFF": "image/tiff"}
MIME |= {"GIF": "image/gif"}
STATES = ("none", "verified", "not verified", "not checked")
LONGEST = 200  # characters of a text that comes from a file
KINDS = {  # digital source types of the IPTC, the last part of their address -> what they mean
    "trainedAlgorithmicMedia": "made by a trained model",
    "compositeWithTrainedAlgorithmicMedia": "partly made by a trained model",
    "algorithmicMedia": "made by an algorithm",
    "digitalCapture": "taken by a camera",
    "computationalCapture": "taken by a camera, with computation",
    "negativeFilm": "scanned from film",
    "digitalCreation": "drawn by a person with digital tools",
    "humanEdits": "edited by a person",
    "composite": "a composite",
}


@dataclass(frozen=True)
class Credentials:
    """What the credentials of one file say, and how far that can be relied on."""

    state: str  # one of STATES
    reason: str  # one sentence: what was checked, or what failed
    signer: str | None = None  # as the certificate names itself
    made_with: str | None = None  # the software that wrote the claim
    says: tuple[str, ...] = ()  # what the claim says was done, in order
    signed_at: str | None = None

    def asdict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


NONE = Credentials("none", "The file carries no content credentials. Most files do not, so that says nothing.")


def read(data: bytes, format: str | None, trust: str | Path | None = None) -> Credentials:
    """Read the credentials in an image file, and verify signature, signer and content.

    Args:
        data: the whole file.
        format: Pillow's name of its format; none where it is unknown.
        trust: PEM file with the certificates that may vouch for a signer; none takes $DFD_C2PA_TRUST. Without one no
            file can be verified: anybody can sign, under any name.

    Returns:
        Credentials, whatever is in the file.

    Raises:
        OSError: the trust file cannot be read.
    """
    if MARK not in data or format not in MIME:
        return NONE
    trust = trust or os.environ.get(TRUST)
    anchors = Path(trust).read_text("utf-8") if trust else None
    try:
        import c2pa
    except ImportError:
        return Credentials("not checked", "The file seems to carry credentials; `pip install c2pa-python` reads them.")
    settings: dict[str, Any] = {"verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True}}
    if anchors:
        settings["trust"] = {"trust_anchors": anchors}
    try:
        context = c2pa.Context.from_dict(settings)
        with c2pa.Reader(MIME[format], io.BytesIO(data), context=context) as reader:
            state, manifest = reader.get_validation_state(), reader.get_active_manifest() or {}
            results = reader.get_validation_results() or {}
    except Exception as error:  # a native parser's errors on foreign data, of many kinds
        if type(error).__name__.endswith("ManifestNotFound"):
            return NONE
        return Credentials("not verified", f"The credentials cannot be read: {plain(error)}")
    found, reason = _judged(state, results, anchors is not None)
    with contextlib.suppress(AttributeError, TypeError, KeyError, ValueError):  # a signed manifest may hold any JSON
        signed = manifest.get("signature_info") or {}
        names = (signed.get("common_name"), signed.get("issuer"))
        signer = ", ".join(dict.fromkeys(plain(one) for one in names if one)) or None
        when = plain(signed["time"]) if signed.get("time") else None
        return Credentials(found, reason, signer, _software(manifest), _actions(manifest), when)
    return Credentials(found, reason)


def plain(value: Any, longest: int = LONGEST) -> str:
    """A foreign value as one line of printable text, of bounded length; direction marks and controls are dropped."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(value)[: 4 * longest]).split())
    return text if len(text) <= longest else text[: longest - 1] + "…"


def _judged(state: str | None, results: dict, has_anchors: bool) -> tuple[str, str]:
    if state == "Trusted":
        return "verified", "The signature holds, the file is unchanged since, and a trusted certificate vouches for it."
    failures = results.get("activeManifest", {}).get("failure", [])
    other = [one for one in failures if one.get("code") != "signingCredential.untrusted"]
    if state == "Valid" and not other:
        who = "no certificate in the trust list" if has_anchors else f"no trust list is set ({TRUST}), so nobody"
        return "not verified", f"The signature holds and the file is unchanged since, but {who} vouches for the signer."
    why = "; ".join(plain(one.get("explanation") or one.get("code")) for one in other[:3]) or "no reason given"
    if any(one.get("code", "").startswith("assertion.dataHash") for one in other):
        why = f"the file was changed after it was signed ({why})"
    return "not verified", f"The credentials do not hold: {why}."


def _software(manifest: dict) -> str | None:
    entries = manifest.get("claim_generator_info") or []
    names = [plain(f"{one.get('name', '')} {one.get('version', '')}") for one in entries[:3]]
    return ", ".join(name for name in names if name) or (plain(manifest.get("claim_generator") or "") or None)


def _actions(manifest: dict) -> tuple[str, ...]:
    said = []
    for assertion in manifest.get("assertions") or []:
        if str(assertion.get("label", "")).startswith("c2pa.actions"):
            for action in assertion["data"].get("actions", []):
                kind = str(action.get("digitalSourceType", "")).rsplit("/", 1)[-1]
                what = plain(str(action.get("action", "")).removeprefix("c2pa."))
                said.append(f"{what}: {KINDS.get(kind, plain(kind))}" if kind else what)
    return tuple(said[:20])
