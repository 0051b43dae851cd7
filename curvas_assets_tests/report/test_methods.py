"""Claims proved here.

- The methods name the numbers of the configuration and of the records, in both languages, and only what the study did.
- Patients whom not everybody annotated, channels, merged and ignored values and the organs that are scored are told.
- Where records are missing, a sentence says so, and none is made up.
- Data and computing are stated as the study file and the cost table say.
- BibTeX holds each entry once, with balanced braces and the versions on record; what was not used is not cited.
"""

import re
from dataclasses import replace

import pandas as pd
import pytest

from curvas_assets.report import Provenance, ReportInputs
from curvas_assets.report.blocks import Source, Text
from curvas_assets.report.citations import SOFTWARE, bibtex, cited
from curvas_assets.report.facts import gather
from curvas_assets.report.sections import methods
from curvas_assets.study import Study, built_in_studies, load_study
from curvas_assets_tests.report.studies import every_family, make_inputs, make_study

PACKAGES = {"curvas-assets": "0.2.0", "nnunetv2": "2.9.9", "torch": "2.14.1", "gcc": "1"}
NETWORKS = pd.DataFrame(
    {
        "model": ["a", "b", "c"],
        "epochs": pd.array([120, 300, None], "Int64"),
        "device": ["cuda 0 (A100)", "cuda 0 (A100)", None],
        "patch_size": ["28 × 256 × 256", "28 × 256 × 256", None],
        "spacing_mm": ["5 × 0.8 × 0.8", "5 × 0.8 × 0.8", None],
        "batch_size": pd.array([2, 2, None], "Int64"),
    }
)


UNUSED = dict.fromkeys(
    (
        *(
            "organs",
            "curves",
            "reliability",
            "risk_coverage",
            "comparisons",
            "non_inferiority",
            "variance",
            "association",
        ),
        *("agreement", "failure", "out_of_distribution", "leaderboard", "volume_intervals", "predictor_cost"),
    )
)
"""What other sections show, and takes time to make."""


def inputs_of(study: Study, **changes: object) -> ReportInputs:
    given = make_inputs(study, slices=(), **UNUSED)
    return replace(given, provenance=Provenance(git_commit="abc123", packages=PACKAGES), **changes)


def said(study: Study, **changes: object) -> str:
    """The paragraphs of the section."""
    blocks = methods.write(gather(inputs_of(study, **changes)))
    return " ".join(block.text for block in blocks if isinstance(block, Text))


@pytest.fixture(scope="module")
def whole() -> Study:
    plain = every_family()
    changes = {"evaluation": {"reference": "staple", "ece_bins": 37}, "statistics": {"draws": 1234}}
    return Study.model_validate({**plain.model_dump(), **changes})


def test_numbers_are_those_of_configuration_and_records(whole: Study):
    text = said(whole, networks=NETWORKS)
    for number in ("37 bins", "1234 draws", f"{whole.training.epochs} epochs"):
        assert number in text
    assert f"{len(whole.models)} networks in all" in text
    assert "nnU-Net 2.9.9" in text
    assert "patch was 28 × 256 × 256 voxels at a voxel size of 5 × 0.8 × 0.8 mm" in text
    assert "On record are 2 trainings, of 120–300 epochs" in text
    assert "A100" in text
    assert "STAPLE estimate" in text
    assert "Voxels measure 5 × 3.5 × 3.5 mm" in text
    assert "commit abc123" in text


def test_only_what_was_done_is_told():
    plain = said(make_study())
    for word in ("temperature", "isotonic", "conformal", "STAPLE", "On record", "patch was"):
        assert word not in plain, word
    full = said(every_family())
    assert "temperature" in full
    assert "isotonic" in full


def test_who_is_held_out_is_told_as_folds_and_settings_say():
    by_fold, share, none = "whom it holds out", "20\u00a0% of the training patients", "nothing is held out"
    whole, folds = make_study(), every_family()  # which has a test set: the folds' own patients decide
    train = {"train": [str(patient) for patient in range(901, 911)]}
    crossed = make_study(sets=train, folds=[0, 1])
    for study, told in ((whole, {share}), (folds, {by_fold}), (crossed, {share})):
        assert {words for words in (by_fold, share, none) if words in said(study)} == told, study.folds
    stopping = {**folds.training.model_dump(), "held_out_fraction": 0}
    assert none not in said(Study.model_validate({**folds.model_dump(), "training": stopping}))
    assert none in said(make_study(training={"held_out_fraction": 0}))


def test_both_languages_have_the_same_numbers(whole: Study):
    french = whole.model_copy(update={"report": whole.report.model_copy(update={"language": "fr"})})
    numbers = [
        sorted(re.findall(r"\d+", said(study, networks=NETWORKS).replace(study.fingerprint(), "").replace("95e", "95")))
        for study in (whole, french)
    ]
    assert numbers[0] == numbers[1]


