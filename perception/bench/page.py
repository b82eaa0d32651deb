"""A report, or a sweep, as one HTML page that needs nothing beside it."""

from __future__ import annotations

import html
from collections.abc import Sequence

from perception.bench.charts import draw_histogram, draw_timeline
from perception.bench.schema import Report
from perception.bench.text import Rows, describe, headline, tables
from training.report import STYLE

BLOCKS = "default-src 'none'; style-src 'unsafe-inline'"  # the page asks nobody for anything, and the browser sees to it


def page(title: str, sections: Sequence[tuple[str, str]], notes: Sequence[str] = ()) -> str:
    links = " ".join(f'<a href="#{anchor(name)}">{html.escape(name)}</a>' for name, _ in sections)
    body = "".join(f'<section id="{anchor(name)}"><h2>{html.escape(name)}</h2>{part}</section>\n' for name, part in sections)
    said = f'<ul class="notes">{"".join(f"<li>{html.escape(note)}</li>" for note in notes)}</ul>' if notes else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{BLOCKS}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{html.escape(title)}</h1><nav>{links}</nav>{said}</header>\n<main>\n{body}</main>\n</body>\n</html>\n"
    )


def anchor(name: str) -> str:
    return "".join(c for c in name.lower().replace(" ", "-") if c.isalnum() or c == "-")


def table(head: Sequence[str], rows: Rows) -> str:
    titles = "".join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{titles}</tr></thead><tbody>{lines}</tbody></table></div>'


def listed(lines: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{html.escape(line)}</li>' for line in lines)}</ul>"


def report_page(report: Report) -> str:
    each = [(f"{side.label}, {case.mode}, {case.load}", case) for side in report.sides for case in side.cases]
    machine = report.machine
    facts = [
        ["command", report.command],
        ["measured", report.created],
        ["processor's flags", " ".join(machine.flags) or "none known"],
        ["governor", machine.governor or "unknown"],
        ["clock", f"{machine.mhz:.0f} MHz" if machine.mhz else "unknown"],
        ["Python", machine.python],
        *([name, version] for name, version in machine.packages.items()),
        *([f"{gpu.name}", f"driver {gpu.driver}, {gpu.memory_mib} MiB"] for gpu in machine.gpus),
        *([f"{side.label}: model", side.engine.model_sha256] for side in report.sides),
        *([f"{side.label}: configuration", side.config_sha256] for side in report.sides),
        ["clip", report.clip.sha256 or "live"],
        [f"{report.workload}, ms", "; ".join(f"{k}: {min(v):.2f} to {max(v):.2f}" for k, v in report.workload_ms.items())],
    ]
    sections = [
        ("What was measured", listed(describe(report)) + f"<h3>In short</h3>{listed(headline(report))}"),
        *((title, table(head, rows)) for title, head, rows in tables(report) if title != "Milliseconds by stage"),
        ("Distribution of latency", f'<div class="charts">{"".join(draw_histogram(n, c) for n, c in each)}</div>'),
        ("Over the measurement", f'<div class="charts">{"".join(draw_timeline(n, c) for n, c in each)}</div>'),
        *((title, table(head, rows)) for title, head, rows in tables(report) if title == "Milliseconds by stage"),
        ("Machine and versions", table(["what", "value"], facts)),
    ]
    return page("Freespace benchmark", sections, report.notes)
