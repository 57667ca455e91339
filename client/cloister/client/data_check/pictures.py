"""Findings about files of pictures: what stands in them beside the picture."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from cloister.client.data_check.finding import Finding, Severity

__all__ = ["picture_findings"]

_SUFFIXES = {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp"}
_GPS = 0x8825
#: EXIF tags whose text may name a person: description, artist, copyright, user comment, owner, Windows' title, comment, author, keywords, subject.
_TEXTS = (0x010E, 0x013B, 0x8298, 0x9286, 0xA430, 0x9C9B, 0x9C9C, 0x9C9D, 0x9C9E, 0x9C9F)
_DATES = (0x0132, 0x9003, 0x9004)
_DEVICES = (0xA431, 0xA435, 0xC62F)
_EXIF_PART = 0x8769
#: What a PNG file may say beside its picture without naming anybody.
_HARMLESS = {
    "dpi",
    "gamma",
    "transparency",
    "chromaticity",
    "srgb",
    "interlace",
    "icc_profile",
    "exif",
    "aspect",
    "background",
}

_KINDS: dict[str, tuple[str, Severity, str]] = {
    "dicom": ("picture-dicom", "error", "are DICOM files, whose headers name the patient"),
    "gps": ("picture-place", "error", "say where they were taken (GPS)"),
    "text": (
        "picture-text",
        "error",
        "hold text beside the picture (description, author, comment), which may name a patient",
    ),
    "date": ("picture-date", "warning", "say when they were taken"),
    "device": ("picture-device", "warning", "hold a camera's or lens's serial number"),
    "broken": ("picture-broken", "warning", "cannot be read as pictures"),
}


def picture_findings(folder: Path) -> Iterator[Finding]:
    """Yield what is to be said of the files below ``folder``; only their headers are read."""
    counts = dict.fromkeys(_KINDS, 0)
    looked = 0
    for path in sorted(folder.rglob("*")) if folder.is_dir() else [folder]:
        if not path.is_file() or path.name.startswith("."):
            continue
        kinds = _kinds(path)
        looked += path.suffix.lower() in _SUFFIXES or "dicom" in kinds
        for kind in kinds:
            counts[kind] += 1
    for kind, count in counts.items():
        if count:
            code, severity, what = _KINDS[kind]
            yield Finding(
                code=code,
                severity=severity,
                what=f"{count:,} of {looked:,} files {what}",
                remedy="export the pixels alone, for example as PNG without metadata; the task reads nothing else, but the files stay",
            )


def _kinds(path: Path) -> set[str]:
    try:
        with path.open("rb") as file:
            head = file.read(132)
        if head[128:132] == b"DICM" or path.suffix.lower() in (".dcm", ".dicom"):
            return {"dicom"}
        if path.suffix.lower() not in _SUFFIXES:
            return set()
        with Image.open(path) as picture:
            return _said(picture)
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError):
        return {"broken"}


def _said(picture: Image.Image) -> set[str]:
    exif = picture.getexif()
    inner: dict[int, Any] = {**exif, **exif.get_ifd(_EXIF_PART)}
    found = set()
    if exif.get_ifd(_GPS):
        found.add("gps")
    if any(_is_text(inner.get(tag)) for tag in _TEXTS):
        found.add("text")
    if any(inner.get(tag) for tag in _DATES):
        found.add("date")
    if any(inner.get(tag) for tag in _DEVICES):
        found.add("device")
    if picture.format in ("PNG", "GIF", "JPEG") and any(
        _is_text(value)
        for key, value in picture.info.items()
        if str(key).lower() not in _HARMLESS and key != "jfif"
    ):
        found.add("text")
    return found


def _is_text(value: Any) -> bool:
    if isinstance(value, bytes):
        value = value.removeprefix(b"ASCII\0\0\0").decode("utf-8", "replace")
    return isinstance(value, str) and any(mark.isalpha() for mark in value)