def test_whose_annotations_are_missing_is_told_and_networks_learn_from_at_most_all():
    study = make_study()
    learned, scored = study.training_patients()[0], study.scored_patients()[0]
    gap = {"predictor": "", "metric": "", "organ": "", "reason": "missing"}
    ledger = pd.DataFrame(
        [
            {"patient": scored, "annotator": "anno2", **gap},
            {"patient": scored, "annotator": "anno3", **gap},
            {"patient": scored, "annotator": "anno1", **gap, "organ": "liver"},  # who drew, and no liver
        ]
    )
    text = said(study, exclusions=ledger)
    assert "patients who lack an annotation = 1 (missing: anno2 1, anno3 1)" in text
    assert "trained on 1 patient, once" in text
    text = said(study, exclusions=pd.concat([ledger, ledger[:1].assign(patient=learned)]))
    assert "patients who lack an annotation = 2 (missing: anno2 2, anno3 1)" in text
    assert "trained on up to 1 patient, once" in text
    assert "Not every patient" not in said(study, exclusions=ledger[2:])


def odd_study(language: str) -> Study:
    """Two MR channels, merged and ignored values, and some of the organs scored."""
    raw = make_study().model_dump(mode="json")
    del raw["image"]
    raw["organs"] = {"pancreas": 11, "kidney": [12, 13], "liver": 14}
    return Study.model_validate(
        raw
        | {
            "channels": [
                {"name": "T1", "file": "t1.nii.gz"},
                {"name": "PET", "file": "pet.nii.gz", "normalisation": "rescale_to_0_1"},
            ],
            "ignored_labels": [77, 255],
            "evaluation": {**raw["evaluation"], "region": "image", "organs": ["pancreas", "kidney"]},
            "report": {"language": language},
        }
    )


def test_channels_values_and_organs_that_are_scored_are_told():
    plain = said(make_study())
    assert "normalisation: CT (HU, clipped and scaled by" in plain
    for words in ("are of these alone", "taken for one organ", "background:", "All other values"):
        assert words not in plain
    odd = said(odd_study("en"))
    assert "T1 (mean and standard deviation of each scan brought to zero and one) and PET (each scan scaled" in odd
    assert "HU" not in odd
    assert "taken for one organ: kidney (12, 13)." in odd
    assert "read as background: 77 and 255." in odd
    assert "are of these alone: pancreas and kidney." in odd
    rest = Study.model_validate(odd_study("en").model_dump(mode="json") | {"ignored_labels": "rest"})
    assert "All other values of the label files were read as background." in said(rest)
    french = said(odd_study("fr"))
    assert "pour un seul organe : rein (12, 13)." in french.replace("\u00a0", " ").replace("\u202f", " ")
    assert "scanner" not in french
    numbers = [
        sorted(re.findall(r"\d+", said(odd_study(one)).replace(odd_study(one).fingerprint(), "").replace("95e", "95")))
        for one in ("en", "fr")
    ]
    assert numbers[0] == numbers[1]


def test_data_are_stated_as_the_study_file_says():
    study = make_study(report={"data_statement": "On request from the hospital.", "data_citation": "@misc{own,\n}"})
    assert "On request from the hospital." in said(study)
    assert bibtex(study, {}).startswith("@misc{own,\n}\n\n@article")
    assert "does not say where the data can be had" in said(make_study())
    assert "made up from a seed" in said(make_study(synthetic=True))
    assert study.fingerprint("report") != make_study().fingerprint("report")


def test_computing_is_the_cost_tables():
    cost = pd.DataFrame(
        {"stage": ["training", "inference", "total"], "hours": [70.25, 3.5, 80.0], "gb_stored": 12.5, "euros": 41.0}
    )
    text = said(make_study(), cost=cost)
    assert "All steps took 80.0 hours (trainings 70.2, predictions 3.50), 12.5 GB of storage and about 41.0 €" in text
    assert "No cost was recorded." in said(make_study(), cost=None)


@pytest.mark.parametrize("name", built_in_studies())
def test_bibtex_is_whole(name: str):
    study = load_study(name)
    text = bibtex(study, PACKAGES)
    keys = re.findall(r"^@\w+\{(\w+),$", text, re.MULTILINE)
    own = 1 if study.report.data_citation else 0
    assert keys[own:] == cited(study)
    assert len(set(keys)) == len(keys)
    entries = text.strip().split("\n\n")
    assert len(entries) == len(keys)
    for entry in entries:
        assert entry.count("{") == entry.count("}"), entry
        assert entry.endswith("}")
    for package, key in SOFTWARE.items():
        entry = next(one for one in entries if f"{{{key},\n" in one)
        assert ("Version" in entry) == (package in PACKAGES)


def test_what_was_not_used_is_not_cited():
    assert "warfield2004staple" not in cited(make_study())
    assert "warfield2004staple" in cited(make_study(evaluation={"reference": "staple"}))
    assert "isensee2024revisited" in cited(load_study("curvas-medig"))
    assert "isensee2024revisited" not in cited(load_study("curvas"))


def test_bibtex_stands_on_the_page_to_be_copied():
    blocks = methods.write(gather(inputs_of(make_study())))
    sources = [block for block in blocks if isinstance(block, Source)]
    assert [one.text for one in sources] == [bibtex(make_study(), PACKAGES)]
