"""Builds muon_kernels._C with nvcc and ninja where nvcc is found; everything else is in pyproject.toml.

MUON_KERNELS_CUDA=auto (default) builds the extension if nvcc is found, `require` fails without it,
`skip` never builds.
CUDA_HOME names the toolkit; without it nvcc is taken from PATH, then from /usr/local/cuda.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ENVIRONMENT_VARIABLE = "MUON_KERNELS_CUDA"
MODES = ("auto", "require", "skip")

ARCHITECTURES: dict[str, tuple[str, ...]] = {
    ".": (),
    "elementwise": ("80", "90", "100", "120"),
    "sm90": ("90a",),
}
"""Folder of csrc -> the architectures its .cu files are compiled for, as far as nvcc knows them."""

PTX_FOLDERS = ("elementwise",)
"""Folders whose lowest architecture is also kept as PTX, for devices that none of the binaries fits."""

COMPILE_FLAGS = (
    "-O3",
    "-std=c++17",
    "-Xcompiler=-fPIC,-fvisibility=hidden",
    "-Xptxas=-v,--warn-on-spills",
    "-Xfatbin=-compress-all",  # the elementwise kernels' 32 KB parameter tables make zeros: 2.9 MB instead of 21.9 MB
)
# Our copy of the CUDA runtime must not be mixed up with the one that torch loads: its symbols stay private.
LINK_FLAGS = ("-shared", "-cudart=static", "-Xlinker=--exclude-libs,ALL", "-Xlinker=--strip-all")


def requested_mode(environ: Mapping[str, str]) -> str:
    """The value of MUON_KERNELS_CUDA; ValueError for an unknown one."""
    mode = environ.get(ENVIRONMENT_VARIABLE, "auto")
    if mode not in MODES:
        raise ValueError(f"{ENVIRONMENT_VARIABLE} must be one of {', '.join(MODES)}, got {mode!r}")
    return mode


def find_nvcc(environ: Mapping[str, str], default: Path = Path("/usr/local/cuda")) -> Path | None:
    """CUDA_HOME's nvcc if CUDA_HOME is set (and no other then), else the one on PATH, else the one in `default`."""
    if environ.get("CUDA_HOME"):
        candidate = Path(environ["CUDA_HOME"]) / "bin" / "nvcc"
    else:
        candidate = Path(shutil.which("nvcc", path=environ.get("PATH", "")) or default / "bin" / "nvcc")
    return candidate if candidate.is_file() else None


def nvcc_to_use(environ: Mapping[str, str]) -> Path | None:
    """nvcc, or None for an installation without the extension; RuntimeError if one is required and missing."""
    mode = requested_mode(environ)
    nvcc = None if mode == "skip" else find_nvcc(environ)
    if nvcc is None and mode == "require":
        raise RuntimeError(f"{ENVIRONMENT_VARIABLE}=require, but nvcc was not found: set CUDA_HOME or PATH")
    return nvcc


def supported_architectures(nvcc: Path) -> set[str]:
    """What nvcc can generate code for, e.g. {"80", "90", "90a"}."""
    listed = subprocess.run([nvcc, "--list-gpu-code"], check=True, capture_output=True, text=True).stdout
    numbers = {line.removeprefix("sm_") for line in listed.split()}
    # The list leaves out the architecture-specific variants; every nvcc that knows sm_90 knows sm_90a.
    return numbers | {number + "a" for number in numbers if int(number.rstrip("af")) >= 90}


def gencode_flags(folder: str, supported: Iterable[str]) -> list[str]:
    """The -gencode flags for the .cu files of a folder of csrc; RuntimeError if nvcc knows none of its targets."""
    known = set(supported)
    chosen = [arch for arch in ARCHITECTURES[folder] if arch in known]
    if ARCHITECTURES[folder] and not chosen:
        raise RuntimeError(f"nvcc supports none of the architectures of csrc/{folder}: {ARCHITECTURES[folder]}")
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in chosen]
    if folder in PTX_FOLDERS:
        flags.append(f"-gencode=arch=compute_{chosen[0]},code=compute_{chosen[0]}")
    return flags


def sources(csrc: Path) -> list[Path]:
    """All sources of the extension, sorted."""
    return sorted(
        path for folder in ARCHITECTURES for path in (csrc / folder).glob("*.c[pu]*") if path.suffix != ".cuh"
    )


def ninja_file(csrc: Path, output: Path, nvcc: Path, supported: Iterable[str], includes: Iterable[str]) -> str:
    """The text of build.ninja: one object a source, one shared library; all paths absolute.

    `includes` go to .cpp files only: pip's isolated builds find pybind11 in another folder each time, and a changed
    command would make ninja compile every kernel again.
    """
    known = set(supported)
    include_flags = [f"-I{path}" for path in includes]
    lines = [
        "ninja_required_version = 1.5",
        f"nvcc = {_escape(nvcc)}",
        f"cflags = {' '.join(COMPILE_FLAGS)}",
        "rule compile",
        "  command = $nvcc $cflags $flags -MD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = $nvcc {' '.join(LINK_FLAGS)} $in -o $out",
    ]
    objects = []
    for source in sources(csrc):
        folder = str(source.parent.relative_to(csrc))
        name = _escape(Path(folder) / f"{source.name}.o")
        objects.append(name)
        flags = include_flags if source.suffix == ".cpp" else gencode_flags(folder, known)
        lines += [f"build {name}: compile {_escape(source)}", f"  flags = {' '.join(map(_escape, flags))}"]
    lines += [f"build {_escape(output)}: link {' '.join(objects)}", f"default {_escape(output)}", ""]
    return "\n".join(lines)


def _escape(path: object) -> str:
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


class NinjaBuild(build_ext):
    """Writes build.ninja into the temporary folder and runs it; a second build compiles only what has changed."""

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        nvcc = nvcc_to_use(os.environ)
        assert nvcc is not None, "the extension is only declared when there is an nvcc"
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(self.build_temp).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        csrc = Path(__file__).parent.resolve() / "csrc"
        includes = [pybind11.get_include(), sysconfig.get_path("include")]
        text = ninja_file(csrc, output, nvcc, supported_architectures(nvcc), includes)
        (folder / "build.ninja").write_text(text)
        subprocess.run([sys.executable, "-m", "ninja", "-v", "-C", str(folder)], check=True)


def main() -> None:
    nvcc = nvcc_to_use(os.environ)
    if nvcc is None:
        print("muon_kernels: no CUDA extension (nvcc not found or skipped); installing pure Python", file=sys.stderr)
        setup()
        return
    extension = Extension("muon_kernels._C", [str(path) for path in sources(Path("csrc"))])
    setup(ext_modules=[extension], cmdclass={"build_ext": NinjaBuild})


if __name__ == "__main__":
    main()
