"""Whose study the prefixes of a bucket are, so that two studies never write over one another."""

from collections.abc import Mapping

from curvas_assets.errors import CorruptArtefactError, MissingArtefactError, StorageError
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
        CorruptArtefactError: a record that says whose one is was damaged, or something else wrote it.
    """
    owners = {key: owner_of(store, key) for key in layout.owners()}
    _require(store, owners, study)
    for key in (key for key, owner in owners.items() if owner is None and claim):
        tables.write_json(store, key, {"study": study})
        _require(store, {key: owner_of(store, key)}, study)


def owner_of(store: ObjectStore, key: str) -> str | None:
    """Whose a prefix is; None if it is nobody's.

    Args:
        store: the bucket.
        key: of the record that says it (`Layout.owner`).

    Raises:
        CorruptArtefactError: the record was damaged, or something else wrote it.
    """
    try:
        return str(tables.read_json(store, key)["study"])
    except MissingArtefactError:
        return None
    except (CorruptArtefactError, KeyError) as error:
        raise CorruptArtefactError(
            "opening the store",
            f"{store.name}/{key}",
            "the record of whose study this prefix is was damaged, or written by something else",
            "If it is this study's, remove the record: the next step writes it again.",
        ) from error


def _require(store: ObjectStore, owners: Mapping[str, str | None], study: str) -> None:
    others = {key: owner for key, owner in owners.items() if owner not in (None, study)}
    if not others:
        return
    key, owner = next(iter(others.items()))
    raise StorageError(
        "opening the store",
        f"{store.name}/{key.rpartition('/')[0]}",
        f"what stands there was made by the study {owner!r}, and this is {study!r}",
        f"Set S3_STUDY_DIR={study} (and CURVAS_KEY_PREFIX if both run on one Dagster instance), and no prefix that both share but "
        f"the data's. If it is the same study under a new name, name it {owner!r} again, or remove {', '.join(others)}.",
    )
