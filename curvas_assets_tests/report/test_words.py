"""Claims proved here.

- Every language says everything, with the same placeholders; what only other modules say in English is its own.
- Every word that the code or a template asks for is there, and none is there that nothing asks for.
- Another language is refused.
"""

import ast
import re
from pathlib import Path

import pytest

from curvas_assets import report
from curvas_assets.errors import ReportError
from curvas_assets.report.family_tests import SHOWN
from curvas_assets.report.sections import SECTIONS
from curvas_assets.report.words import Words, spoken
from curvas_assets.scoring import METRICS
from curvas_assets.statistics.families import EXPLORATORY
from curvas_assets.study import Statistics

PACKAGE = Path(report.__file__).parent
SHARED = (
    "texts",
    "families",
    "families_the",
    "families_about",
    "effects",
    "metrics_short",
    "metrics_about",
    "columns",
    "metrics",
    "questions",
    "viewer",
)
"""Sections of a language's file that every language has."""


def asked_by_code() -> list[ast.expr]:
    """The first argument of every call of `words(…)`, and of `self(…)` in their class; of a choice, both branches."""
    found: list[ast.expr] = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args:
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                found += [node.args[0]] if name in ("words", "w", "self") else []
    branches = [side for one in found if isinstance(one, ast.IfExp) for side in (one.body, one.orelse)]
    return found + branches


def asked_by_templates() -> set[str]:
    templates = "".join(path.read_text(encoding="utf-8") for path in (PACKAGE / "templates").iterdir())
    return set(re.findall(r'words\("(\w+)"', templates))


def asked_by_name() -> set[str]:
    constants = {one.value for one in asked_by_code() if isinstance(one, ast.Constant)}
    return constants | asked_by_templates() | {*SECTIONS} | {*SHOWN}


def patterns() -> list[re.Pattern[str]]:
    """Words whose name the code puts together, such as `per_{facet}`."""
    return [
        re.compile(
            "".join(".+" if isinstance(part, ast.FormattedValue) else re.escape(part.value) for part in one.values)
        )  # type: ignore[attr-defined]
        for one in asked_by_code()
        if isinstance(one, ast.JoinedStr)
    ]


def test_both_languages_say_everything_with_the_same_placeholders():
    english, french = spoken("en"), spoken("fr")
    for section in SHARED:
        assert set(english[section]) == set(french[section]), section
        for key, text in english[section].items():
            assert text, key
            assert french[section][key], key
            fields = [sorted(re.findall(r"\{(\w+)(?::[^}]*)?\}", one)) for one in (text, french[section][key])]
            assert fields[0] == fields[1], key
    assert set(french) - set(english) == {"organs", "reasons", "sentences", "patterns"}
    assert set(english) <= set(french)


def test_every_word_that_is_asked_for_is_there():
    texts = set(spoken("en")["texts"])
    asked = asked_by_name()
    assert len(asked) > 80
    assert asked - texts == set()
    assert [one.pattern for one in patterns() if not any(one.fullmatch(key) for key in texts)] == []
    assert {*METRICS} - {*spoken("en")["metrics"]} == set()
    assert {EXPLORATORY, *Statistics().primary} - {*spoken("en")["questions"]} == set()


def test_no_word_is_there_that_nothing_asks_for():
    asked, made = asked_by_name(), patterns()
    assert [key for key in spoken("en")["texts"] if key not in asked and not any(p.fullmatch(key) for p in made)] == []


def test_french_differs_from_english_and_a_third_language_is_refused():
    said = {"annotators": 3, "organs": "foie", "n": 1, "images": "CT"}
    assert Words("fr")("question_text", **said) != Words("en")("question_text", **said)
    assert Words("fr").decimal == ","
    assert Words("en").metric("unheard_of") == "Unheard of"
    with pytest.raises(ReportError, match="'de'"):
        Words("de")
