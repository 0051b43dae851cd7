"""The words of the report, one file a language beside this one, and how a language writes numbers.

Belongs here: finding and filling in what a language's file says. Does not belong here: the words themselves (`en.yaml`,
`fr.yaml`), anything computed. Another language is another file with the same keys; beside them, `organs`, `reasons`,
`sentences` and `patterns` can translate what other modules say in English.
"""

import re
import string
from collections.abc import Collection, Mapping, Sequence
from functools import cache, partial
from importlib import resources
from typing import Any

import pandas as pd
import yaml

from curvas_assets.errors import ReportError
from curvas_assets.report.tables import number, p_value

JOINT = "; "
"""Between sentences in one note."""


class _Filling(string.Formatter):
    """Fills in `{…}`, nouns in the singular after some numbers: 1 in English, 0 and 1 in French."""

    def __init__(self, singular: Collection[int]):
        self._singular = frozenset(singular)

    def format_field(self, value: Any, format_spec: str) -> str:
        """A value; with its noun where the field names one in singular and plural."""
        if "|" not in format_spec:
            return super().format_field(value, format_spec)
        one, many = format_spec.removeprefix("=").split("|")
        noun = one if value in self._singular else many
        return noun if format_spec.startswith("=") else f"{value} {noun}"


@cache
def spoken(language: str) -> Mapping[str, Any]:
    """What a language's file says, by section.

    Raises:
        ReportError: there is no file of this language.
    """
    files = {f.name.removesuffix(".yaml"): f for f in resources.files(__name__).iterdir() if f.name.endswith(".yaml")}
    if language not in files:
        use = f"Use {' or '.join(sorted(files))}."
        raise ReportError("writing the report", repr(language), "it is not a language of the report", use)
    return yaml.safe_load(files[language].read_text(encoding="utf-8"))


class Words:
    """One language's words: `words("key", name=value)`, `words.metric("ece")`, `words.column("p_bonferroni")`.

    Args:
        language: the name of its file: `en` or `fr`.

    Raises:
        ReportError: another language.
    """

    def __init__(self, language: str):
        self.language = language
        self._said = spoken(language)
        self.decimal: str = self._said["decimal"]
        self.joint: str = self._said["joint"]
        self._filling = _Filling(singular=self._said["singular"])

    def __call__(self, key: str, **values: object) -> str:
        """The text of a key, its `{…}` filled in: `{n:patient|patients}` with a number and its noun, `{n:=Organ|Organs}` with
        the noun alone.

        >>> Words("fr")("n_patients", n=1), Words("fr")("n_patients", n=2)
        ('1 patient', '2 patients')
        """
        text = self._said["texts"][key]
        return self._filling.vformat(text, (), values) if values else text

    def metric(self, metric: str) -> str:
        """A metric's name, starting in upper case; its own name if it has none here."""
        name = self._named("metrics", metric).replace("_", " ")
        return name[:1].upper() + name[1:]

    def column(self, column: str) -> str:
        """The heading of a table's column; its own name if it has none here."""
        return self._named("columns", column).replace("_", " ")

    def organ(self, organ: str) -> str:
        """An organ of the study's, by its name in this language where it is a common one."""
        return self._named("organs", organ)

    def question(self, question: str) -> str:
        """A question of the study's primary metrics, or `exploratory`; its own words if it has none here."""
        return self._named("questions", question)

    def family(self, family: str) -> str:
        """A family of predictors; its own name if it has none here."""
        return self._named("families", family)

    def component(self, component: str) -> str:
        """A component of variance, `patient:annotator` for one; its own name if it has none here."""
        return " × ".join(self._named("effects", effect) for effect in component.split(":"))

    def the_family(self, family: str) -> str:
        """A family within a sentence, with its article."""
        return self._named("families_the", family)

    def about_family(self, family: str) -> str:
        """What a family is, with its name."""
        return self._named("families_about", family)

    def short_metric(self, metric: str) -> str:
        """A metric's abbreviation, where `about_metric` explains it; otherwise its name."""
        short = self._said.get("metrics_short", {}).get(metric)
        return self.metric(metric) if short is None else short

    def about_metric(self, metric: str) -> str:
        """What a metric tells, in one sentence; empty where there is none here."""
        return self._said.get("metrics_about", {}).get(metric, "")

    def direction(self, direction: str) -> str:
        """Which values of a metric are better."""
        return {"higher": self("higher"), "lower": self("lower")}.get(direction, self("neither"))

    def viewer(self) -> dict[str, str]:
        """All words of the viewer's page, which fills in the `{…}` itself."""
        return dict(self._said["viewer"])

    def reason(self, reason: str) -> str:
        """Why something is out of date, as the lineage says it in English."""
        for english, here in self._said.get("reasons", {}).items():
            reason = reason.replace(english, here)
        return reason

    def told(self, text: str) -> str:
        """A note, reason or definition that another module wrote in English, or several joined by `; `.

        A text that is not in the file stays as it is.

        >>> Words("fr").told("3 of 9 undefined; one annotator; something new")
        '3 sur 9 non définis ; un seul annotateur ; something new'
        """
        if (whole := self._sentence(text)) is not None:
            return whole
        known = [(part, self._sentence(part)) for part in text.split(JOINT)]
        if all(here is None for _, here in known):
            return text
        return self.joint.join(part if here is None else here for part, here in known)

    def number(self, value: float) -> str:
        """A number with three significant digits."""
        return number(float(value), decimal=self.decimal)

    def percent(self, share: float) -> str:
        """A share of one, in per cent."""
        return f"{100 * share:.3g}\u00a0%".replace(".", self.decimal)

    def joined(self, names: Sequence[str]) -> str:
        """Names within a sentence.

        >>> Words("en").joined(["a", "b", "c"]), Words("fr").joined(["a", "b"])
        ('a, b and c', 'a et b')
        """
        return f" {self('and')} ".join([*([", ".join(names[:-1])] if names[1:] else []), *names[-1:]])

    def span(self, low: float, high: float) -> str:
        """From the least to the largest of several numbers; one of them where they are alike."""
        return "–".join(dict.fromkeys((self.setting(low), self.setting(high))))

    def setting(self, value: float) -> str:
        """A number that somebody chose, with no more digits than were written."""
        return f"{value:g}".replace(".", self.decimal)

    def p_value(self, value: object) -> str:
        """A p value."""
        return p_value(value, decimal=self.decimal)

    def interval(self, low: float, high: float) -> str:
        """Both ends of an interval; empty where there is none."""
        return "" if pd.isna(low) or pd.isna(high) else self("interval", low=self.number(low), high=self.number(high))

    def _named(self, section: str, name: str) -> str:
        return self._said.get(section, {}).get(name, name)

    def _sentence(self, text: str) -> str | None:
        """One sentence in this language, whole or by its pattern; None where it is not known."""
        if text in (sentences := self._said.get("sentences", {})):
            return sentences[text]
        for pattern in self._said.get("patterns", ()):
            translates = "{" in pattern["say"]  # a part, which may be several sentences
            if (found := re.fullmatch(pattern["match"], text)) and (translates or JOINT not in text):
                return re.sub(r"\\(\d)|\{(\d)\}", partial(self._filled, found), pattern["say"])
        return None

    def _filled(self, found: re.Match[str], place: re.Match[str]) -> str:
        r"""A part of a sentence: `\1` as it was found, `{1}` in this language."""
        return found[int(place[1])] if place[1] else self.told(found[int(place[2])])
