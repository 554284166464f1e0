"""The report: what all checks found, with a traffic light and a verdict, as plain data; and the newest one of
each folder, kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .. import files as writing
from ..data.census import Census
from ..data.overlay import CAPTIONS, Overlay
from ..section import Section
from . import files, pictures, whole, words
from .case import LEVELS, Case, Check, Level

CHECKS: tuple[Check, ...] = (*pictures.CHECKS, *files.CHECKS, *words.CHECKS, *whole.CHECKS)
LIGHTS: Mapping[Level, str] = {"bad": "red", "warn": "yellow", "note": "green"}
SCHEMA = 2
TOLD = 5
Report = dict[str, Any]


def make(case: Case, state: str = "") -> Report:
    """Run all checks; groups of findings, the gravest first. `state` is that of the folder (`state_of`)."""
    groups = []
    for check in sorted(CHECKS, key=lambda check: LEVELS.index(check.level)):
        findings = [asdict(finding) for finding in check.find(case)]
        if findings:
            told = {name: getattr(check, name) for name in ("name", "title", "level", "about")}
            groups.append(told | {"findings": findings})
    return {
        "schema": SCHEMA,
        "folder": str(case.census.folder),
        "state": state,
        "pictures": len(case.census.samples),
        "looked_inside": bool(case.looks),
        "groups": groups,
    }


def state_of(census: Census, settings: Section) -> str:
    """Return what tells a folder from what it was: its files, how they are used, and what was asked."""
    digest = hashlib.sha256(settings.model_dump_json(exclude={"look_inside"}).encode())
    for sample in census.samples:
        used = (sample.caption, sample.width, sample.height, sample.background)
        digest.update(
            f"{sample.path} {sample.num_bytes} {sample.mtime_ns} {used}\n".encode("utf-8", "replace")
        )
    return digest.hexdigest()[:24]


def open_findings(report: Report, overlay: Overlay) -> Report:
    """Return the report without what was answered since: by a fix, by leaving the picture out, or by ignoring
    it.
    """
    tables = {t: overlay.entries(t) for t in ("left_out", "backgrounds", "crops", "ignored")}
    tables[CAPTIONS] = overlay.captions

    def is_open(check: str, finding: Mapping[str, Any]) -> bool:
        about = finding["files"][0] if finding["files"] else ""
        if check in tables["ignored"].get(about, ()) or about in tables["left_out"]:
            return False
        return not any(_is_done(fix, tables[fix["table"]]) for fix in finding["fixes"])

    groups = []
    for group in report["groups"]:
        left = [finding for finding in group["findings"] if is_open(group["name"], finding)]
        if left:
            groups.append(group | {"findings": left})
    return report | {"groups": groups}


def _is_done(fix: Mapping[str, Any], table: Mapping[str, Any]) -> bool:
    if fix["table"] == "backgrounds":  # any choice answers it
        return all(path in table for path in fix["values"])
    return all(table.get(path) == value for path, value in fix["values"].items())


def light(report: Report) -> str:
    """Return red, yellow or green."""
    levels = [group["level"] for group in report["groups"]]
    return next((LIGHTS[level] for level in LEVELS if level in levels), "green")


def verdict(report: Report) -> str:
    """Return in a sentence or two how the set is."""
    inside = "" if report["looked_inside"] else " Blur, copies and frames were not looked for yet."
    grave = [group for group in report["groups"] if group["level"] != "note"]
    if not grave:
        return f"Nothing to mend.{inside}"
    things = [f"{group['title'].lower()}{_how_many(group)}" for group in grave]
    shown = ", ".join(things[:3]) + (f" and {len(things) - 3} more" if len(things) > 3 else "")
    return f"{'Mend first' if light(report) == 'red' else 'Worth a look'}: {shown}.{inside}"


def _how_many(group: Mapping[str, Any]) -> str:
    return f" ({number(group):,})" if number(group) else ""


def number(group: Mapping[str, Any]) -> int:
    """Return how many findings there are; of a single one how many pictures it names, 0 for the whole set."""
    findings = group["findings"]
    return len(findings) if len(findings) > 1 else len(findings[0]["files"])


def subject(finding: Mapping[str, Any]) -> str:
    """Return the name to put before the sentence; "" where that names it, or speaks of several."""
    files, sentence = finding["files"], finding["sentence"]
    return files[0] if len(files) == 1 and files[0] not in sentence else ""


def counted(report: Report) -> str:
    """Return the same with the number of pictures in front."""
    number = report["pictures"]
    return f"{number:,} {'picture' if number == 1 else 'pictures'}. {verdict(report)}"


def told(report: Report) -> Iterator[str]:
    """The report for a person: the verdict, then each group with its first findings."""
    yield f"{light(report).upper()}: {counted(report)}"
    for group in report["groups"]:
        yield ""
        yield f"{group['title']}{_how_many(group)}. {group['about']}"
        for finding in group["findings"][:TOLD]:
            name = subject(finding)
            yield f"  {name}: {finding['sentence']}" if name else f"  {finding['sentence']}"
        if len(group["findings"]) > TOLD:
            yield f"  and {len(group['findings']) - TOLD:,} more"
    if any(finding["fixes"] for group in report["groups"] for finding in group["findings"]):
        yield ""
        yield "The page has a button for each remedy: Dataset, Check."


def file_of(workspace: Path, folder: Path) -> Path:
    digest = hashlib.sha256(str(folder.expanduser().resolve()).encode("utf-8", "replace")).hexdigest()[:16]
    return workspace / "cache" / "folders" / f"{digest}.report.json"


def save(report: Report, workspace: Path) -> None:
    text = json.dumps(report, ensure_ascii=False)
    writing.write_text(file_of(workspace, Path(report["folder"])), text)


def newest(workspace: Path, folder: Path) -> Report | None:
    """Return the last report on a folder, None if there is none that can be read."""
    try:
        report = json.loads(file_of(workspace, folder).read_bytes())
    except (OSError, ValueError):
        return None
    return report if isinstance(report, dict) and report.get("schema") == SCHEMA else None
