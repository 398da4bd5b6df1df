"""A small checkout, and the build hook for it without a build around it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import hatch_build
from hatch_build import NativeCoreHook

CHECKOUT = Path(hatch_build.__file__).parent


class Application:
    """Takes the place of hatchling's, and keeps what would be shown."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, text: str) -> None:
        """Keep it."""
        self.warnings.append(text)


class Hook(NativeCoreHook):
    """The hook for a given checkout, without a build around it."""

    root = ""
    app: Any = None

    def __init__(self, root: Path) -> None:
        self.root, self.app = str(root), Application()


def load(path: Path) -> ModuleType:
    """Import a core that is not in the package."""
    spec = importlib.util.spec_from_file_location("_native", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new_build_data() -> dict[str, Any]:
    """What hatchling hands to the hook, as far as the hook looks at it."""
    return {"pure_python": True, "force_include": {}}


def make_checkout(folder: Path, *, before_the_answer: str = "", functions: str = "") -> None:
    """A module that says 42, and what a module needs; C to run before may be given, and functions for that."""
    sources = folder / "kvrouter" / "native"
    sources.mkdir(parents=True)
    header = CHECKOUT / "kvrouter" / "native" / "python_abi.h"
    (sources / "python_abi.h").write_bytes(header.read_bytes())
    text = _MODULE.replace("BEFORE_THE_ANSWER", before_the_answer).replace("FUNCTIONS", functions)
    (sources / "module.c").write_text(text, encoding="utf-8")


_MODULE = """
#include "python_abi.h"
#include <stdlib.h>
#include <string.h>
FUNCTIONS

static PyObject *answer(PyObject *module, PyObject *none)
{
    (void)module, (void)none;
    BEFORE_THE_ANSWER
    return PyLong_FromLong(42);
}

static PyMethodDef functions[] = {{"answer", answer, METH_NOARGS, NULL}, {NULL, NULL, 0, NULL}};

static int fill(PyObject *module)
{
    return PyModule_AddFunctions(module, functions) || PyModule_AddStringConstant(module, "SOURCES", KVR_SOURCES);
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)fill}, {0, NULL}};
static PyModuleDef definition = {.m_base = PyModuleDef_HEAD_INIT, .m_name = "_native", .m_slots = slots};

PyMODINIT_FUNC PyInit__native(void);
PyMODINIT_FUNC PyInit__native(void) { return PyModuleDef_Init(&definition); }
"""
