"""Signatures in OpenSSF's model signing format, with a key of one's own. github.com/sigstore/model-transparency.

The private key (PEM, elliptic curve) is named by the environment, never by params. ECDSA draws a random number, so no
two signatures are alike: one is made when a model leaves the house (flows/release.py), never inside a DVC output.
"""

import os
from pathlib import Path
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.store.manifest import SIGNATURE

KEY, PASSWORD = "ORCHARD_SIGNING_KEY", "ORCHARD_SIGNING_PASSWORD"  # path of the key file; its password, if it has one


def configured() -> Path | None:
    """The private key that the environment names."""
    if not (name := os.environ.get(KEY)):
        return None
    if not Path(name).is_file():
        raise UserError(f"{KEY} names {name}, which is no file")
    return Path(name)


def sign(folder: Path, key: Path) -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import load_pem_private_key
    from model_signing import signing

    password: Any = os.environ.get(PASSWORD, "").encode() or None  # its reader takes bytes, whatever is annotated
    try:
        require_elliptic(load_pem_private_key(key.read_bytes(), password))
        config = signing.Config().use_elliptic_key_signer(private_key=key, password=password)
    except (TypeError, ValueError, UnsupportedAlgorithm) as error:
        wanted = f"{KEY} names a private key of the curve P-256, P-384 or P-521 in PEM, {PASSWORD} its password"
        raise UserError(f"{key} can't sign ({error}): {wanted}") from error
    config.set_hashing_config(hashing()).sign(folder, folder / SIGNATURE)


def problems(folder: Path, public_key: Path) -> list[str]:
    """Why the signature does not vouch for the folder; none: it does."""
    from cryptography.hazmat.primitives.serialization import load_pem_public_key
    from model_signing import verifying

    signature = folder / SIGNATURE
    if not signature.is_file():
        return [f"{SIGNATURE} is missing: nobody signed this"]
    try:
        require_elliptic(load_pem_public_key(public_key.read_bytes()))
        config = verifying.Config().use_elliptic_key_verifier(public_key=public_key)
    except (OSError, ValueError) as error:
        raise UserError(f"{public_key} is no public key of an elliptic curve in PEM: {error}") from error
    try:
        config.set_hashing_config(hashing()).verify(folder, signature)
    except Exception as error:  # a signature can be wrong in many ways, each with a class of its own
        return [f"{SIGNATURE} does not vouch for this folder: {error or type(error).__name__}"]
    return []


def require_elliptic(key: object) -> None:
    """The format has others too, but model-signing signs with no other key of one's own."""
    from cryptography.hazmat.primitives.asymmetric import ec

    if not isinstance(key, ec.EllipticCurvePrivateKey | ec.EllipticCurvePublicKey):
        raise ValueError(f"it is of the kind {type(key).__name__.removesuffix('Key')}")


def hashing() -> Any:
    from model_signing import hashing

    return hashing.Config().set_ignored_paths(paths=[SIGNATURE], ignore_git_paths=False)
