"""Claims proved here, on phantoms of which one patient was annotated by two of three annotators.

- Datasets of `random` and `soft` are equal, and hold for each annotator what that annotator's own dataset holds, to the bit:
  labels and sampled voxels of organs. `majority` and `staple` hold what a file with the fused map would.
- All fused datasets have the intensity statistics and images of annotators who share theirs; folds are the study's.
- `dataset.json` says how labels were fused, and of whom; a changed annotation changes it.
- A patch of `random` has the labels, and the sampled voxels, of one annotator; each is drawn about equally often.
- A target of `soft` is the mean of the annotators' maps at every scale, each of which nnU-Net augmented as if it were alone.
- The soft loss is that of a reference in NumPy, at labels nnU-Net's own; its cross-entropy is best at the mean, its Dice at a
  hard map. The pseudo-Dice compares with the mean's arg max.
- Where all annotators agree, each dataset has their labels, `majority` and `staple` train on one annotator's batches, and the
  targets of `soft` are zeros and ones.
- Each of the four trains with nnU-Net's trainer, and predicts in a stock nnU-Net; batches and weights are equal to the bit by
  any number of loader processes, and after a resume, of `soft` also of a training that was killed.
- A dataset or model of another training label is refused, in training and when it is taken in from elsewhere; those of this
  platform are taken in.
"""

import hashlib
import json
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import blosc2
import nibabel as nib
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from curvas_assets.errors import SegmentationError
from curvas_assets.fusing import fuse
from curvas_assets.segmentation import adopt_dataset, adopt_model, prepare_dataset, train_model
from curvas_assets.segmentation.label_channels import MeanOfAnnotators, OneAnnotator
from curvas_assets.segmentation.loading import Step, drawing
from curvas_assets.segmentation.runtime import dataset_name, nnunet_folders, quiet
from curvas_assets.segmentation.several_annotators import SoftLabelTrainer, SoftTargetLoss, trainer_of
from curvas_assets.segmentation.trainer import SETTINGS, StudyTrainer
from curvas_assets.study import ModelId, Study
from curvas_assets_tests.segmentation import killed_training
from curvas_assets_tests.segmentation.conftest import tiny_study
from curvas_assets_tests.segmentation.test_loading import _equal

ROOT = Path(__file__).resolve().parents[2]
FUSED = ("majority", "staple", "random", "soft")
ANNOTATORS = ("anno1", "anno2", "anno3")
LEFT_OUT = {"PHANTOM002": "anno2"}
CASES = "nnUNetPlans_3d_fullres"


def study_of(*labels: str, shared: bool = False, **training) -> Study:
    raw = tiny_study(**training).model_dump(mode="json")
    raw["plans"]["shared_intensity_statistics"] = shared
    return Study.model_validate(raw | {"training_labels": labels or [*ANNOTATORS, *FUSED]})


def drawn_by(label: str) -> dict[str, list[str]]:
    asked = ANNOTATORS if label in FUSED else (label,)
    drawn = {p: [a for a in asked if LEFT_OUT.get(p) != a] for p in study_of().training_patients()}
    return {patient: annotators for patient, annotators in drawn.items() if annotators}


def file_of(scans: Path, patient: str, annotator: str) -> Path:
    return scans / patient / f"annotation_{annotator[-1]}.nii.gz"


def prepared(scans: Path, label: str, folder: Path, study: Study | None = None, **options) -> Path:
    names = drawn_by(label)
    files = {p: (scans / p / "image.nii.gz", *(file_of(scans, p, a) for a in by)) for p, by in names.items()}
    prepare_dataset(study or study_of(), label, files, folder, drawn_by=names, **options)
    return folder


