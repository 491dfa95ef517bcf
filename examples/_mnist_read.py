"""The images with what identifies them, and readers for the two forms they are published in: IDX files and CSV text."""

import gzip
import hashlib
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from _data import DataError

IMAGE_MAGIC, LABEL_MAGIC = 2051, 2049
SIDE = 28
PARTS = ("train_images", "train_labels", "test_images", "test_labels")


@dataclass(frozen=True)
class Published:
    """A published data set: md5 of its uncompressed IDX files; mean and deviation of its training pixels, 0 to 1."""

    name: str
    torchvision_folder: str
    idx_md5: tuple[str, ...]
    pixel_mean: float
    pixel_std: float


DATASETS = {
    "mnist": Published(
        "MNIST",
        "MNIST",
        (
            "6bbc9ace898e44ae57da46a324031adb",
            "a25bea736e30d166cdddb491f175f624",
            "2646ac647ad5339dbf082846283269ea",
            "27ae3e4e09519cfbb04c329615203637",
        ),
        0.1307,
        0.3081,
    ),
    "fashion": Published(
        "Fashion-MNIST",
        "FashionMNIST",
        (
            "f4a8712d7a061bf5bd6d2ca38dc4d50a",
            "9018921c3c673c538a1fc5bad174d6f9",
            "8181f5470baa50b63fa0f6fddb340f0a",
            "15d484375f8d13e6eb1aabb0c3f46965",
        ),
        0.2860,
        0.3530,
    ),
}


@dataclass(frozen=True)
class Mnist:
    """Where the data came from, in words; pixels 0-255 [n, 28, 28] and labels [n], both uint8; a key of DATASETS."""

    source: str
    train_images: np.ndarray
    train_labels: np.ndarray
    test_images: np.ndarray
    test_labels: np.ndarray
    dataset: str = "mnist"

    def __post_init__(self) -> None:
        for split in ("train", "test"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images.shape != (labels.size, SIDE, SIDE) or labels.ndim != 1 or labels.size == 0:
                raise DataError(f"{split}: images {images.shape} and labels {labels.shape} do not belong together")
            if labels.max() > 9:
                raise DataError(f"{split}: label {labels.max()} is not one of the ten classes")

    @property
    def published(self) -> Published:
        """The data set that these are images of."""
        return DATASETS[self.dataset]

    def is_published(self) -> bool:
        """Whether these are, byte for byte, the 60 000 and 10 000 published images."""
        return all(idx_md5(getattr(self, part)) == md5 for part, md5 in zip(PARTS, self.published.idx_md5, strict=True))

    def verified(self, otherwise: str) -> "Mnist":
        """The same data if they are the published ones; an error with the text `otherwise` if not."""
        if not self.is_published():
            raise DataError(otherwise)
        return self


def _idx_header(array: np.ndarray) -> bytes:
    magic = IMAGE_MAGIC if array.ndim == 3 else LABEL_MAGIC
    return struct.pack(f">{1 + array.ndim}i", magic, *array.shape)


def idx_md5(array: np.ndarray) -> str:
    """md5 of the uncompressed IDX file that holds `array`, the form in which the checksums are known."""
    digest = hashlib.md5(_idx_header(array), usedforsecurity=False)
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def read_idx(path: Path) -> np.ndarray:
    """Images [n, rows, columns] or labels [n] of an IDX file, plain or gzipped."""
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file: {error}") from error
    magic = int.from_bytes(raw[:4], "big")
    if magic not in (IMAGE_MAGIC, LABEL_MAGIC):
        raise DataError(f"{path} is not IDX images or labels: magic {magic}, not {IMAGE_MAGIC} or {LABEL_MAGIC}")
    dims = 3 if magic == IMAGE_MAGIC else 1
    start = 4 * (1 + dims)
    if len(raw) < start:
        raise DataError(f"{path} ends inside its header")
    shape = struct.unpack(f">{dims}i", raw[4:start])
    if len(raw) - start != int(np.prod(shape)):
        raise DataError(f"{path} holds {len(raw) - start} values, its header promises {shape}")
    return np.frombuffer(raw, dtype=np.uint8, offset=start).reshape(shape)


def read_csv(text: bytes, label_column: int, has_header: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images [n, 28, 28] and labels [n] of lines that hold 784 pixels and a label, first (0) or last (-1)."""
    body = text[text.index(b"\n") + 1 :] if has_header else text
    # One flat parse: 47 million values take half a second this way, about a minute with `np.loadtxt`.
    values = np.fromstring(body.replace(b"\n", b","), dtype=np.uint8, sep=",")
    width = SIDE * SIDE + 1
    if values.size == 0 or values.size % width:
        raise DataError(f"the CSV text holds {values.size} values, not a multiple of {width}")
    table = values.reshape(-1, width)
    labels = np.ascontiguousarray(table[:, label_column])
    images = np.delete(table, label_column, axis=1).reshape(-1, SIDE, SIDE)
    return images, labels
