"""NiiVue for a page that opens from the disk: its code as one classic script, read from the installed package `ipyniivue`.

Belongs here: finding the code and turning the module into a script. Does not belong here: what the viewer does (`viewer.js`).
A page from `file://` may load neither modules nor other files by `fetch`, in any browser. Nothing of NiiVue is kept in this
repository.
"""

import re
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from curvas_assets.errors import ReportError

PACKAGE = "ipyniivue"
_CODE, _LICENCE = "ipyniivue/static/widget.js", "LICENSE"
_EXPORT = re.compile(r"export\s*\{[^{}]*\}\s*;?\s*(//[^\n]*)?\s*$")
_CLASS = re.compile(r"Creating new Niivue instance.{0,300}?=\s*new ([A-Za-z_$][\w$]*)\(", re.DOTALL)
_VERSION = re.compile(r'name:"@niivue/niivue",version:"([\w.-]+)"')


def script() -> str:
    """JavaScript that defines `window.Niivue`, NiiVue's class.

    Raises:
        ReportError: the package is not installed, or its code has another form.
    """
    return _script(_code())


def licence() -> str:
    """The licence of the code, which goes with it.

    Raises:
        ReportError: the package is not installed, or has no licence in it.
    """
    installed = _installed()
    found = next((one for one in installed.files or () if one.name == _LICENCE), None)
    if found is None:
        raise _unusable("it has no licence file")
    return Path(str(installed.locate_file(found))).read_text(encoding="utf-8")


def version() -> str:
    """Which NiiVue it is, such as `0.65.0`; of the package if the code does not say."""
    found = _VERSION.search(_code())
    return found[1] if found else f"{PACKAGE} {_installed().version}"


def _script(code: str) -> str:
    """A module's code as a classic script."""
    export, made = _EXPORT.search(code), _CLASS.search(code)
    if export is None or made is None:
        raise _unusable("its code neither ends with its export nor says which class it makes")
    if re.search(r"(^|[;}\n])\s*import\s*[\w{*\"']|\bimport\.meta\b", code):
        raise _unusable("its code imports other modules")
    return f'window.Niivue = (function () {{ "use strict";\n{code[: export.start()]}\nreturn {made[1]};\n}})();\n'


@cache
def _code() -> str:
    path = Path(str(_installed().locate_file(_CODE)))
    if not path.is_file():
        raise _unusable(f"it has no file {_CODE}")
    return path.read_text(encoding="utf-8")


def _installed() -> Distribution:
    try:
        return distribution(PACKAGE)
    except PackageNotFoundError as error:
        raise ReportError(
            "writing a viewer",
            PACKAGE,
            "it is not installed: the viewer's NiiVue comes from it",
            "pip install 'curvas-assets[share]'.",
        ) from error


def _unusable(found: str) -> ReportError:
    remedy = "Install the version that this release was tested with: pip install 'curvas-assets[share]'."
    return ReportError("writing a viewer", f"{PACKAGE} {_installed().version}", found, remedy)