@pytest.fixture(scope="module")
def datasets(scans, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("datasets")
    return {label: prepared(scans, label, folder / label) for label in (*ANNOTATORS, *FUSED)}


def case(folder: Path, patient: str, end: str = "") -> np.ndarray:
    return blosc2.open(str(folder / CASES / f"{patient}{end}.b2nd"), mode="r")[:]


def located(folder: Path, patient: str) -> dict[int, np.ndarray]:
    return np.load(folder / CASES / f"{patient}.pkl", allow_pickle=True)["class_locations"]


def record(folder: Path, name: str = "dataset.json") -> dict[str, Any]:
    return json.loads((folder / name).read_text())


# Datasets -------------------------------------------------------------------------------------------------------------


def test_channels_are_what_each_annotators_own_dataset_holds(datasets):
    for patient, names in drawn_by("soft").items():
        whole = case(datasets["soft"], patient, "_seg")
        assert whole.shape[0] == len(names) == (2 if patient in LEFT_OUT else 3)
        np.testing.assert_array_equal(case(datasets["random"], patient, "_seg"), whole)
        sampled, again = located(datasets["soft"], patient), located(datasets["random"], patient)
        for channel, annotator in enumerate(names):
            np.testing.assert_array_equal(whole[channel : channel + 1], case(datasets[annotator], patient, "_seg"))
            for organ, own in located(datasets[annotator], patient).items():
                at = sampled[organ]
                np.testing.assert_array_equal(again[organ], at)
                np.testing.assert_array_equal(at[at[:, 0] == channel][:, 1:], own[:, 1:])


@pytest.mark.parametrize("rule", ["majority", "staple"])
def test_fused_labels_are_those_of_a_file_with_the_fused_map(datasets, scans, tmp_path, rule):
    names = drawn_by(rule)
    files = {}
    for patient, by in names.items():
        read = [nib.load(file_of(scans, patient, annotator)) for annotator in by]
        maps = np.stack([np.asarray(one.dataobj) for one in read]).astype(np.uint8)
        fused = scipy.stats.mode(maps, axis=0).mode if rule == "majority" else fuse(maps, "staple", 3)
        written = tmp_path / f"{patient}.nii.gz"
        nib.save(nib.Nifti1Image(fused.astype(np.uint8), read[0].affine), written)
        files[patient] = (scans / patient / "image.nii.gz", written)
    prepare_dataset(study_of(), "anno1", files, tmp_path / "of files")
    for patient in names:
        expected = case(tmp_path / "of files", patient, "_seg")
        found = case(datasets[rule], patient, "_seg")
        np.testing.assert_array_equal(found, expected)
        assert found.shape[0] == 1
        assert (found != case(datasets["anno1"], patient, "_seg")).any()
        for organ, at in located(tmp_path / "of files", patient).items():
            np.testing.assert_array_equal(located(datasets[rule], patient)[organ], at)


def test_fused_datasets_have_the_intensities_and_images_of_annotators_who_share_them(datasets, scans, tmp_path):
    everybody = {p: [file_of(scans, p, a) for a in by] for p, by in drawn_by("soft").items()}
    study = study_of(shared=True)
    shared = prepared(scans, "anno1", tmp_path / "shared", study, all_annotations=everybody)
    own = record(datasets["anno1"], "dataset_fingerprint.json")["foreground_intensity_properties_per_channel"]
    expected = record(shared, "dataset_fingerprint.json")
    assert expected["foreground_intensity_properties_per_channel"] != own
    for rule in FUSED:
        assert record(datasets[rule], "dataset_fingerprint.json") == expected
        assert record(datasets[rule], "splits_final.json") == record(datasets["anno1"], "splits_final.json")
        for patient in everybody:
            np.testing.assert_array_equal(case(datasets[rule], patient), case(shared, patient))
    prepared(scans, "soft", tmp_path / "soft", study, all_annotations=everybody)
    assert record(tmp_path / "soft", "dataset_fingerprint.json") == expected


def test_a_dataset_says_how_it_was_fused_and_notices_a_changed_annotation(datasets, scans, tmp_path):
    for rule in FUSED:
        said = record(datasets[rule])["fused_labels"]
        assert said["rule"] == rule
        assert {p: of["annotators"] for p, of in said["patients"].items()} == drawn_by(rule)
        assert str(scans) not in (datasets[rule] / "dataset.json").read_text()
    assert "fused_labels" not in record(datasets["anno1"])
    shutil.copytree(scans, tmp_path / "scans")
    changed = file_of(tmp_path / "scans", "PHANTOM001", "anno3")
    read = nib.load(changed)
    labels = np.asarray(read.dataobj).copy()
    labels[labels == 1] = 2  # the foreground, and so the intensities, stay
    nib.save(nib.Nifti1Image(labels, read.affine), changed)
    after = prepared(tmp_path / "scans", "soft", tmp_path / "soft")
    before, now = (record(one)["fused_labels"]["patients"] for one in (datasets["soft"], after))
    assert {p for p in before if before[p] != now[p]} == {"PHANTOM001"}
    assert record(after, "dataset_fingerprint.json") == record(datasets["soft"], "dataset_fingerprint.json")


def test_names_and_memory_that_do_not_suffice_are_refused(scans, tmp_path, monkeypatch):
    files = {"PHANTOM001": (scans / "PHANTOM001/image.nii.gz", *(file_of(scans, "PHANTOM001", a) for a in ANNOTATORS))}
    with pytest.raises(SegmentationError, match=r"3 annotations of PHANTOM001, by \['anno1'\].*in drawn_by"):
        prepare_dataset(study_of(), "soft", files, tmp_path / "a", drawn_by={"PHANTOM001": ["anno1"]})
    with pytest.raises(SegmentationError, match=r"3 annotations of PHANTOM001, by nobody"):
        prepare_dataset(study_of(), "majority", files, tmp_path / "b")
    with pytest.raises(SegmentationError, match="Give the image's and the annotation's path"):
        prepare_dataset(study_of(), "anno1", files, tmp_path / "c")
    needed = []
    for number, label in enumerate(("majority", "soft")):
        monkeypatch.setattr("curvas_assets.segmentation.dataset.available_memory", lambda: 0)
        with pytest.raises(SegmentationError, match="GiB of memory are needed"):
            prepare_dataset(study_of(), label, files, tmp_path / f"d{number}", drawn_by={"PHANTOM001": ANNOTATORS})
        monkeypatch.setattr(
            "curvas_assets.segmentation.dataset._require_memory", lambda *given: needed.append(given[-1])
        )
        prepare_dataset(study_of(), label, files, tmp_path / f"e{number}", drawn_by={"PHANTOM001": ANNOTATORS})
        monkeypatch.undo()
    voxels = int(np.prod(case(tmp_path / "e1", "PHANTOM001").shape))
    assert needed[1] - needed[0] >= 3 * 2 * voxels - 200_000


# Batches --------------------------------------------------------------------------------------------------------------


def test_each_annotator_is_drawn_about_equally_and_gives_labels_and_places_of_patches(datasets):
    cases = OneAnnotator(str(datasets["random"] / CASES))
    drawn: Counter[int] = Counter()
    with drawing(5, Step(0, "train", 0)):
        for _ in range(600):
            _, labels, _, properties = cases.load_case("PHANTOM001")
            drawn[labels.channel] += 1
            places = properties["class_locations"]
            assert all((at[:, 0] == labels.channel).all() for at in places.values() if len(at))
    assert sum(drawn.values()) == 600
    assert scipy.stats.chisquare([drawn[r] for r in range(3)]).pvalue > 1e-4
    whole = case(datasets["random"], "PHANTOM001", "_seg")
    part = (slice(None), slice(2, 9), slice(1, 4), slice(0, 50))
    np.testing.assert_array_equal(labels[part], whole[labels.channel : labels.channel + 1][part])
    for organ, at in places.items():
        assert len(at)
        assert (whole[tuple(at.T)] == organ).all()
    _, labels, _, _ = OneAnnotator(str(datasets["majority"] / CASES)).load_case("PHANTOM001")
    assert labels.shape == whole[:1].shape


@given(st.integers(0, 2**32 - 1), st.booleans())
def test_a_soft_target_is_the_mean_at_every_scale_of_maps_that_nnunet_augments(seed, in_slices):
    scales = [[1, 1, 1], [0.5, 0.5, 0.5], [0.5, 0.25, 0.25]]
    rng = np.random.default_rng(seed)
    labels = torch.from_numpy(rng.integers(-1, 4, (3, 12, 18, 18)).astype(np.int16))
    image = torch.from_numpy(rng.normal(size=(1, 12, 18, 18)).astype(np.float32))
    transforms = StudyTrainer.get_training_transforms((8, 12, 12), (-0.5, 0.5), scales, (0, 1, 2), in_slices)

    def augmented(maps: torch.Tensor, *also: Any) -> dict[str, Any]:
        with drawing(seed % 1000, Step(0, "train", 0)):
            made = transforms(image=image.clone(), segmentation=maps.clone())
            for one in also:
                made = one(**made)
            return made

    together, soft = augmented(labels), augmented(labels, MeanOfAnnotators(4))
    assert torch.equal(soft["image"], together["image"])
    each = [augmented(labels[r : r + 1]) for r in range(3)]
    for number, target in enumerate(soft["segmentation"]):
        maps = np.stack([one["segmentation"][number][0].numpy() for one in each])
        np.testing.assert_array_equal(together["segmentation"][number].numpy(), maps)
        mean = np.stack([(maps == label).mean(axis=0) for label in range(4)])
        assert target.dtype == torch.float32
        np.testing.assert_allclose(target.numpy(), mean, atol=1e-7)
        np.testing.assert_allclose(target.sum(0).numpy(), 1, atol=1e-6)
        reversed_order = MeanOfAnnotators(4)(segmentation=torch.from_numpy(maps[::-1].copy()))["segmentation"]
        assert torch.equal(reversed_order, target)


def dice_and_entropy(logits: np.ndarray, target: np.ndarray, batch_dice: bool) -> float:
    """nnU-Net's loss by its definition: soft Dice of the organs, and cross-entropy, in float64."""
    probability = scipy.special.softmax(logits.astype(np.float64), axis=1)
    axes = (0, 2, 3, 4) if batch_dice else (2, 3, 4)
    organs, wanted = probability[:, 1:], target[:, 1:]
    overlap, sizes = (organs * wanted).sum(axes), organs.sum(axes) + wanted.sum(axes)
    dice = (2 * overlap + 1e-5) / np.maximum(sizes + 1e-5, 1e-8)
    entropy = -(target * scipy.special.log_softmax(logits.astype(np.float64), axis=1)).sum(1).mean()
    return float(entropy - dice.mean())


@pytest.fixture(scope="module")
def trainers(datasets, tmp_path_factory):
    """Trainers of `soft`, of `random` and of one annotator, with the same weights."""
    root = tmp_path_factory.mktemp("trainers")
    (root / "preprocessed").mkdir()
    made = {}
    with nnunet_folders(preprocessed=root / "preprocessed", results=root / "results"), quiet():
        for label in ("soft", "random", "anno1"):
            study = study_of()
            (root / "preprocessed" / dataset_name(label)).symlink_to(datasets[label])
            settings = {**study.training.model_dump(mode="json"), "seed": 3, "cross_validated": False, "identity": ""}
            plans = {**record(datasets[label], "nnUNetPlans.json"), SETTINGS: settings, "continue_training": False}
            trainer = trainer_of(study.fusion(label))(plans, "3d_fullres", "all", record(datasets[label]))
            trainer.initialize()
            made[label] = trainer
        yield made


def test_all_trainers_are_nnunets(trainers):
    assert all(isinstance(trainer, nnUNetTrainer) for trainer in trainers.values())
    assert {label: type(trainer).__name__ for label, trainer in trainers.items()} == {
        "soft": "SoftLabelTrainer", "random": "RandomAnnotatorTrainer", "anno1": "StudyTrainer"}  # fmt: skip
    assert trainer_of("majority") is trainer_of("staple") is trainer_of(None) is StudyTrainer
    stock = nnUNetTrainer._build_loss(trainers["soft"])
    soft = trainers["soft"].loss
    assert type(soft) is type(stock)
    assert type(soft.loss.stock) is type(stock.loss)
    assert soft.weight_factors == stock.weight_factors


@pytest.mark.parametrize("batch_dice", [True, False])
@given(st.integers(0, 2**32 - 1), st.sampled_from([0.5, 5.0, 40.0]))
def test_the_soft_loss_is_its_definition_and_at_labels_nnunets_own(batch_dice, seed, sharpness):
    from nnunetv2.training.loss.compound_losses import DC_and_CE_loss
    from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss

    options = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": False, "ddp": False}
    stock = DC_and_CE_loss(options, {}, dice_class=MemoryEfficientSoftDiceLoss)
    soft, rng = SoftTargetLoss(stock), np.random.default_rng(seed)
    logits = (rng.normal(size=(2, 4, 3, 4, 5)) * sharpness).astype(np.float32)
    maps = torch.from_numpy(rng.integers(0, rng.integers(1, 5), (2, 3, 3, 4, 5)))
    target = torch.stack([MeanOfAnnotators(4)(segmentation=one)["segmentation"] for one in maps])
    found = soft(torch.from_numpy(logits), target)
    np.testing.assert_allclose(float(found), dice_and_entropy(logits, target.numpy(), batch_dice), rtol=2e-5, atol=1e-5)
    one = maps[:, :1]
    hard = torch.stack([MeanOfAnnotators(4)(segmentation=labels)["segmentation"] for labels in one])
    expected = stock(torch.from_numpy(logits), one)
    np.testing.assert_allclose(float(soft(torch.from_numpy(logits), hard)), float(expected), rtol=2e-6, atol=1e-6)


def test_entropy_is_best_at_the_mean_and_nnunets_dice_at_a_hard_map(trainers):
    """Of one organ that two of five annotators drew: the Dice is best if all of it is segmented, the cross-entropy at 0.4."""
    stock = trainers["soft"].loss.loss.stock
    target = torch.tensor([0.6, 0.4]).reshape(1, 2, 1, 1, 1).expand(1, 2, 4, 4, 4)
    at_mean, at_label = target.log(), torch.tensor([0.0, 50.0]).reshape(1, 2, 1, 1, 1).expand(target.shape)
    np.testing.assert_allclose(float(stock.dc(at_label, target)), -2 * 0.4 / 1.4, rtol=1e-5)
    np.testing.assert_allclose(float(stock.dc(at_mean, target)), -2 * 0.16 / 0.8, rtol=1e-5)
    entropies = [torch.nn.CrossEntropyLoss.forward(stock.ce, logits, target) for logits in (at_mean, at_label)]
    assert float(entropies[0]) < float(entropies[1])
    logits = at_mean.clone().requires_grad_()
    torch.nn.CrossEntropyLoss.forward(stock.ce, logits, target).backward()
    assert float(logits.grad.abs().max()) < 1e-7


def test_the_pseudo_dice_of_soft_labels_is_that_of_the_means_arg_max(trainers):
    rng = np.random.default_rng(1)
    soft, hard = trainers["soft"], trainers["anno1"]
    hard.network.load_state_dict(soft.network.state_dict())
    data = torch.from_numpy(rng.normal(size=(2, 1, 16, 24, 24)).astype(np.float32))
    maps = [torch.from_numpy(rng.integers(0, 4, (2, 3, *shape))) for shape in ((16, 24, 24), (8, 12, 12), (4, 6, 6))]
    means = [torch.stack([MeanOfAnnotators(4)(segmentation=one)["segmentation"] for one in scale]) for scale in maps]
    with torch.no_grad():
        for trainer in (soft, hard):
            trainer.on_validation_epoch_start()
        outputs = soft.network(data)
        means = [mean[:, :, : o.shape[2], : o.shape[3], : o.shape[4]] for mean, o in zip(means, outputs, strict=False)]
        found = soft.validation_step({"data": data, "target": list(means)})
        expected = hard.validation_step({"data": data, "target": [mean.argmax(1, keepdim=True) for mean in means]})
    for name in ("tp_hard", "fp_hard", "fn_hard"):
        np.testing.assert_array_equal(found[name], expected[name])
    weights = [w for w in soft.loss.weight_factors if w]
    wanted = sum(
        w * dice_and_entropy(o.numpy(), t.numpy(), soft.configuration_manager.batch_dice)
        for w, o, t in zip(weights, outputs, means, strict=False)
    )
    np.testing.assert_allclose(float(found["loss"]), wanted, rtol=1e-4)


def test_annotators_who_agree_teach_what_one_of_them_does(scans, tmp_path, monkeypatch):
    """All files are the same annotator's."""
    batches: dict[str, list[dict[str, Any]]] = {}
    losses: dict[str, list[float]] = {}
    step = StudyTrainer.train_step

    def remembered(self, batch):
        label = str(self.settings.get("fused_labels", "anno1"))
        batches.setdefault(label, []).append(batch)
        done = step(self, batch)
        losses.setdefault(label, []).append(float(done["loss"]))
        return done

    monkeypatch.setattr(StudyTrainer, "train_step", remembered)
    patient = "PHANTOM001"
    for label in ("anno1", *FUSED):
        names = ["anno1"] * (3 if label in FUSED else 1)
        files = {patient: (scans / patient / "image.nii.gz", *(file_of(scans, patient, a) for a in names))}
        by = {patient: list(ANNOTATORS[: len(names)])}
        prepare_dataset(study_of(), label, files, tmp_path / label, drawn_by=by)
        labels = case(tmp_path / label, patient, "_seg")
        assert (labels == case(tmp_path / "anno1", patient, "_seg")).all()
        settings = {"epochs": 1, "iterations_per_epoch": 1, "validation_iterations_per_epoch": 1}
        train_model(study_of(**settings), ModelId(label, 7, "all"), tmp_path / label, tmp_path / "models" / label)
    (first,) = batches["anno1"]
    for rule in ("majority", "staple"):
        (batch,) = batches[rule]
        assert torch.equal(batch["data"], first["data"])
        assert all(map(torch.equal, batch["target"], first["target"]))
        assert losses[rule] == losses["anno1"]
    (batch,) = batches["soft"]
    assert all(set(target.unique().tolist()) <= {0.0, 1.0} for target in batch["target"])
    assert [tuple(t.shape[1:2]) for t in batch["target"]] == [(4,)] * len(first["target"])
    (batch,) = batches["random"]
    assert [t.shape for t in batch["target"]] == [t.shape for t in first["target"]]


# Trainings ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def seen(monkeypatch) -> list[str]:
    """Digests of the batches that trainings take while a test runs."""
    digests: list[str] = []

    def remembering(step):
        def taken(self, batch: dict[str, Any]) -> Any:
            digest = hashlib.sha256(repr(batch["keys"]).encode())
            for tensor in [batch["data"], *batch["target"]]:
                digest.update(str(tensor.dtype).encode() + tensor.numpy().tobytes())
            digests.append(digest.hexdigest())
            return step(self, batch)

        return taken

    steps = ((StudyTrainer, "train_step"), (StudyTrainer, "validation_step"), (SoftLabelTrainer, "validation_step"))
    for trainer, name in steps:
        monkeypatch.setattr(trainer, name, remembering(getattr(trainer, name)))
    return digests


def test_batches_and_weights_do_not_depend_on_who_loads_nor_on_a_resume(datasets, tmp_path, seen):
    def study(workers: int) -> Study:
        return study_of(loader_workers=workers, epochs=2, validation_iterations_per_epoch=1)

    def trained(rule: str, name: str, workers: int = 0, **options: Any):
        seen.clear()
        folder = tmp_path / f"{rule} {name}"
        outcome = train_model(study(workers), ModelId(rule, 7, "all"), datasets[rule], folder, **options)
        return outcome, folder, list(seen)

    def keeping(rule: str):
        def keep(path: Path, epoch: int) -> None:
            (tmp_path / f"{rule}{epoch}.pth").write_bytes(path.read_bytes())

        return keep

    others = "the checkpoint is of another model, dataset or setting"
    _, random, batches_of_random = trained("random", "alone", on_checkpoint=keeping("random"))
    first = {rule: tmp_path / f"{rule}0.pth" for rule in ("random", "soft")}
    outcome, soft, batches_of_soft = trained(
        "soft", "alone", on_checkpoint=keeping("soft"), resume_from=first["random"]
    )
    assert outcome.refused_checkpoint == others
    refusing = {"random": first["soft"], "soft": None}  # as that of random was refused above
    for rule, unbroken, alone in (("random", random, batches_of_random), ("soft", soft, batches_of_soft)):
        assert len(alone) == len(set(alone)) == 2 * (3 + 1)
        outcome, helped, batches = trained(rule, "helped", 2, resume_from=refusing[rule])
        assert outcome.refused_checkpoint == (others if refusing[rule] else "")
        assert batches == alone
        assert _equal(unbroken, helped)
        outcome, resumed, batches = trained(rule, "resumed", resume_from=first[rule])
        assert outcome.resumed_at_epoch == 1
        assert batches == alone[4:]
        assert _equal(unbroken, resumed)


def test_a_killed_training_ends_like_an_unbroken_one(datasets, tmp_path):
    """Of `soft`, whose trainer differs most; `test_training` kills one of one annotator."""
    model, kept = ModelId("soft", 7, "all"), tmp_path / "kept.pth"
    (tmp_path / "study.json").write_text(study_of().model_dump_json())
    (tmp_path / "here").mkdir()
    command = [sys.executable, "-m", killed_training.__name__, str(tmp_path / "study.json"), str(datasets["soft"])]
    with subprocess.Popen(
        [*command, str(tmp_path / "here" / "model"), str(kept), str(model)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as first:
        assert first.stdout.readline().strip() == "0"
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    resumed = train_model(study_of(), model, datasets["soft"], tmp_path / "resumed", resume_from=kept)
    assert resumed.resumed_at_epoch in (1, 2)
    train_model(study_of(), model, datasets["soft"], tmp_path / "unbroken")
    assert _equal(tmp_path / "resumed", tmp_path / "unbroken")


@pytest.fixture(scope="module")
def models(datasets, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("models")
    for label in ("anno1", *FUSED):
        train_model(study_of(epochs=1), ModelId(label, 7, "all"), datasets[label], folder / label)
    return {label: folder / label for label in ("anno1", *FUSED)}


@pytest.mark.parametrize("rule", FUSED)
def test_each_model_says_what_it_learned_and_predicts_in_a_stock_nnunet(models, datasets, rule):
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    said = record(models[rule], "training.json")
    assert said["settings"]["fused_labels"] == rule
    assert record(models[rule])["fused_labels"] == record(datasets[rule])["fused_labels"]
    own = record(models["anno1"], "training.json")
    assert "fused_labels" not in own["settings"]
    assert len(said["not_as_stock"]) == len(own["not_as_stock"]) + (rule in ("random", "soft"))
    predictor = nnUNetPredictor(device=torch.device("cpu"), perform_everything_on_device=False, allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(
        str(models[rule]), use_folds=("all",), checkpoint_name="checkpoint_best.pth"
    )
    logits = predictor.predict_logits_from_preprocessed_data(torch.zeros((1, 16, 24, 24)))
    assert logits.shape[0] == 4
    assert torch.isfinite(logits).all()


def test_datasets_of_another_training_label_are_refused(datasets, tmp_path):
    refusals = {
        ("soft", "random"): "fuses annotators by 'random', and soft is the fusion soft",
        ("random", "majority"): "fuses annotators by 'majority'",
        ("anno1", "staple"): "fuses annotators by 'staple', and anno1 is the annotator anno1",
        ("soft", "anno1"): "is of one annotator's labels, and soft is the fusion soft",
    }
    for (label, dataset), says in refusals.items():
        with pytest.raises(SegmentationError, match=says):
            train_model(study_of(), ModelId(label, 7, "all"), datasets[dataset], tmp_path / "model")
        with pytest.raises(SegmentationError, match=says):
            adopt_dataset(study_of(), label, datasets[dataset], tmp_path / "dataset")


def test_datasets_and_models_of_this_platform_are_taken_in_and_train(datasets, models, tmp_path):
    for rule in FUSED:
        facts = adopt_dataset(study_of(), rule, datasets[rule], tmp_path / rule)
        assert facts.cases == 3
        assert record(tmp_path / rule)["fused_labels"] == record(datasets[rule])["fused_labels"]
        adopted = adopt_model(study_of(), ModelId(rule, 7, "all"), models[rule], tmp_path / f"model of {rule}")
        assert adopted.trainer == "nnUNetTrainer"
        assert record(tmp_path / f"model of {rule}")["fused_labels"]["rule"] == rule
        with pytest.raises(SegmentationError, match=f"fuses annotators by '{rule}', and anno1 is the annotator"):
            adopt_model(study_of(), ModelId("anno1", 7, "all"), models[rule], tmp_path / "refused")
    outcome = train_model(study_of(epochs=1), ModelId("soft", 7, "all"), tmp_path / "soft", tmp_path / "trained")
    assert outcome.epochs == 1
    assert _equal(tmp_path / "trained", models["soft"])


def test_a_stock_dataset_is_taken_for_fused_labels_of_one_channel_alone(datasets, tmp_path):
    adopt_dataset(study_of(), "majority", datasets["anno1"], tmp_path / "majority")
    train_model(study_of(epochs=1), ModelId("majority", 7, "all"), tmp_path / "majority", tmp_path / "model")
    damaged = shutil.copytree(datasets["soft"], tmp_path / "damaged")
    description = record(damaged)
    del description["fused_labels"]
    (damaged / "dataset.json").write_text(json.dumps(description))
    with pytest.raises(SegmentationError, match="is of one annotator's labels, and soft is"):
        adopt_dataset(study_of(), "soft", damaged, tmp_path / "a")
    with pytest.raises(SegmentationError, match=r"labels of \(3, "):
        adopt_dataset(study_of(), "majority", damaged, tmp_path / "b")
