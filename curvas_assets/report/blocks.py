"""What a section of the report consists of: headings, sentences, lists, tables, figures, in the order of reading.

Belongs here: the kinds of blocks. Does not belong here: what they say (`sections`), markup (`markup` and its templates,
which choose by `kind`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

from curvas_assets.report.chart import Chart
from curvas_assets.report.tables import Table


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str


@dataclass(frozen=True)
class Note:
    """A paragraph about how something beside it is to be read, in small print."""

    kind: ClassVar[str] = "note"
    text: str


@dataclass(frozen=True)
class Answer:
    """The answer to the study's question, which is to be seen before all else."""

    kind: ClassVar[str] = "answer"
    sentences: Sequence[str]


@dataclass(frozen=True)
class Absent:
    """A sentence that stands where something is missing."""

    kind: ClassVar[str] = "absent"
    text: str


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: Sequence[str]


@dataclass(frozen=True)
class Source:
    """Text to be copied as it is, such as BibTeX, under its caption; on the page it opens by a click on the caption."""

    kind: ClassVar[str] = "source"
    text: str
    caption: str


@dataclass(frozen=True)
class TableBlock:
    """A table under its caption; on the page, a folded one opens by a click on the caption."""

    kind: ClassVar[str] = "table"
    table: Table
    caption: str = ""
    folded: bool = False


@dataclass(frozen=True)
class FigureBlock:
    """A figure; its title and caption are the chart's."""

    kind: ClassVar[str] = "figure"
    chart: Chart


Block: TypeAlias = Heading | Text | Note | Answer | Absent | Bullets | Source | TableBlock | FigureBlock


@dataclass(frozen=True)
class Section:
    """A section of the report.

    Args:
        name: its anchor on the page, and the word that is its title.
        blocks: what it says, in order.
    """

    name: str
    blocks: Sequence[Block]
