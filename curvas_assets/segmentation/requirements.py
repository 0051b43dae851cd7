"""What a model or a dataset must be for this platform to train it, predict with it and store its softmax.

Checked when one is taken in and again when it is loaded, so that a prediction never fails at its end because of it.
Only plans and `dataset.json` are checked here; weights and arrays are checked where they are read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from curvas_assets.errors import SegmentationError
from curvas_assets.predictors import KEPT_APART
from curvas_assets.study import Channel, Normalisation, Study
from curvas_assets.voxel_order import READERS, RECORD, is_order

FUSED = "fused_labels"
"""In `dataset.json` of a dataset of several annotators, and of models trained on it: the rule, and of each patient who
annotated and a digest of the preprocessed labels."""
SKIMAGE, TORCH = "resample_data_or_seg_to_shape", "resample_torch_fornnunet"
"""nnU-Net's two ways to resample probabilities that `prediction` reproduces slab by slab: both linear."""

SCHEMES: dict[Normalisation, str] = {
    "ct": "CT",
    "zscore": "zscore",
    "rescale_to_0_1": "rescale_to_0_1",
    "none": "noNorm",
}
"""Normalisation of a channel → the name by which nnU-Net's planner knows it."""


@dataclass(frozen=True)
class Told:
    """For whom something is checked, as errors name it."""

    attempted: str
    subject: str

    def refused(self, found: str, remedy: str) -> SegmentationError:
        """The error that names for whom it was checked, for the caller to raise."""
        return SegmentationError(self.attempted, self.subject, found, remedy)


def require_classes(study: Study, dataset: Mapping[str, Any], told: Told) -> None:
    """`dataset.json` has the study's classes with the study's values, and the study's channels in their order.

    Raises:
        SegmentationError: it has other classes, regions or an ignore label; it is nnU-Net 1's; it has other channels.
    """
    labels = dataset.get("labels")
    wanted = {name: value for value, name in enumerate(study.class_names)}
    theirs = f"its classes are {labels!r:.300}, the study's {wanted}"
    if not isinstance(labels, Mapping) or not labels:
        raise told.refused(
            f"its dataset.json names no classes ({labels!r:.80})", "Give nnU-Net's folder with its dataset.json."
        )
    if all(str(name).isdigit() for name in labels) and all(isinstance(value, str) for value in labels.values()):
        raise told.refused(
            f"{theirs}: value → name, the form of nnU-Net 1", "Train with nnU-Net 2, whose form is name → value."
        )
    if any(isinstance(value, list | tuple) for value in labels.values()):
        raise told.refused(
            f"{theirs}: regions, whose probabilities overlap and do not sum to 1",
            "Train on labels, one whole number for each organ.",
        )
    if "ignore" in labels and "ignore" not in wanted:
        raise told.refused(f"{theirs}: with an ignore label", "Train without an ignore label, on whole annotations.")
    if not all(isinstance(value, int) and not isinstance(value, bool) for value in labels.values()):
        raise told.refused(f"{theirs}: not whole numbers", "Give each class one whole number.")
    if dict(labels) != wanted:
        raise told.refused(theirs, "Give what was trained for the study's organs, with their names and values.")
    _require_channels(study, dataset, told)


def channel_names(study: Study) -> dict[str, str]:
    """`channel_names` of `dataset.json`: of each channel its own name, if nnU-Net's planner finds its normalisation by that name, else
    the normalisation's.

    nnU-Net knows nothing else of a normalisation than the name of the channel; a name that it does not know means z-score.
    """
    known = {name.casefold() for name in SCHEMES.values()} | {"rgb_to_0_1"}

    def named(channel: Channel) -> str:
        wanted, given = SCHEMES[channel.normalisation], channel.name.casefold()
        finds = given == wanted.casefold() or (channel.normalisation == "zscore" and given not in known)
        return channel.name if finds else wanted

    return {str(number): named(channel) for number, channel in enumerate(study.images)}


def _require_channels(study: Study, dataset: Mapping[str, Any], told: Told) -> None:
    """As many channels as the study has, and of several the same in the same order, as far as names tell."""
    channels, wanted = dataset.get("channel_names", dataset.get("modality")), [one.name for one in study.images]
    one = "a patient here has one image" if len(wanted) == 1 else f"a patient here has {', '.join(wanted)}"
    if not isinstance(channels, Mapping) or len(channels) != len(wanted):
        remedy = (
            "Give what was trained on the CT alone."
            if study.image
            else "Give what was trained on these, in this order."
        )
        raise told.refused(f"its channels are {channels!r:.200}, and {one}", remedy)
    if len(wanted) == 1:
        return
    theirs, ours = [channels.get(str(number)) for number in range(len(wanted))], channel_names(study).values()
    if strange := [
        f"{their!r} in place of {name}"
        for their, name, written in zip(theirs, wanted, ours, strict=True)
        if str(their).casefold() not in (name.casefold(), written.casefold())
    ]:
        raise told.refused(
            f"its channels are {channels!r:.200}, and {one}: {', '.join(strange)}",
            "Give what was trained on these channels in this order; if they only have other names, give both the same, in "
            "dataset.json or in channels of the study file.",
        )


