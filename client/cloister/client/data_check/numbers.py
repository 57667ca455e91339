"""Numbers that a state or a bank gives to persons, told from other digits by their check digits.

=======================  =====================================================  ===================
number                   form                                                   chance hits of digits
=======================  =====================================================  ===================
IBAN                     country, two check digits, up to 30 (ISO 13616)        1 in 97
NHS number               ten digits, the last modulo 11                         1 in 11
US social security       AAA-GG-SSSS, no 000, 666 or 9xx area                   by its form
French NIR               13 digits and a key modulo 97                          1 in 97
Dutch BSN                nine digits, weighted sum divisible by 11              1 in 11
Spanish DNI, NIE         digits and a letter modulo 23                          1 in 23
Polish PESEL             eleven digits, the last weighted modulo 10             1 in 10
Italian codice fiscale   letters and digits in a fixed order                    by its form
payment card             13 to 19 digits (Luhn)                                 1 in 10
=======================  =====================================================  ===================

A column is taken for one of those by how many of its values pass, against what chance would let pass.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["CHECKED", "FORMS"]

_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_PESEL = (1, 3, 7, 9, 1, 3, 7, 9, 1, 3)


def _digits(text: str) -> str:
    return re.sub(r"[ .-]", "", text)


def _iban(text: str) -> bool:
    plain = text.replace(" ", "").upper()
    if not re.fullmatch(r"[A-Z]{2}\d{2}[A-Z0-9]{11,30}", plain):
        return False
    return int("".join(str(int(mark, 36)) for mark in plain[4:] + plain[:4])) % 97 == 1


def _nhs(text: str) -> bool:
    plain = _digits(text)
    if not re.fullmatch(r"[1-9]\d{9}", plain):
        return False
    check = (11 - sum(int(mark) * (10 - place) for place, mark in enumerate(plain[:9])) % 11) % 11
    return check == int(plain[9])


def _nir(text: str) -> bool:
    plain = _digits(text)
    return bool(re.fullmatch(r"[12]\d{14}", plain)) and 97 - int(plain[:13]) % 97 == int(plain[13:])


def _bsn(text: str) -> bool:
    if not re.fullmatch(r"\d{9}", text) or int(text) == 0:
        return False
    return (sum(int(mark) * (9 - place) for place, mark in enumerate(text[:8])) - int(text[8])) % 11 == 0


def _dni(text: str) -> bool:
    match = re.fullmatch(r"([XYZ]?)(\d{7,8})-?([A-Z])", text.strip().upper())
    if match is None or len(match[1]) + len(match[2]) != 8:
        return False
    return _DNI_LETTERS[int(str("XYZ".find(match[1]) if match[1] else "") + match[2]) % 23] == match[3]


def _pesel(text: str) -> bool:
    if not re.fullmatch(r"\d{11}", text):
        return False
    return (
        10 - sum(int(mark) * weight for mark, weight in zip(text[:10], _PESEL, strict=True)) % 10
    ) % 10 == int(text[10])


def _card(text: str) -> bool:
    plain = _digits(text)
    if not re.fullmatch(r"[2-6]\d{12,18}", plain):
        return False
    doubled = [int(mark) * (1 + place % 2) for place, mark in enumerate(reversed(plain))]
    return sum(number - 9 * (number > 9) for number in doubled) % 10 == 0


#: Numbers by their check digits: a column is one where nearly all of its values pass.
CHECKED: dict[str, Callable[[str], bool]] = {
    "NHS numbers": _nhs,
    "French social security numbers (NIR)": _nir,
    "Dutch citizen service numbers (BSN)": _bsn,
    "Spanish identity numbers (DNI, NIE)": _dni,
    "Polish identity numbers (PESEL)": _pesel,
    "payment card numbers": _card,
}

#: What one value suffices for: chance makes none of these.
FORMS: dict[str, Callable[[str], bool]] = {
    "e-mail addresses": lambda text: bool(re.search(r"[\w.+-]+@[\w-]+\.[A-Za-z]{2,}", text)),
    "IBANs": _iban,
    "US social security numbers": lambda text: bool(
        re.fullmatch(r"(?!000|666|9\d\d)\d{3}-(?!00)\d{2}-(?!0000)\d{4}", text)
    ),
    "Italian tax codes": lambda text: bool(
        re.fullmatch(
            r"[A-Z]{6}\d{2}[ABCDEHLMPRST]\d{2}[A-Z]\d{3}[A-Z]",
            text.strip().upper(),
        )
    ),
    "web addresses": lambda text: bool(re.match(r"https?://", text)),
}
