"""The map of evidence and law: every row names evidence that there is, and what it leaves open."""

from importlib.metadata import entry_points

from cloister.server.report import compliance
from cloister.server.report.compliance import kinds, requirements


def test_every_row_names_known_evidence_and_says_what_is_open() -> None:
    known = set(kinds())
    for row in requirements():
        assert row.evidence, row
        assert set(row.evidence) <= known, row
        assert len(row.open) > 20, row
    assert {key for row in requirements() for key in row.evidence} == known


def test_every_article_that_is_promised_is_there() -> None:
    said = {(row.law, row.article.split("(")[0].strip()) for row in requirements()}
    gdpr = {("GDPR", f"Art. {number}") for number in (5, 25, 32, 35)}
    act = {("EU AI Act", f"Art. {number}") for number in (10, 12, 15)}
    assert gdpr | act <= said
    assert {row.article for row in requirements() if row.law == "HIPAA"} >= {
        "45 CFR 164.514(b)(1)",
        "45 CFR 164.514(b)(2)",
    }


def test_evidence_is_a_figure_of_the_run_or_an_installed_check() -> None:
    checks = {point.name for point in entry_points(group="cloister.checks")}
    assert set(kinds()) - set(compliance._TOLD) <= checks
    assert set(compliance._TOLD) <= set(kinds())
