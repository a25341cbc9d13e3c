# Copyright (c) 2026, Culvert contributors
# SPDX-License-Identifier: GPL-3.0-or-later
"""The part of the build that pyproject.toml has no words for: the optional extension ``culvert._native``.

Without Cython, a C compiler or OpenSSL's headers the package is built all the same, and seals packets in
Python. Builds that must not end like that (image, wheels, the checkout's tests) say so in the environment:

``CULVERT_NATIVE=required``
    fail where the extension cannot be built
``CULVERT_NATIVE=strict``
    and where the compiler warns about our own C
``CULVERT_NATIVE_FLAGS``
    more options for the compiler and the linker, after ours
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

PACKAGE = Path("src/culvert")
MODE = os.environ.get("CULVERT_NATIVE", "optional")
MORE = shlex.split(os.environ.get("CULVERT_NATIVE_FLAGS", ""))

# No -march: one build runs on every machine of its architecture, and picks what that one can at run time.
# Debian's compiler may define _FORTIFY_SOURCE already, and warns where it is defined again as something else.
COMPILE = ["-std=gnu11", "-O3", "-U_FORTIFY_SOURCE", "-D_FORTIFY_SOURCE=2", "-fstack-protector-strong"]
COMPILE += ["-fstack-clash-protection", "-fvisibility=hidden", "-g0"]
LINK = ["-Wl,-z,relro,-z,now,-z,noexecstack"]
# Of the core that people write; what Cython writes is not ours to keep free of warnings.
WARN = ["-Wall", "-Wextra", *(["-Werror"] if MODE == "strict" else [])]


class BuildNative(build_ext):
    """Compiles the core with options of its own, then the binding, and links the two."""

    def build_extension(self, ext: Extension) -> None:
        core = sorted(str(path) for path in PACKAGE.glob("native/*.c"))
        ext.extra_objects = self.compiler.compile(
            core,
            output_dir=self.build_temp,
            include_dirs=ext.include_dirs,
            extra_postargs=[*COMPILE, *WARN, *MORE],
        )
        super().build_extension(ext)


def extensions() -> list[Extension]:
    """The extension, if there is a Cython to translate it with, new enough."""
    try:
        from Cython.Build import cythonize
        from Cython.Compiler.Errors import CompileError
    except ImportError:
        if MODE != "optional":
            raise
        return []
    native = Extension(
        "culvert._native",
        [str(PACKAGE / "_native.pyx")],
        include_dirs=[str(PACKAGE), str(PACKAGE / "native")],
        depends=sorted(str(path) for path in PACKAGE.glob("native/*.[ch]")),
        libraries=["crypto"],
        extra_compile_args=[*COMPILE, *MORE],
        extra_link_args=[*LINK, *MORE],
    )
    try:
        modules: list[Extension] = cythonize([native], build_dir="build/cython", language_level=3)
    except CompileError:
        if MODE != "optional":
            raise
        return []
    for module in modules:
        # Cython forgets it when the extension is given it.
        module.optional = MODE == "optional"
    return modules


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildNative})
