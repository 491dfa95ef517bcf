"""Pictures of what each structure keeps of a symmetric matrix, and an animation over its size.

See docs/structures.md.
"""

import argparse
from pathlib import Path

import torch
from _command import command_line, write_run

from muon_kernels.diagnostics.figures import random_symmetric, save, save_structure_animation, structure_gallery


def main(arguments: list[str] | None = None) -> None:
    """The command."""
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument(
        "--out", type=Path, default=Path("results/local/structures"), help="result folder (default %(default)s)"
    )
    out = options.parse_args(arguments).out
    write_run(out, command_line("structures", arguments), torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    figures = {
        "diagonal": structure_gallery(random_symmetric(10, generator), ["original", "diagonal"]),
        "structures": structure_gallery(random_symmetric(64, generator)),
    }
    for name, figure in figures.items():
        print("written:", save(figure, out / f"{name}.png", dpi=70))
    print("written:", save_structure_animation(out / "structures.gif"))


if __name__ == "__main__":
    main()
