"""A run of audits as one HTML page: no script, nothing fetched from elsewhere, light, dark and printed.

The page is a tree of elements that a serialiser writes out, so no text of a database can become markup.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, TypeVar

from crosstie.orm.integrity import AuditResult, AuditState, Finding, key_text
from crosstie.orm.integrity.counters import CounterResult
from crosstie.orm.integrity.types import TypesResult
from crosstie.orm.integrity.uniqueness import UniquenessResult
from crosstie.workers.audit_charts import Point, columns, proportion
from crosstie.workers.audit_copies import AuditedCopies
from crosstie.workers.audit_leftovers import AuditedLeftovers
from crosstie.workers.audit_report import AuditReport, Check
from crosstie.workers.presentation import row_text

__all__ = ["audit_page"]


_Check = TypeVar("_Check", bound=Check)

_SYMBOLS: Final = {AuditState.OK: "✓", AuditState.FINDINGS: "!", AuditState.INCOMPLETE: "?"}
_HEADLINES: Final = {
    AuditState.OK: "Every foreign key has its parent",
    AuditState.FINDINGS: "There is something to repair",
    AuditState.INCOMPLETE: "Not everything was checked",
}


def audit_page(report: AuditReport, history: Mapping[str, Sequence[Point]], *, sample: int = 20) -> str:
    """The whole page; `history` has the runs of each reference, the oldest first, `sample` bounds the rows shown."""
    html = ET.Element("html", {"lang": "en"})
    head = ET.SubElement(html, "head")
    ET.SubElement(head, "meta", {"charset": "utf-8"})
    ET.SubElement(head, "meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"})
    ET.SubElement(head, "meta", {"name": "color-scheme", "content": "light dark"})
    _add(head, "title", f"crosstie audit {report.started_at:%Y-%m-%d %H:%M}: {report.state.value}")
    _add(head, "style", _STYLE)
    body = ET.SubElement(ET.SubElement(html, "body"), "main")
    _heading(body, report)
    _tiles(body, report)
    _by_reference(body, report.results)
    _over_time(body, report.results, history)
    _table(body, report.results)
    for result in report.results:
        _details(body, result, sample)
    _copies(body, report.copies)
    _unique(body, report.unique)
    _types(body, report.types)
    _counters(body, report.counters, sample)
    _leftovers(body, report.leftovers, sample)
    return "<!DOCTYPE html>\n" + ET.tostring(html, encoding="unicode", method="html")


def _add(parent: ET.Element, tag: str, text: str = "", **attributes: str) -> ET.Element:
    made = ET.SubElement(parent, tag, {name.rstrip("_"): value for name, value in attributes.items()})
    made.text = text
    return made


def _state(parent: ET.Element, state: AuditState) -> None:
    badge = _add(parent, "span", class_=f"badge {state.value}")
    _add(badge, "span", _SYMBOLS[state], class_="symbol", **{"aria-hidden": "true"}).tail = f" {state.value.upper()}"


def _heading(body: ET.Element, report: AuditReport) -> None:
    header = _add(body, "header")
    title = _add(header, "h1", "")
    _state(title, report.state)
    title[-1].tail = f" {_HEADLINES[report.state]}"
    started = f"{report.started_at:%Y-%m-%d %H:%M} UTC"
    _add(header, "p", f"Audit {report.run_id}, begun {started}, {report.seconds:,.1f} s", class_="quiet")


def _tiles(body: ET.Element, report: AuditReport) -> None:
    results = report.results
    figures = (
        ("orphan rows", sum(one.orphan_rows for one in results)),
        ("missing parents", sum(one.orphan_keys for one in results)),
        ("rows not judged yet", sum(one.deferred_rows for one in results)),
        ("references checked", sum(one.state is not AuditState.INCOMPLETE for one in results)),
        ("rows checked", sum(one.child_rows for one in results)),
    )
    tiles = _add(body, "section", class_="tiles")
    for name, value in figures:
        tile = _add(tiles, "div", class_="tile")
        _add(tile, "div", f"{value:,}", class_="figure")
        _add(tile, "div", name, class_="quiet")


def _by_reference(body: ET.Element, results: Sequence[AuditResult]) -> None:
    found = sorted((one for one in results if one.orphan_rows), key=lambda one: -one.orphan_rows)
    if not found:
        return
    section = _add(body, "section")
    _add(section, "h2", "Orphan rows by reference")
    for one in found:
        row = _add(section, "div", class_="barrow")
        _add(row, "div", one.reference, class_="name")
        _add(row, "div", f"{one.orphan_rows:,}", class_="number")
        row.append(proportion(one.orphan_rows, found[0].orphan_rows))


def _over_time(body: ET.Element, results: Sequence[AuditResult], history: Mapping[str, Sequence[Point]]) -> None:
    shown = [(one.reference, points) for one in results if len(points := history.get(one.reference, ())) > 1]
    if not shown:
        return
    section = _add(body, "section")
    _add(section, "h2", "Orphan rows over time")
    if any(not point.complete for _, points in shown for point in points):
        _add(section, "p", "✗ marks a run that was not complete.", class_="quiet")
    for reference, points in shown:
        figure = _add(section, "figure")
        _add(figure, "figcaption", reference, class_="name")
        figure.append(columns(points, f"Orphan rows in the last {len(points)} runs"))


def _table(body: ET.Element, results: Sequence[AuditResult]) -> None:
    section = _add(body, "section")
    _add(section, "h2", "References")
    if not results:
        _add(section, "p", "None was checked: no imported model declares a reference between two databases.")
        return
    table = _add(_add(section, "div", class_="scroll"), "table")
    heads = _add(_add(table, "thead"), "tr")
    for head in ("reference", "state"):
        _add(heads, "th", head)
    for head in ("keys", "rows", "orphans", "not judged", "time"):
        _add(heads, "th", head, class_="number")
    rows = _add(table, "tbody")
    for one in results:
        row = _add(rows, "tr")
        _add(row, "td", one.reference, class_="name")
        _state(_add(row, "td"), one.state)
        counts = (one.keys_checked, one.child_rows, one.orphan_rows, one.deferred_rows)
        for cell in (*(f"{count:,}" for count in counts), f"{one.seconds:,.1f} s"):
            _add(row, "td", cell, class_="number")


def _details(body: ET.Element, result: AuditResult, sample: int) -> None:
    if not (result.findings or result.reason or result.notes):
        return
    section = _add(body, "section", class_="details")
    _add(section, "h2", result.reference, class_="name")
    if result.reason is not None:
        _add(section, "p", f"Not checked to the end: {result.reason}", class_="reason")
    for note in result.notes:
        _add(section, "p", f"Note: {note}", class_="quiet")
    if not result.findings:
        return
    shown = result.findings[:sample]
    told = f"The first {len(shown):,} of {result.orphan_rows:,} orphan rows" if len(shown) < result.orphan_rows else ""
    _add(section, "p", told or f"{result.orphan_rows:,} orphan rows", class_="quiet")
    table = _add(_add(section, "div", class_="scroll"), "table")
    heads = _add(_add(table, "thead"), "tr")
    for head in ("child row", "missing parent", "all rows of that key"):
        _add(heads, "th", head)
    _samples(_add(table, "tbody"), shown)


def _samples(rows: ET.Element, findings: Sequence[Finding]) -> None:
    told: set[str] = set()
    for one in findings:
        row = _add(rows, "tr")
        _add(row, "td", row_text(one.child_key))
        _add(row, "td", key_text(one.parent_key))
        _add(_add(row, "td"), "code", "" if one.query in told else one.query)
        told.add(one.query)


def _checks(
    body: ET.Element, title: str, subject: str, audited: Sequence[_Check], name: str = "name"
) -> Iterator[tuple[_Check, ET.Element]]:
    """A section with a row for each check, of which it yields the cell for what was found; none for none."""
    if not audited:
        return
    section = _add(body, "section")
    _add(section, "h2", title)
    table = _add(_add(section, "div", class_="scroll"), "table")
    heads = _add(_add(table, "thead"), "tr")
    for head in (subject, "state", "what was found"):
        _add(heads, "th", head)
    rows = _add(table, "tbody")
    for one in audited:
        row = _add(rows, "tr")
        _add(row, "td", getattr(one, name), class_="name")
        _state(_add(row, "td"), one.state)
        yield one, _add(row, "td", one.reason or "")


def _unique(body: ET.Element, columns: Sequence[UniquenessResult]) -> None:
    for one, cell in _checks(body, "Values in one database only", "column", columns):
        cell.text = one.reason or f"{one.duplicates:,} of {one.keys_checked:,} values are in two databases"


def _copies(body: ET.Element, copies: Sequence[AuditedCopies]) -> None:
    for one, cell in _checks(body, "Denormalised columns", "copies by", copies):
        if one.reason is None and one.found is not None:
            cell.text = f"{one.found.differing:,} of {one.found.rows:,} rows differ"


def _types(body: ET.Element, results: Sequence[TypesResult]) -> None:
    for one, cell in _checks(body, "Types of polymorphic references", "column", results):
        cell.text = one.reason or ("" if one.findings else "every type is known")
        for found in one.findings:
            line = _add(cell, "div", f"unknown type {found.value!r} in {found.rows:,} rows: ")
            _add(line, "code", found.query)


def _counters(body: ET.Element, results: Sequence[CounterResult], sample: int) -> None:
    for one, cell in _checks(body, "Counter caches", "counter", results):
        cell.text = one.reason or f"{one.differing:,} of {one.parents_checked:,} counters are wrong"
        for found in one.findings[:sample]:
            key = row_text(found.parent_key)
            _add(cell, "div", f"{key}: {found.expected} children, and the column says {found.found}")


def _leftovers(body: ET.Element, audited: Sequence[AuditedLeftovers], sample: int) -> None:
    for one, cell in _checks(body, "Leftovers of sagas", "database", audited, name="database"):
        cell.text = one.reason or ("" if one.found else "nothing")
        for found in one.found[:sample]:
            _add(cell, "div", f"{found.kind}: {found.saga_id}: {found.message}")
        if len(one.found) > sample:
            _add(cell, "div", f"and {len(one.found) - sample:,} more", class_="quiet")


_STYLE: Final = """
:root { --page: #f9f9f7; --card: #fcfcfb; --ink: #0b0b0b; --quiet: #52514e; --line: #e1e0d9; --axis: #c3c2b7;
  --series: #2a78d6; --track: #e8eef6; --ok: #0a6b0a; --findings: #b42323; --incomplete: #8a5a00; }
@media (prefers-color-scheme: dark) { :root { --page: #0d0d0d; --card: #1a1a19; --ink: #ffffff; --quiet: #c3c2b7;
  --line: #2c2c2a; --axis: #383835; --series: #3987e5; --track: #26303c; --ok: #4fc04f; --findings: #ff8a80;
  --incomplete: #fab219; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, -apple-system, "Segoe UI", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 24px 16px 48px; }
h1 { font-size: 24px; line-height: 1.3; margin: 0 0 4px; }
h2 { font-size: 16px; margin: 0 0 12px; }
p { margin: 0 0 12px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 16px; margin-top: 16px; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(168px, 1fr)); gap: 12px; background: none;
  border: 0; padding: 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px; }
.figure { font-size: 22px; font-weight: 600; white-space: nowrap; }
.quiet { color: var(--quiet); font-size: 13px; }
.name { overflow-wrap: anywhere; } td.name { min-width: 180px; }
.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.badge { display: inline-block; font-size: 12px; font-weight: 600; line-height: 20px; padding: 0 8px;
  white-space: nowrap; border: 1px solid currentColor; border-radius: 10px; vertical-align: 2px; }
.badge.ok { color: var(--ok); } .badge.findings { color: var(--findings); }
.badge.incomplete { color: var(--incomplete); }
.reason { color: var(--incomplete); overflow-wrap: anywhere; }
.barrow { display: grid; grid-template-columns: 1fr auto; gap: 2px 12px; margin-bottom: 10px; font-size: 13px; }
.bar { grid-column: 1 / -1; width: 100%; height: 12px; }
.series { fill: var(--series); } .track { fill: var(--track); }
figure { margin: 0 0 16px; font-size: 13px; }
.chart { display: block; width: 100%; max-width: 760px; height: auto; }
.grid { stroke: var(--line); } .axis { stroke: var(--axis); }
.tick { fill: var(--quiet); font-size: 11px; } .cross { fill: var(--incomplete); font-size: 13px; font-weight: 700; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th { text-align: left; font-weight: 600; color: var(--quiet); } th.number { text-align: right; }
th, td { padding: 6px 12px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tbody tr:last-child td { border-bottom: 0; }
td:last-child, th:last-child { padding-right: 0; }
code { font: 12px/1.5 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; overflow-wrap: anywhere; }
@media print {
  :root { --page: #fff; --card: #fff; --ink: #000; --quiet: #444; --line: #ccc; --axis: #999; --series: #2a78d6;
    --track: #e8eef6; --ok: #0a6b0a; --findings: #b42323; --incomplete: #8a5a00; }
  body { font-size: 11pt; -webkit-print-color-adjust: exact; print-color-adjust: exact; }
  main { max-width: none; padding: 0; }
  .tiles { grid-template-columns: repeat(5, 1fr); } .tile { padding: 8px 10px; } .figure { font-size: 13pt; }
  section { break-inside: avoid; } .details { break-inside: auto; } tr, figure, .barrow { break-inside: avoid; }
  h2 { break-after: avoid; } thead { display: table-header-group; } .scroll { overflow: visible; }
}
"""
