"""What may be kept of a person's identity: nothing but a short digest that tells two patients apart."""

from __future__ import annotations

import hashlib


def hash_patient_id(id: str) -> str:
    """Replace a DICOM PatientID by a short digest, so that scans of one person stay together without naming them.

    The digest is not secret: who holds a list of all possible numbers can search it. It keeps names and numbers out of
    logs, tables and caches; it does not make a table fit for publication.

    Args:
        id: PatientID as it stands in the file; surrounding blanks do not count.

    Returns:
        ``"p-"`` and the first 12 hexadecimal digits of the SHA-256 of the identifier.
    """
    return "p-" + hashlib.sha256(id.strip().encode("utf-8")).hexdigest()[:12]
