"""The settings of the deployment: the only place that reads environment variables.

`.env` in the working directory is read too; variables that are set win over it. Values are read when they are needed, so
that definitions load without credentials.
"""

import os
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from curvas_assets.errors import DeploymentError

PREFIX = "CURVAS_"
MOST_PATIENCE = 6 * 3600
"""The longest wait, s: far shorter than the age at which unfinished writings are removed (`storage.versions`)."""
SAYS_SOMETHING_EMPTY = ("devices", "gpu_nodes")
"""Settings for which an empty variable means "none", not "not set"."""


class Deployment(BaseSettings):
    """Settings of one deployment, each from the variable `CURVAS_<NAME>`; an empty variable counts as not set."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_file=".env", extra="ignore", str_strip_whitespace=True)

    study: str = Field("curvas", description="The study to load: a built-in name or the path of a study file.")
    key_prefix: str = Field(
        "",
        pattern=r"^([A-Za-z][A-Za-z0-9_]*)?$",
        description="Prefix of all asset keys and of the patients' partitions: letters, digits and underscores. Only needed where "
        "several studies share one Dagster instance.",
    )
    executor: str = Field("local", description="Where steps run: local, celery or kubernetes.")
    scratch: Path | None = Field(
        None, description="Folder where steps keep files while they work; else the system's temporary folder."
    )
    scratch_gib: float = Field(
        80, gt=0, description="What all steps of this machine may keep there at once, GiB. Onyxia's disks hold 100 GB."
    )
    devices: Annotated[list[str] | None, NoDecode] = Field(
        None, description="The GPUs that steps may use, such as 0,1,2; else CUDA_VISIBLE_DEVICES, else all there are."
    )
    gpu_slots: int | None = Field(
        None, ge=0, description="GPU steps at a time over the whole deployment; else the GPUs of this machine."
    )
    gpu_nodes: str = Field(
        "nvidia.com/gpu.present=true",
        description="Labels of the cluster's nodes with a GPU, such as key=value,key=value; empty for any node. The default is "
        "the label that NVIDIA's GPU operator gives.",
    )
    broker: str = Field("redis://127.0.0.1:6379/0", description="Where Celery's tasks wait.")
    lost_after_seconds: float = Field(60, gt=0, description="Silence after which a Celery worker counts as dead, s.")
    postgres_url: str | None = Field(None, description="Where Dagster keeps its runs and events; else SQLite.")
    store_patience_seconds: float = Field(
        600,
        ge=0,
        le=MOST_PATIENCE,
        allow_inf_nan=False,
        description=f"How long steps wait for a store that is away, s: from 0, which does not wait, to {MOST_PATIENCE}.",
    )
    nightly_predict: bool = Field(False, description="Whether nightly_scores may predict, which takes GPUs: 1 or 0.")
    report_folder: Path | None = Field(
        None, description="Folder of this machine that keeps a copy of the newest report."
    )
    report_url: str = Field(
        "",
        pattern=r"^(https?://\S+)?$",
        description="Address at which people reach the served report (`curvas_assets.orchestration.report_server`); the UI links to it.",
    )
    git_commit: str = Field("", description="The commit that an image was built from; else the checkout's.")
    webhook_url: str = Field("", description="Where report_failures posts each failed run.")

    @model_validator(mode="before")
    @classmethod
    def _leave_out_what_is_empty(cls, given: dict[str, Any]) -> dict[str, Any]:
        return {
            name: value
            for name, value in given.items()
            if name in SAYS_SOMETHING_EMPTY or not isinstance(value, str) or value.strip()
        }

    @field_validator("devices", mode="before")
    @classmethod
    def _split(cls, given: object) -> object:
        return _listed(given) if isinstance(given, str) else given

    def scratch_folder(self) -> Path | None:
        """Where steps keep files while they work, made if it is not there; None for the system's temporary folder."""
        if self.scratch is not None:
            self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch

    def device_names(self) -> list[str]:
        """The GPUs that steps may use."""
        if self.devices is not None:
            return self.devices
        visible = environment().get("CUDA_VISIBLE_DEVICES")
        if visible is not None:
            return _listed(visible)
        return sorted((file.name.removeprefix("nvidia") for file in Path("/dev").glob("nvidia[0-9]*")), key=int)

    def gpu_steps(self, without: int = 1) -> int:
        """GPU steps at a time over the whole deployment.

        Args:
            without: the answer where neither the variable nor this machine says anything.
        """
        return len(self.device_names()) or without if self.gpu_slots is None else self.gpu_slots

    def gpu_node_labels(self) -> dict[str, str]:
        """Labels of the cluster's nodes with a GPU."""
        pairs = [pair.partition("=") for pair in _listed(self.gpu_nodes)]
        return {key.strip(): value.strip() for key, _, value in pairs}


def _listed(text: str) -> list[str]:
    """The entries of a list that is written with commas."""
    return [entry.strip() for entry in text.split(",") if entry.strip()]


def deployment() -> Deployment:
    """The settings as they are now.

    Raises:
        DeploymentError: a variable has a value that is not allowed; the message names the variable.
    """
    own = frozenset(item for item in os.environ.items() if item[0].upper().startswith(PREFIX))
    return _settings(own, _state_of(Path(".env")))


def _state_of(file: Path) -> tuple[Path, int, int] | None:
    """A file's path, and the time and size by which a change shows; None if there is no file."""
    try:
        state = file.stat()
        return file.absolute(), state.st_mtime_ns, state.st_size
    except OSError:
        return None


@lru_cache(maxsize=4)
def _settings(*_state: Any) -> Deployment:
    """The settings, read once for each state of what they are read from: 90 readings of 5 ms else, whenever definitions load."""
    try:
        return Deployment()  # type: ignore[call-arg] - its fields come from the environment
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        remedy = Deployment.model_fields[name].description or ""
        found = f"it is {first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
        raise DeploymentError("reading the environment", variable(name), found, remedy) from error


def variable(setting: str) -> str:
    """The variable of a setting: `CURVAS_SCRATCH` of `scratch`.

    Raises:
        KeyError: there is no such setting.
    """
    if setting not in Deployment.model_fields:
        raise KeyError(setting)
    return f"{PREFIX}{setting.upper()}"


def environment() -> Mapping[str, str]:
    """Variables of `.env`, overridden by those of the process: those of the store, which `curvas_assets.storage` reads."""
    return {**{k: v for k, v in dotenv_values(".env").items() if v is not None}, **os.environ}
