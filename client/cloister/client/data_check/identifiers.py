"""Columns that say who somebody is: by their names, and by the form of what stands in them.

The list follows the eighteen identifiers of HIPAA's safe harbour (45 CFR 164.514(b)(2)), in English, German, French and Spanish column names.
What it finds is likely and not sure; what it does not find may still be there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from cloister.client.data_check.finding import Severity
from cloister.client.data_check.numbers import CHECKED, FORMS

__all__ = ["by_name", "by_values"]

Texts = npt.NDArray[np.object_]
#: What a column holds, the code of the finding, and how grave it is where a model reads it.
Kind = tuple[str, str, Severity]

#: Values that are looked at; the rest of a longer column is taken to be alike.
_LOOKED_AT = 50_000
#: A column is of a form where at least this share of its values is.
_MOST, _MANY = 0.8, 0.5
#: Fewer values than this tell nothing of a form that chance makes too, or of being unique.
_FEW, _UNIQUE = 10, 20

_NAMES: dict[Kind, tuple[str, ...]] = {
    ("names of persons", "identifier-name", "error"): (
        "name",
        "first name|last name|full name|family name|given name|middle name|maiden name|patient name|doctor name|physician name",
        "firstname|lastname|fullname|surname|forename|patientname|vorname|nachname|familienname|prenom|prénom|apellido|apellidos|nombre",
    ),
    ("e-mail addresses", "identifier-email", "error"): ("email|e mail|mail|correo",),
    ("telephone or fax numbers", "identifier-phone", "error"): (
        "phone|telephone|tel|mobile|cell|fax|telefon|handy|telefono|teléfono|téléphone",
    ),
    ("numbers of persons", "identifier-number", "error"): (
        "ssn|social security|nhs number|nhs no|nhs|passport|iban|national id|insurance number|policy number|driver license|driving licence",
        "tax id|kvnr|versichertennummer|sozialversicherungsnummer|nir|dni|bsn|cpr|pesel|personnummer|account number",
    ),
    ("numbers of patients or cases", "identifier-number", "error"): (
        "mrn|medical record|medical record number|patient id|patientid|pat id|patid|patient number|case id|case number|fallnummer|person id|subject id",
        "patientennummer|numero dossier",
    ),
    ("addresses", "identifier-address", "error"): (
        "address|street|strasse|straße|anschrift|adresse|direccion|dirección|house number|hausnummer",
    ),
    ("addresses of devices", "identifier-device", "error"): (
        "ip|ip address|mac address|device id|serial number|imei|user agent|url",
    ),
    ("postcodes", "identifier-postcode", "warning"): (
        "zip|zipcode|zip code|postcode|post code|postal code|plz|postleitzahl|code postal",
    ),
    ("dates of birth", "identifier-birth", "error"): (
        "dob|birth date|birthdate|date birth|date of birth|birthday|geburtsdatum|geburtstag|date naissance|fecha nacimiento",
    ),
}
_BY_TOKENS = {
    frozenset(phrase.split()): kind
    for kind, lines in _NAMES.items()
    for line in lines
    for phrase in line.split("|")
}
#: Names that a table has for other things as well: only alone do they name a person.
_ALONE = {"name", "mail", "cell", "nir", "ip", "url", "tel", "zip", "cpr", "handy", "nombre"}

_DATE = re.compile(
    r"(\d{4}[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](\d{4}|\d{2}))([T ]\d{1,2}:\d{2}(:\d{2})?.*)?"
)
_SHAPES: dict[Kind, tuple[str, float]] = {
    ("telephone numbers", "identifier-phone", "error"): (
        r"(\+\d[\d ()./-]{6,}\d|\(?0\d{1,5}\)?[ ./-]\d[\d ./-]{3,}\d|\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4})",
        _MANY,
    ),
    ("addresses of devices", "identifier-device", "error"): (
        r"((\d{1,3}\.){3}\d{1,3}|([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2})",
        _MANY,
    ),
    ("British or Canadian postcodes", "identifier-postcode", "warning"): (
        r"([A-Z]{1,2}\d[A-Z\d]? ?\d[A-Z]{2}|[A-Z]\d[A-Z] ?\d[A-Z]\d)",
        _MOST,
    ),
    ("full dates", "identifier-date", "warning"): (_DATE.pattern, _MANY),
    ("universally unique identifiers", "identifier-unique", "warning"): (
        r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        _MANY,
    ),
}
_WORDS = r"[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ'’]+(-[A-ZÀ-ÖØ-Þ][a-zß-öø-ÿ'’]+)?"
_PERSON = re.compile(rf"(Dr\.? |Mrs?\.? |Ms\.? )?{_WORDS}(,? ([A-Z]\. )?{_WORDS}){{1,2}}")
_CODE = re.compile(r"(?=.*\d)[A-Za-z0-9/_-]{4,}")


def by_name(column: str) -> Kind | None:
    """Return what a column's name says that it holds; ``None``: nothing of somebody's identity."""
    spaced = re.sub(r"(?<=[a-zß-ÿ])(?=[A-Z])", " ", column)
    tokens = re.findall(r"[^\W_]+", spaced.lower())
    given = frozenset(tokens)
    whole = _BY_TOKENS.get(given)
    if whole is not None:
        return whole
    for phrase, kind in _BY_TOKENS.items():
        if phrase <= given and not phrase & _ALONE and (len(phrase) > 1 or len(given) <= 2):
            return kind
    return None


def by_values(texts: Texts) -> list[Kind]:
    """Return what the form of a column's values says that they are.

    Args:
        texts: (n,) the column as text, '' where a value is missing.
    """
    present = texts[texts != ""][:_LOOKED_AT].astype(str)
    if not len(present):
        return []
    values, counts = np.unique(present, return_counts=True)
    found: list[Kind] = [
        (what, "identifier-email" if what.startswith("e-mail") else "identifier-number", "error")
        for what, fits in FORMS.items()
        if _share(values, counts, fits) > 0
    ]
    if len(values) >= _FEW:
        found += [
            (what, "identifier-number", "error")
            for what, fits in CHECKED.items()
            if _share(values, counts, fits) >= _MOST
        ]
        found += [
            kind
            for kind, (pattern, least) in _SHAPES.items()
            if _share(values, counts, partial(_has_shape, re.compile(pattern))) >= least
        ]
        if (
            _share(values, counts, lambda text: bool(_PERSON.fullmatch(text))) >= _MOST
            and len(values) > len(present) / 2
        ):
            found.append(("what looks like names of persons", "identifier-name", "warning"))
        if not found and _is_prose(values, counts):
            found.append(("free text", "free-text", "warning"))
    if not found and _is_key(values, len(present)):
        found.append(("a number of its own for each record", "identifier-unique", "warning"))
    return found


def _has_shape(pattern: re.Pattern[str], text: str) -> bool:
    return pattern.fullmatch(text.strip()) is not None


def _share(values: npt.NDArray[np.str_], counts: npt.NDArray[np.intp], fits: Callable[[str], bool]) -> float:
    hits = np.fromiter((fits(str(value)) for value in values), dtype=bool, count=len(values))
    return float(counts[hits].sum() / counts.sum())


def _is_prose(values: npt.NDArray[np.str_], counts: npt.NDArray[np.intp]) -> bool:
    words = np.fromiter((len(str(value).split()) for value in values), dtype=float, count=len(values))
    return float((words * counts).sum() / counts.sum()) >= 4 and len(values) > counts.sum() / 4


def _is_key(values: npt.NDArray[np.str_], present: int) -> bool:
    """Whether each record has another value, and the values are codes: of one length, or counted through."""
    if len(values) < _UNIQUE or len(values) < present:
        return False
    if not all(_CODE.fullmatch(str(value)) or str(value).isdigit() for value in values):
        return False
    if all(str(value).isdigit() for value in values):
        numbers = np.array([int(value) for value in values], dtype=object)
        counted = int(numbers.max()) - int(numbers.min()) < 2 * len(values)
        return bool(counted) or len({len(str(value)) for value in values}) == 1
    return True