def require_plans(plans: Mapping[str, Any], name: str, told: Told, *, channels: int = 1) -> Any:
    """nnU-Net's configuration of that name in these plans, everything in it known.

    Args:
        plans: of a `plans.json`.
        name: of the configuration.
        told: for whom.
        channels: that a patient has.

    Raises:
        SegmentationError: there is no such configuration, it needs another stage, or one of its parts (reader, axes,
            resampling, normalisation, preprocessor, labels) is missing or unknown here.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    configurations = plans.get("configurations")
    if not isinstance(configurations, Mapping) or name not in configurations:
        held = ", ".join(configurations) if isinstance(configurations, Mapping) else "no configuration"
        raise told.refused(f"its plans have {held}, not {name}", f"Plan {name}, or change plans.configuration.")
    try:
        configuration = PlansManager(dict(plans)).get_configuration(name)
        parts = configuration.configuration
        spacing, patch = [list(map(float, parts[key])) for key in ("spacing", "patch_size")]
        schemes = list(parts["normalization_schemes"])
        resampling = {
            what: (parts[f"resampling_fn_{what}"], dict(parts[f"resampling_fn_{what}_kwargs"]))
            for what in ("data", "seg", "probabilities")
        }
        preprocessor = parts["preprocessor_name"]
        masked = list(parts["use_mask_for_norm"])
        statistics = plans.get("foreground_intensity_properties_per_channel") or plans.get(
            "foreground_intensity_properties_by_modality"
        )
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, RecursionError) as error:
        raise told.refused(
            f"its plans are not whole: {name} lacks or garbles {' '.join(str(error).split())[:200]}",
            "Give the plans.json that nnU-Net 2 wrote.",
        ) from error
    if configuration.previous_stage_name is not None:
        raise told.refused(
            f"{name} is the second stage of a cascade, after {configuration.previous_stage_name}",
            "Train 3d_fullres, 3d_lowres or 2d, which need no other prediction.",
        )
    dimensions = 2 if name == "2d" else 3
    if len(spacing) != dimensions or len(patch) != dimensions or min(spacing) <= 0:
        raise told.refused(f"its spacing is {spacing}, its patch {patch}", f"Plan {name} with {dimensions} axes.")
    _require_frame(plans, told)
    _require_known_classes(plans, preprocessor, schemes, told)
    _require_intensities(schemes, masked, statistics, channels, told)
    for what, (function, _) in resampling.items():
        _require_known("resampling function", function, "preprocessing/resampling", told, what)
    require_linear(*resampling["probabilities"], told)
    return configuration


def _require_frame(plans: Mapping[str, Any], told: Told) -> None:
    """The axes of the network's array: reader and transposition."""
    reader = plans.get("image_reader_writer")
    if reader not in READERS:
        raise told.refused(
            f"its plans read images by {reader!r:.80}, and CTs are read here by {', '.join(READERS)}",
            "Plan and train with NIfTI files and one of these readers.",
        )
    forward, backward = plans.get("transpose_forward"), plans.get("transpose_backward")
    if (
        not isinstance(forward, list)
        or sorted(forward) != [0, 1, 2]
        or not isinstance(backward, list)
        or [forward[axis] for axis in backward] != [0, 1, 2]
    ):
        raise told.refused(
            f"its plans transpose axes by {forward!r:.40} and back by {backward!r:.40}",
            "Give the plans.json that nnU-Net wrote.",
        )


def _require_known_classes(plans: Mapping[str, Any], preprocessor: Any, schemes: list[Any], told: Told) -> None:
    from nnunetv2.preprocessing.preprocessors.default_preprocessor import DefaultPreprocessor
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    for scheme in schemes:
        _require_known("normalisation", scheme, "preprocessing/normalization", told)
    found = _require_known("preprocessor", preprocessor, "preprocessing", told)
    if not isinstance(found, type) or not issubclass(found, DefaultPreprocessor):
        raise told.refused(f"its preprocessor is {preprocessor!r:.80}", "Plan with nnU-Net's DefaultPreprocessor.")
    manager = plans.get("label_manager", LabelManager.__name__)
    if manager != LabelManager.__name__:
        raise told.refused(
            f"its plans turn logits into labels by {manager!r:.80}", "Train with nnU-Net's own LabelManager (softmax)."
        )


