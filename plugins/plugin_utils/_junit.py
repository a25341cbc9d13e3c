# Copyright (c) 2026, Culvert contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# Private to the collection: may change at any time.
"""Verdicts as a JUnit file, which nearly every CI system can show: a test suite for each host, a test case
for each check.

There is no standard. What is written here is what Jenkins' schema asks for and GitLab, GitHub's actions and
Azure read: `testsuites` around `testsuite` with its counts, `testcase` with `classname`, `name` and `time`,
and in it at most one of `failure`, `error`, `skipped`.
"""

from __future__ import annotations

import re
import typing as t
import xml.etree.ElementTree as ET

# Everything that XML 1.0 has no way to write, not even escaped (section 2.2, Char).
_NOT_XML = re.compile(r"[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")

Verdicts = t.Sequence[t.Mapping[str, t.Any]]


def junit(verdicts: Verdicts, timestamp: str = "") -> str:
    """The file's text. `timestamp`: when it was verified, ISO 8601 without a time zone."""
    root = ET.Element("testsuites", {"name": "culvert.vpn.verify"})
    for one in verdicts:
        _suite(root, one, timestamp)
    for name in ("tests", "failures", "errors", "skipped"):
        root.set(name, str(sum(int(suite.get(name, "0")) for suite in root)))
    root.set("time", "0")
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _suite(root: ET.Element, one: t.Mapping[str, t.Any], timestamp: str) -> None:
    suite = ET.SubElement(root, "testsuite", {"name": plain(one["host"]), "hostname": plain(one["host"])})
    if not one["checks"]:
        # Nothing could be asked: that is an error of the test and no failure of what it tests.
        case = _case(suite, one, "reachable")
        ET.SubElement(case, "error", {"message": plain(one["says"]), "type": one["verdict"]})
    for check in one["checks"]:
        case = _case(suite, one, check["name"])
        reasons = plain("\n".join(check["reasons"]))
        if check["ok"] is False and not check["ignored"]:
            first = reasons.partition("\n")[0] or f"{check['name']} failed"
            ET.SubElement(case, "failure", {"message": first, "type": check["name"]}).text = reasons
        elif check["ok"] is not True:
            why = "ignored: " + reasons if check["ok"] is False else reasons or "not asked for"
            ET.SubElement(case, "skipped", {"message": why})
        if check["value"] is not None:
            ET.SubElement(case, "system-out").text = plain(f"{check['name']}: {check['value']}")
    cases = list(suite)
    if one["cause"] and one["checks"]:
        # Last, where the schema has it.
        ET.SubElement(suite, "system-out").text = plain(f"cause: {one['says']}")
    counts = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.set("tests", str(len(cases)))
    for name, tag in counts.items():
        suite.set(name, str(sum(1 for case in cases if case.find(tag) is not None)))
    suite.set("time", "0")
    if timestamp:
        suite.set("timestamp", timestamp)


def _case(suite: ET.Element, one: t.Mapping[str, t.Any], name: str) -> ET.Element:
    attributes = {"classname": f"culvert.{plain(one['host'])}", "name": name, "time": "0"}
    return ET.SubElement(suite, "testcase", attributes)


def plain(text: t.Any) -> str:
    """Text that XML can hold: what it cannot is written as Python writes it, such as `\\x1b`."""
    return _NOT_XML.sub(lambda found: found.group().encode("unicode_escape").decode("ascii"), str(text))
