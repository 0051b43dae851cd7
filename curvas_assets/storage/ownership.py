"""Whose study the prefixes of a bucket are, so that two studies never write over one another."""

from curvas_assets.errors import MissingArtefactError, StorageError
from curvas_assets.storage import tables
from curvas_assets.storage.layout import Layout
from curvas_assets.storage.objects import ObjectStore


def require_own(store: ObjectStore, layout: Layout, study: str, *, claim: bool = True) -> None:
    """Make sure that the prefixes are this study's, or nobody's.

    Of two studies that begin at once, one is refused: at the latest at its next step.

    Args:
        store: the bucket.
        layout: its prefixes; the data's may be shared.
        study: the study's name.
        claim: make those that are nobody's this study's, for whoever goes on to write; else nothing is written.

    Raises:
        StorageError: one is another study's.
    """
    owners = {key: owner_of(store, key) for key in layout.owners()}
    for key, owner in owners.items():
        if owner not in (None, study):
            raise _others(store, key, owner, study)
    for key in (key for key, owner in owners.items() if owner is None and claim):
        tables.write_json(store, key, {"study": study})
        if (owner := owner_of(store, key)) != study:
            raise _others(store, key, owner, study)


def owner_of(store: ObjectStore, key: str) -> str | None:
    """Whose a prefix is; None if it is nobody's.

    Args:
        store: the bucket.
        key: of the record that says it (`Layout.owner`).
    """
    try:
        return str(tables.read_json(store, key).get("study"))
    except MissingArtefactError:
        return None


def _others(store: ObjectStore, key: str, owner: str | None, study: str) -> StorageError:
    return StorageError(
        "opening the store",
        f"{store.name}/{key.rpartition('/')[0]}",
        f"what stands there was made by the study {owner!r}, and this is {study!r}",
        f"Set S3_STUDY_DIR={study} (and CURVAS_KEY_PREFIX if both run on one Dagster instance), and no prefix that both share but "
        f"the data's. If it is the same study under a new name, remove {key}.",
    )