def _require_known(kind: str, name: Any, below: str, told: Told, what: str = "") -> Any:
    """A part of nnU-Net by its name in the plans."""
    import nnunetv2
    from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

    found = (
        recursive_find_python_class(f"{nnunetv2.__path__[0]}/{below}", name, f"nnunetv2.{below.replace('/', '.')}")
        if isinstance(name, str) and name.isidentifier()
        else None
    )
    if found is None:
        raise told.refused(
            f"its plans name the {kind} {name!r:.80}{f' for {what}' if what else ''}, which nnU-Net here does not have",
            "Train with the parts that nnU-Net itself brings, or install nnU-Net with that part.",
        )
    return found


def _require_intensities(schemes: list[Any], masked: list[Any], statistics: Any, channels: int, told: Told) -> None:
    """A normalisation of each channel, and of each CT the intensity statistics it takes."""
    if len(schemes) != channels or len(masked) != channels:
        raise told.refused(
            f"its plans normalise {len(schemes)} channels",
            "Give what was trained on the CT alone."
            if channels == 1
            else f"Give what was trained on {channels} channels.",
        )
    needed = ("mean", "std", "percentile_00_5", "percentile_99_5")
    for number, scheme in enumerate(schemes):
        held = statistics.get(str(number)) if isinstance(statistics, Mapping) else None
        if scheme == "CTNormalization" and (
            not isinstance(held, Mapping) or not all(isinstance(held.get(one), int | float) for one in needed)
        ):
            raise told.refused(
                f"its plans normalise as CT, and hold no statistics of intensities ({', '.join(needed)})",
                "Give the plans.json that nnU-Net wrote.",
            )


def require_linear(function: Any, options: Mapping[str, Any], told: Told) -> float:
    """Require resampling of probabilities that `prediction` can do slab by slab; returns its anisotropy threshold.

    Raises:
        SegmentationError: `prediction` cannot do it; names the resampling of the plans.
    """
    from nnunetv2.configuration import ANISO_THRESHOLD

    known = {
        SKIMAGE: {"is_seg": (False,), "order": (1,), "order_z": (0,)},
        TORCH: {"is_seg": (False,), "mode": ("linear",), "aniso_axis_mode": ("nearest-exact",)},
    }.get(function)
    harmless = {
        "force_separate_z",
        "separate_z_anisotropy_threshold",
        "num_threads",
        "device",
        "memefficient_seg_resampling",
    }
    defaults: Mapping[str, Any] = (
        {"is_seg": False, "order": 3, "order_z": 0}
        if function == SKIMAGE
        else {"is_seg": False, "mode": "linear", "aniso_axis_mode": "nearest-exact"}
    )
    if known is None or any({**defaults, **options}.get(name) not in allowed for name, allowed in known.items()):
        raise told.refused(
            f"its plans resample probabilities by {function} with {dict(options)}",
            f"Use plans whose probabilities are resampled linearly, by {SKIMAGE} (order 1, order_z 0) or {TORCH}.",
        )
    if strange := sorted(set(options) - set(known) - harmless):
        raise told.refused(
            f"its plans resample probabilities with the unknown options {', '.join(strange)}",
            "Use plans of nnU-Net's own planners.",
        )
    return float(options.get("separate_z_anisotropy_threshold", ANISO_THRESHOLD))


def recorded_order(dataset: Mapping[str, Any], told: Told) -> str | None:
    """The voxel order that `dataset.json` says the training scans were in; None if it says nothing.

    Raises:
        SegmentationError: it says something that is no order.
    """
    order = dataset.get(RECORD)
    if order is not None and not is_order(order):
        raise told.refused(
            f"dataset.json says {RECORD} {order!r:.80}", "Give three letters such as LPS, or remove the entry."
        )
    return order


def require_labels(study: Study, label: str, dataset: Mapping[str, Any], told: Told, *, several: bool = False) -> None:
    """`dataset.json` says nothing else than that annotators are fused as the training label says.

    Args:
        study: with that training label.
        label: of the dataset or model, an annotator or a fusion.
        dataset: content of its `dataset.json`.
        told: for whom.
        several: whether a label that takes several annotators' maps must say so: nnU-Net itself makes no such dataset.

    Raises:
        SegmentationError: it is of another fusion, or of one annotator, or does not say how it was fused.
    """
    record, wanted = dataset.get(FUSED), study.fusion(label)
    rule = record.get("rule") if isinstance(record, Mapping) else None
    if record is None and not (several and wanted in KEPT_APART):
        return
    if rule != wanted:
        found = "is of one annotator's labels" if record is None else f"fuses annotators by {rule!r:.40}"
        asked = f"the fusion {wanted}" if wanted else f"the annotator {label}"
        raise told.refused(
            f"its dataset.json says that it {found}, and {label} is {asked}",
            "Give what was made for that training label; datasets of random and soft are made by this platform alone.",
        )
