"""A training in a process of its own, for tests to kill."""

import json
import shutil
import sys
from pathlib import Path

from curvas_assets.segmentation import train_model
from curvas_assets.study import ModelId, Study

if __name__ == "__main__":
    study_file, dataset, model_folder, checkpoint = map(Path, sys.argv[1:5])

    def keep(path: Path, epoch: int) -> None:
        shutil.copyfile(path, f"{checkpoint}.part")
        Path(f"{checkpoint}.part").replace(checkpoint)
        print(epoch, file=sys.__stdout__, flush=True)

    train_model(
        Study.model_validate(json.loads(study_file.read_text())),
        ModelId.parse(sys.argv[5]) if len(sys.argv) > 5 else ModelId("anno1", 7, "all"),
        dataset,
        model_folder,
        resume_from=checkpoint if checkpoint.exists() else None,
        on_checkpoint=keep,
    )
