"""Whose study the prefixes of a bucket are, so that two studies never write over one another."""

from curvas_assets.errors import MissingArtefactError, StorageError
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore


def require_own(store: ObjectStore, layout: Layout, study: str) -> None:
    """Make sure that the prefixes are this study's, which they become if they are nobody's.

    Args:
        store: the bucket.
        layout: its prefixes; the data's may be shared.
        study: the study's name.

    Raises:
        StorageError: they are another study's.
    """
    key = layout.owner()
    try:
        owner = str(tables.read_json(store, key).get("study"))
    except MissingArtefactError:
        tables.write_json(store, key, {"study": study})
        owner = str(tables.read_json(store, key).get("study"))  # of two that began at once, one is refused
    if owner != study:
        raise StorageError(
            "opening the store",
            f"{store.name}/{layout.artifacts}",
            f"what stands there was made by the study {owner!r}, and this is {study!r}",
            f"Set S3_STUDY_DIR={study} (and CURVAS_KEY_PREFIX if both run on one Dagster instance). If it is the same study under a "
            f"new name, remove {key}.",
        )
