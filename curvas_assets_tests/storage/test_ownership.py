"""Claims proved here.

- Prefixes become the first study's; another is refused before it writes, with what to set; with a folder of its own it is not.
- Studies may share the data.
"""

from pathlib import Path

import pytest

from curvas_assets.errors import StorageError
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
