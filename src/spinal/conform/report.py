"""What a run found, as JSON and as JUnit's XML."""

from __future__ import annotations

from xml.etree.ElementTree import Element, SubElement, tostring

from spinal.protocols import Json

from .kit import Report
from .verdict import Outcome, Verdict


def row(outcome: Outcome) -> dict[str, Json]:
    """Give one outcome as JSON; members that would say nothing are left out."""
    found: dict[str, Json] = {
        "check": outcome.number,
        "section": outcome.section,
        "title": outcome.title,
        "verdict": outcome.verdict.value,
        "seconds": outcome.seconds,
    }
    told = {"expected" if outcome.got or outcome.sent else "text": outcome.text}
    told |= {"got": outcome.got, "sent": outcome.sent}
    return found | {name: text for name, text in told.items() if text}


def summary(report: Report) -> dict[str, Json]:
    """Give the whole as JSON, without its outcomes."""
    counts = {verdict.value.replace("-", "_"): report.count(verdict) for verdict in Verdict}
    return {
        "agent": report.agent,
        "conforms": report.passed,
        "features": list(report.features),
        **counts,
        "seconds": report.seconds,
    }


def junit(report: Report) -> bytes:
    """Give the report as JUnit's XML, which build servers read.

    What is not offered, or did not run, is ``skipped`` there.
    """
    suite = Element(
        "testsuite",
        {
            "name": f"spinal conform {report.agent}",
            "tests": str(len(report.outcomes)),
            "failures": str(report.count(Verdict.FAILED)),
            "skipped": str(report.count(Verdict.NOT_OFFERED) + report.count(Verdict.NOT_RUN)),
            "time": f"{report.seconds:.3f}",
        },
    )
    for outcome in report.outcomes:
        case = SubElement(
            suite,
            "testcase",
            {
                "classname": f"section {outcome.section}",
                "name": f"{outcome.number} {outcome.title}",
                "time": f"{outcome.seconds:.3f}",
            },
        )
        if outcome.verdict is Verdict.FAILED:
            failure = SubElement(case, "failure", {"message": f"expected {outcome.text}"})
            failure.text = f"got: {outcome.got or 'nothing'}\nin answer to: {outcome.sent or '-'}"
        elif outcome.verdict is not Verdict.PASSED:
            SubElement(case, "skipped", {"message": f"{outcome.verdict.value}: {outcome.text}"})
    root = Element("testsuites")
    root.append(suite)
    text: bytes = tostring(root, "utf-8", xml_declaration=True)
    return text + b"\n"
