"""Builds the one compiled module, millpond.hot: the Cython face and the C kernel under it.

MILLPOND_FAILPOINTS=1 compiles the named failpoints in, which only the tests want; give such a build
directories of its own (`make failpoints`). All metadata is in pyproject.toml.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy
from Cython.Build import cythonize
from setuptools import Extension, setup

if sys.platform != "linux":
    raise SystemExit("millpond runs on Linux only: it needs memfd, robust mutexes and /proc")

FAILPOINTS = os.environ.get("MILLPOND_FAILPOINTS") == "1"
KERNEL = Path("src/millpond/kernel")

hot = Extension(
    "millpond.hot",
    sources=[
        "src/millpond/hot.pyx",
        *sorted(map(str, KERNEL.glob("*.c"))),
        *(["tests/kernel/failpoint.c"] if FAILPOINTS else []),
    ],
    depends=[*map(str, KERNEL.glob("*.h"))],
    include_dirs=[str(KERNEL), numpy.get_include()],
    define_macros=[
        ("NPY_NO_DEPRECATED_API", "NPY_1_7_API_VERSION"),
        *([("MP_FAILPOINTS", "1")] if FAILPOINTS else []),
    ],
    extra_compile_args=["-O2", "-std=gnu11", "-fvisibility=hidden", "-pthread"],
    extra_link_args=["-pthread"],
)

setup(
    ext_modules=cythonize(
        [hot],
        include_path=["src"],
        build_dir="build/cython",
        compiler_directives={"language_level": "3"},
    )
)
