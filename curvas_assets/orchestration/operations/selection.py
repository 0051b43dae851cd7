"""Which patients and models an operation is about: names, sets, or `all`. Pure; the one place that reads such lists."""

import re
from collections.abc import Collection, Sequence

from curvas_assets.errors import StudyError
from curvas_assets.study import Study

ALL = "all"
PATIENTS = (
    "Ids (UKCHLL077, 077 or 77; or as the study has them), or all, train, validation, test; several may be given."
)
MODELS = "Names such as anno1_init112233_foldall, or all."
PREDICTORS = "Names of models or ensembles, such as anno1_init112233_foldall or ensemble_all, or all."
"""Variants of models may be named too, but `all` leaves them out: they are members of ensembles only."""


def choose_patients(study: Study, asked: Sequence[str], known: Collection[str]) -> list[str]:
    """The patients that a list of ids and sets stands for, in order, each once.

    Args:
        study: whose ids, sets and exclusions count.
        asked: ids with or without prefix, and the words `all`, `train`, `validation`, `test`; an entry may hold several,
            parted by commas or spaces.
        known: the patients there are. A set stands for its members among them; excluded patients are in no set. Without
            a test set, `test` stands for those whom cross-validation scores.

    Raises:
        StudyError: nothing is asked for, or an id is not known; names it and what there is.
    """
    chosen: set[str] = set()
    for word in _words("patients", study.name, asked):
        if word == ALL:
            chosen |= {p for p in known if p not in study.exclusions}
        elif word == "test":
            chosen |= set(study.scored_patients(known)) & set(known)
        elif word in ("train", "validation"):
            chosen |= {p for p in known if study.patient_set(p) == word and p not in study.exclusions}
        else:
            patient = study.patients.normalise(word)
            if patient not in known:
                raise StudyError(
                    "choosing patients",
                    patient,
                    f"there is no such patient; known are {_listed(sorted(known))}",
                    "Upload it first, or give all, train, validation or test.",
                )
            chosen.add(patient)
    return sorted(chosen)


def choose_models(study: Study, asked: Sequence[str]) -> list[str]:
    """The models that a list of names stands for, in the study's order; a StudyError names one that is not the study's."""
    return _choose("models", study, asked, [str(model) for model in study.models])


def choose_annotator(study: Study, asked: str) -> str:
    """One annotator; a StudyError if the study has none of that name."""
    chosen = _choose("an annotator", study, [asked], study.label_names)
    if len(chosen) != 1:
        raise StudyError("choosing an annotator", study.name, f"{asked} names several annotators", "Give one name.")
    return chosen[0]


def choose_predictors(study: Study, asked: Sequence[str]) -> list[str]:
    """Models and ensembles, in the study's order, and variants of models that are named; a StudyError names one that is not
    the study's.
    """
    return _choose("models and ensembles", study, asked, study.predictors, [str(one) for one in study.variants])


def _choose(
    what: str, study: Study, asked: Sequence[str], known: Sequence[str], further: Sequence[str] = ()
) -> list[str]:
    """The asked names among those known, and among further ones, which `all` does not mean."""
    words = _words(what, study.name, asked)
    unknown = [word for word in words if word != ALL and word not in known and word not in further]
    if unknown:
        raise StudyError(
            f"choosing {what}",
            study.name,
            f"{', '.join(unknown)} is not among {', '.join(known)}",
            "Give names from that list, or all.",
        )
    return [name for name in known if ALL in words or name in words] + [name for name in further if name in words]


def _words(what: str, subject: str, asked: Sequence[str]) -> list[str]:
    words = [word for entry in asked for word in re.split(r"[\s,]+", str(entry)) if word]
    if not words:
        raise StudyError(f"choosing {what}", subject, "none are named", "Give names, or all.")
    return words


def _listed(names: Sequence[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "none") + more
