"""Claims proved here.

- Prefixes become the first study's; another is refused before it writes, with what to set; with a folder of its own it is not.
- A removal is refused alike, and takes nothing into possession.
- Studies may share the data, and no other prefix.
- Of a study that was renamed, every record is named; one that is damaged is told as such, and not made again.
"""

from pathlib import Path

import pytest

from curvas_assets.errors import CorruptArtefactError, StorageError
from curvas_assets.orchestration.bucket import layout_of
from curvas_assets.storage.connection import S3Settings
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import FolderObjects
from curvas_assets.storage.ownership import require_own


def layout(**variables: str) -> Layout:
    return layout_of(S3Settings.from_environment({"S3_BUCKET": "bucket", **variables}))


def test_another_study_is_refused(tmp_path: Path):
    objects = FolderObjects(tmp_path)
    require_own(objects, layout(), "first")
    require_own(objects, layout(), "first")
    with pytest.raises(StorageError, match=r"made by the study 'first', and this is 'second'.*S3_STUDY_DIR=second"):
        require_own(objects, layout(), "second")
    require_own(objects, layout(S3_STUDY_DIR="second"), "second")
    require_own(objects, layout(), "first")


@pytest.mark.parametrize("shared", ["S3_ARTIFACTS_DIR", "S3_OUTPUT_DIR", "S3_METRICS_DIR", "S3_REPORTS_DIR"])
def test_a_single_prefix_that_both_share_is_refused(tmp_path: Path, shared: str):
    objects, first, second = FolderObjects(tmp_path), *(layout(S3_STUDY_DIR=name, **{shared: "both"}) for name in "ab")
    require_own(objects, first, "a")
    with pytest.raises(
        StorageError, match=r"/both: .*made by the study 'a', and this is 'b'.* remove both/study\.json"
    ):
        require_own(objects, second, "b")
    assert [item.key for item in objects.list("b/")] == [], "it is refused before it writes"
    require_own(objects, first, "a")


def test_who_only_looks_takes_nothing_into_possession(tmp_path: Path):
    objects = FolderObjects(tmp_path)
    require_own(objects, layout(), "first", claim=False)
    assert list(objects.list("")) == []
    require_own(objects, layout(), "first")
    with pytest.raises(StorageError, match="made by the study 'first'"):
        require_own(objects, layout(), "second", claim=False)


def test_a_study_that_was_renamed_is_told_all_that_names_it(tmp_path: Path):
    objects, own = FolderObjects(tmp_path), layout()
    require_own(objects, own, "first")
    with pytest.raises(StorageError, match=f"name it 'first' again, or remove {', '.join(own.owners())}"):
        require_own(objects, own, "renamed")


@pytest.mark.parametrize("content", [b"{", b'{"owner": "first"}'])
def test_a_damaged_record_is_told_and_stays(tmp_path: Path, content: bytes):
    objects, own = FolderObjects(tmp_path), layout()
    objects.put("output/study.json", content)
    with pytest.raises(
        CorruptArtefactError, match=r"output/study\.json: .*remove the record: the next step writes it again"
    ):
        require_own(objects, own, "first")
    assert {item.key: objects.get(item.key) for item in objects.list("")} == {"output/study.json": content}


def test_a_folder_of_its_own_holds_what_is_made_and_not_the_data():
    own = layout(S3_STUDY_DIR="/second/")
    assert (own.data, own.artifacts, own.output, own.metrics, own.reports) == (
        "data",
        "second/artifacts",
        "second/output",
        "second/metrics",
        "second/reports",
    )
    assert layout(S3_STUDY_DIR="second", S3_OUTPUT_DIR="elsewhere").output == "elsewhere"
    with pytest.raises(StorageError, match="inside another"):
        layout(S3_STUDY_DIR="data")
