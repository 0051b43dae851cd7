"""`curvas-dicom`: DICOM series with RTSTRUCT or SEG become the platform's files; probabilities become a DICOM SEG."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from curvas_assets.dicom import convert_dicom, write_probabilities_seg
from curvas_assets.errors import CurvasError, PatientError


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; exit status 1 if a patient was refused, 2 if the command line is wrong."""
    parser = argparse.ArgumentParser(prog="curvas-dicom", description=(__doc__ or "").partition(": ")[2])
    commands = parser.add_subparsers(required=True, metavar="convert | seg")
    convert = commands.add_parser("convert", help="a folder of DICOM files → a folder per patient, without identifiers")
    convert.add_argument("source", type=Path, help="folder of DICOM files of any number of patients")
    convert.add_argument("out", type=Path, help="folder that receives <id>/image.nii.gz, annotations and labels.json")
    convert.add_argument(
        "--organ",
        action="append",
        metavar="ORGAN[=STRUCTURE,…]",
        help="an organ that is wanted, and the structures that make it up; repeat it. Default: every structure",
    )
    convert.add_argument(
        "--annotator-from",
        choices=("label", "operator", "folder"),
        default="label",
        help="what tells annotators apart: the structure set's label (a SEG's series description), operator, or folder",
    )
    convert.add_argument("--keep-annotators", action="store_true", help="keep their names; default: annotator-1 …")
    convert.add_argument("--prefix", default="P", help="of new ids (default: P)")
    convert.add_argument(
        "--mapping", type=Path, help="CSV kind,old,new: read if it is there, and written (default: OUT-identities.csv)"
    )
    convert.set_defaults(run=_convert)
    seg = commands.add_parser("seg", help="probabilities of a predictor → a fractional DICOM SEG")
    seg.add_argument(
        "--probabilities",
        nargs="+",
        required=True,
        metavar="FILE",
        help="NIfTI: one of four axes, or one for each organ in the order of --organs, or ORGAN=FILE each",
    )
    seg.add_argument("--series", type=Path, required=True, help="folder of the series that was predicted")
    seg.add_argument("--out", type=Path, required=True, help="file that is written")
    seg.add_argument("--organs", nargs="+", metavar="ORGAN", help="names of the volumes, in order")
    seg.add_argument("--predictor", default="ensemble_all", help="its name (default: ensemble_all)")
    seg.set_defaults(run=_seg)
    given = parser.parse_args(arguments)
    try:
        status = given.run(given)
    except CurvasError as error:
        sys.exit(str(error))
    sys.exit(status)


def _convert(given: argparse.Namespace) -> int:
    organs = None
    if given.organ:
        organs = {}
        for text in given.organ:
            organ, _, structures = text.partition("=")
            organs[organ] = [s for s in structures.split(",") if s.strip()] or [organ]
    made = convert_dicom(
        given.source,
        given.out,
        organs=organs,
        annotator_from=given.annotator_from,
        keep_annotators=given.keep_annotators,
        mapping=given.mapping,
        prefix=given.prefix,
        tell=lambda line: print(line, flush=True),
    )
    print(f"{len(made.cases)} patients in {given.out}, {len(made.refused)} refused; {made.ignored} other files ignored")
    print(f"organs: {', '.join(f'{organ} = {value}' for organ, value in made.labels.items())}")
    print(
        f"Keep {made.mapping} apart from them: it says who is who. Voxels are unchanged: a face in a scan still is one."
    )
    return 1 if made.refused else 0


def _seg(given: argparse.Namespace) -> int:
    files: list[str] = given.probabilities
    probabilities: str | dict[str, str] = files[0]
    if all("=" in text for text in files):
        probabilities = dict(text.split("=", 1) for text in files)
    elif len(files) > 1:
        if len(files) != len(set(given.organs or ())):
            raise PatientError(
                "writing a DICOM SEG",
                given.predictor,
                f"{len(files)} files and {len(given.organs or ())} names",
                "Name each file once: --organs, or ORGAN=FILE.",
            )
        probabilities = dict(zip(given.organs, files, strict=True))
    write_probabilities_seg(probabilities, given.series, given.out, predictor=given.predictor, organs=given.organs)
    print(f"{given.out} is written; like the series, it names the patient")
    return 0


if __name__ == "__main__":
    main()
