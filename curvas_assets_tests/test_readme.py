"""Claims proved here, of the lines that README, CONTRIBUTING, OPERATING and the pages of `docs/` print.

- Every console block is a shell's; every program in it, or in a line of text, is one that a fresh checkout has: a target of the
  Makefile, a program of `.venv/bin` or of its environment, a module that is there, a file of the repository.
- `eval "$(make -s env)"` makes Dagster's lines work as they are printed: jobs are listed, and a launch waits in the queue.
- Every job that is named with settings has these settings, and takes the values that are printed.
- Files that are linked are there, and every package has its page in the documentation.
"""

import importlib.util
import itertools
import json
import posixpath
import re
import shlex
import subprocess
import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

from curvas_assets.definitions import build_definitions
from curvas_assets.local.deployment import ROOT
from curvas_assets.orchestration.operations import OPERATIONS
from curvas_assets.study import load_study

PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.md"), *ROOT.glob("deploy/*.md"), *ROOT.glob("docs/*.md"))
}
TEXT = "\n".join(PAGES.values())
BLOCKS = re.findall(r"(?sm)^ *```console\n(.*?)^ *```", TEXT)
BUILT_IN = {"export", "mkdir", "cp", "eval", "cd", "ssh"}
PROGRAMS = Path(sys.executable).parent
OWN_ENVIRONMENT = 'eval "$(make -s env)"'


@pytest.fixture(scope="module")
def jobs() -> dict[str, dg.JobDefinition]:
    return {job.name: job for job in build_definitions(load_study("phantom")).resolve_all_job_defs()}


def commands(block: str) -> list[list[str]]:
    """The simple commands of a block, without the variables that are set before them."""
    found = []
    for line in block.splitlines():
        words = shlex.split(line.replace(OWN_ENVIRONMENT, "eval env"), comments=True)
        command: list[str] = []
        for word in [*words, "&&"]:
            if word in ("&&", "&", ";", "|"):
                found += [command] if command else []
                command = []
            else:
                command.append(word)
    return found


def inline() -> list[list[str]]:
    """Commands within the text: `make …`, `.venv/bin/… …`, `dagster … -…`."""
    told = re.findall(r"`((?:make|\.venv/bin/\w+|dagster job|dagster instance|python -m) [^`]+)`", TEXT)
    return [shlex.split(line) for line in told]


def problem(command: list[str], *, activated: bool) -> str:
    """Why a command would not start in a fresh checkout; empty if it would."""
    program, *arguments = command
    if program == "make":
        targets = re.findall(r"(?m)^(\w+):", (ROOT / "Makefile").read_text())
        return "" if {a for a in arguments if a.isalpha()} <= set(targets) else f"no target {arguments}"
    if not program.startswith(".venv/bin/") and not activated and program not in BUILT_IN:
        return f"{program} is not on the PATH of a fresh checkout"
    name = program.removeprefix(".venv/bin/")
    if program not in BUILT_IN and not (PROGRAMS / name).exists():
        return f"no program {name}"
    if name == "python" and arguments[0] == "-m" and importlib.util.find_spec(arguments[1]) is None:
        return f"no module {arguments[1]}"
    for flag, word in itertools.pairwise(arguments):
        if flag == "-w" and not (ROOT / word).is_file():
            return f"no file {word}"
        if flag == "-A" and importlib.util.find_spec(word) is None:
            return f"no module {word}"
    if program == "cp" and not (ROOT / arguments[0]).is_file():
        return f"no file {arguments[0]}"
    return ""


def test_every_printed_line_starts_in_a_fresh_checkout():
    assert len(BLOCKS) >= 5
    wrong = {}
    for block in BLOCKS:
        parsed = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
        assert parsed.returncode == 0, parsed.stderr
        activated = OWN_ENVIRONMENT in block
        wrong |= {" ".join(c): said for c in commands(block) if (said := problem(c, activated=activated))}
    lines = inline()
    assert len(lines) >= 5
    wrong |= {" ".join(c): said for c in lines if (said := problem(c, activated=False))}
    assert wrong == {}


def test_this_would_find_the_lines_that_failed():
    assert "PATH" in problem(["dagster", "job", "launch"], activated=False)
    assert "no module" in problem([".venv/bin/python", "-m", "benchmarks.gone"], activated=False)
    assert "no target" in problem(["make", "tea"], activated=False)
    assert "no program" in problem([".venv/bin/dagger"], activated=False)


def test_jobs_that_are_printed_take_the_settings_that_are_printed(jobs):
    launched = [c for block in BLOCKS for c in commands(block) if c[:3] == ["dagster", "job", "launch"]]
    assert len(launched) >= 2
    for command in launched:
        job = jobs[command[command.index("-j") + 1]]
        config = json.loads(command[command.index("--config-json") + 1]) if "--config-json" in command else {}
        dg.validate_run_config(job, config)
    named = re.findall(r"`(\w+)` \(((?:`[^`]+`(?:, | or | and )?)+)\)", TEXT)
    checked = 0
    for name, settings in named:
        settings_of = {operation.name: operation.settings for operation in OPERATIONS}.get(name)
        if name not in jobs or settings_of is None:
            continue
        fields = set(settings_of.model_fields)
        for setting in re.findall(r"`([^`]+)`", settings):
            told = yaml.safe_load(setting)
            keys = set(told) if isinstance(told, dict) else {str(told)}
            if ":" in setting or keys <= fields:
                assert keys <= fields, f"{name} has no {keys - fields}"
                checked += 1
    assert checked >= 10


def test_linked_files_are_there():
    made = {"docs/reference/study-file.md"}  # by docs/site.py
    links = [(page, to) for page, text in PAGES.items() for to in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", text)]
    assert {page for page, _ in links} >= {"README.md", "docs/data.md"}
    targets = {link: posixpath.normpath(posixpath.join(posixpath.dirname(link[0]), link[1])) for link in links}
    assert [link for link, target in targets.items() if target not in made and not (ROOT / target).exists()] == []


def test_every_package_has_its_page():
    without = {"assets", "studies"}  # the former has a page of another name, the latter no code
    packages = {path.parent.name for path in (ROOT / "curvas_assets").glob("*/__init__.py")} - without
    pages = set(re.findall(r"(?m)^ +- reference/([a-z]+)\.md$", (ROOT / "mkdocs.yml").read_text()))
    assert packages - pages == set()
    assert len(packages) > 10


def test_the_console_works_on_the_demos_state_as_printed(tmp_path):
    state = tmp_path / "state"
    make = f"make -s env STATE={shlex.quote(str(state))} VENV={shlex.quote(str(PROGRAMS.parent))}"
    block = next(block for block in BLOCKS if OWN_ENVIRONMENT in block)
    lines = [line for line in block.splitlines() if "make_missing" not in line]
    assert any("-j study" in line for line in lines)
    script = "\n".join(["set -e", *lines]).replace("make -s env", make)
    done = subprocess.run(
        ["bash", "-c", f"export PYTHONPATH={shlex.quote(str(ROOT))}\n{script}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "Job: make_missing" in done.stdout
    assert (state / "dagster/dagster.yaml").is_file()
    assert (state.stat().st_mode & 0o777) == 0o700
    with dg.DagsterInstance.from_config(str(state / "dagster")) as instance:
        (run,) = instance.get_runs()
    assert (run.job_name, run.status) == ("study", dg.DagsterRunStatus.QUEUED)
