"""The night's work: takes in what changed about patients, and makes what follows from it, for these patients only.

A patient moves to the next stage only if all that the stage needs is up to date. A patient who was refused at intake,
or whose stale predictions may not be made at night, keeps the old scores; the run fails and names the patient.
"""

from collections.abc import Callable, Sequence

import dagster as dg

from curvas_assets.orchestration.asset_keys import key_of, keys_of
from curvas_assets.orchestration.environment import variable
from curvas_assets.orchestration.following import calibrators_wait_for
from curvas_assets.orchestration.scope import Scope
from curvas_assets.orchestration.staleness import Staleness
from curvas_assets.stages import table
from curvas_assets.storage.layout import patient_of

NIGHT = tuple(row.jobs[0] for row in table.ASSETS if row.followed or row is table.CALIBRATORS)
"""Stages of a night, in order."""
PREDICTIONS = tuple(job for row in table.PREDICTED for job in row.jobs)
"""Those of them that use GPUs."""
(FITTING,) = table.CALIBRATORS.jobs
UNPREDICTED = (
    f"nothing is predicted at night ({variable('nightly_predict')}=1 allows it): launch make_missing for them with stale: true, or "
    "upload them again"
)
Run = Callable[[str, Scope], list[str]]
"""Makes what is due of a stage in a scope, and returns the names of what could not be made."""


def fit_is_due(staleness: Staleness) -> bool:
    """Whether calibrators are missing or out of date, for patients to be scored, and wait for nothing."""
    if not staleness.partitions(key_of(table.SCORES)) or not staleness.due(key_of(table.CALIBRATORS)):
        return False
    return not calibrators_wait_for(staleness)


def concerned(staleness: Staleness, *, predict: bool = False) -> list[str]:
    """Test patients for whom something changed since they were scored, or who can be scored for the first time.

    Args:
        staleness: what there is.
        predict: whether predictions may be made; if not, a stale prediction alone does not select its patient.
    """
    scan, scores = key_of(table.SCAN), key_of(table.SCORES)
    patients = [str(patient) for patient in staleness.partitions(scores)]
    unpredicted = {
        patient_of(str(cell))
        for key in map(key_of, table.PREDICTED)
        for cell in staleness.partitions(key)
        if not staleness.made(key, cell) and not staleness.elsewhere(key, cell)
    }
    of_patient: dict[dg.AssetKey, dict[str, list[str]]] = {}
    for stage in NIGHT:
        if stage == FITTING or (stage in PREDICTIONS and not predict):
            continue
        for key in keys_of(stage):
            for partition in map(str, staleness.due(key)):
                of_patient.setdefault(key, {}).setdefault(patient_of(partition), []).append(partition)

    def can_begin(patient: str) -> bool:
        """Whether a stage has something due that exists and is stale, or is missing and could be made."""
        return any(
            staleness.made(key, partition) or staleness.ready(key, partition)
            for key, due in of_patient.items()
            for partition in due.get(patient, ())
        )

    def may_begin(patient: str) -> bool:
        """A patient without scores and predictions is new, and left to `follow_new_patients`."""
        return predict or patient not in unpredicted or staleness.made(scores, patient)

    return [p for p in patients if staleness.made(scan, p) and may_begin(p) and can_begin(p)]


def work(
    fresh: Callable[[], Staleness],
    run: Run,
    patients: Sequence[str],
    tell: Callable[[str], None],
    *,
    predict: bool,
) -> list[str]:
    """Take the patients from intake to scores, and return the names of what could not be made.

    Calibrators that are due are fitted even if nothing changed for any patient, as when a validation patient was excluded.

    Args:
        fresh: a new snapshot of what is due.
        run: makes a stage.
        patients: those concerned.
        tell: told why a patient cannot go on to the next stage.
        predict: whether predictions may be made.
    """
    left: list[str] = []
    going = set(patients)
    staleness: Staleness | None = None
    for stage in NIGHT:
        if stage == FITTING:  # of no patient; scores of others that follow from it are left to the next night
            staleness = staleness or fresh()
            due = staleness.due(key_of(table.CALIBRATORS)) if going else fit_is_due(staleness)
            left += run(stage, Scope()) if due else []
            continue
        if not going:
            continue
        if stage not in PREDICTIONS or predict:
            left += run(stage, Scope(patients=frozenset(going)))
        staleness = fresh()
        if stage not in PREDICTIONS or predict:
            going -= {patient_of(str(p)) for key in keys_of(stage) for p in staleness.due(key)}
        if stage == PREDICTIONS[-1] and (held := going & _of_another_image(staleness)):
            told = (
                f"predictions of {', '.join(sorted(held))} are missing or of another image than the patient has now; "
                f"{'they were uploaded: upload them again' if predict else UNPREDICTED}; the old scores are kept until then"
            )
            tell(told)
            left.append(told)
            going -= held
    return left


def _of_another_image(staleness: Staleness) -> set[str]:
    """Patients with a prediction that is missing or was made before the image changed. A model that was trained again
    does not count: predictions of the current image are still used.
    """
    found: set[str] = set()
    for key in map(key_of, table.PREDICTED):
        for cell in staleness.partitions(key):
            patient = patient_of(str(cell))
            if patient in found or (not staleness.made(key, cell) and staleness.elsewhere(key, cell)):
                continue  # a model that is not here, and a patient on whom nothing is fitted
            reasons = staleness.status(key, cell).reasons
            if not staleness.made(key, cell) or any(reason.startswith(f"{table.TEST_SCAN} ") for reason in reasons):
                found.add(patient)
    return found
