"""Random calls of the ops against the reference in float64, to the last bit, in memory whose rest must stay as it was.

    python tests/kernel_fuzz.py --cases 10000

The data are small dyadic numbers, so that whatever a kernel adds up in float32 is exact and its one rounding at the end
is the reference's. Shapes, strides, offsets, dtypes, options and lengths of lists are random; outputs are NaN before.
A case is a function of its number.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from muon_kernels import ops, use_backend

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
HALVES = (torch.bfloat16, torch.float16)


class Case(NamedTuple):
    """A call of `ops.<op>`.

    written: numbers of the arguments that are outputs.
    """

    op: str
    arguments: list[Any]
    options: dict[str, Any]
    written: list[int]


class Maker:
    """Random tensors of one case on a device."""

    def __init__(self, number: int, device: str) -> None:
        self.random = random.Random(number)
        self.device = device
        torch.manual_seed(number)

    def case(self) -> Case:
        kind = self.random.choice(
            ["prologue", "sum_squares", "normalize", "symm_gemm", "gemm_add", "cast", "gemm_apply", "apply"]
        )
        made: Case = getattr(self, kind)()
        return made

    def prologue(self) -> Case:
        shapes = [self.shape() for _ in range(self.length())]
        lists: list[Any] = [[self.quarters(dtype, *s) for s in shapes] for dtype in (self.dtype(), self.dtype())]
        options = {
            "momentum": self.random.choice([0.0, 0.5]),
            "nesterov": self.flip(),
            "ema": self.flip(),
            "maximize": self.flip(),
            "grad_scale": self.scalar(0.5, 1.0, 2.0),
            "found_inf": self.scalar(0.0, 1.0),
        }
        out = self.dtype()
        return Case(
            "prologue", [*lists, [self.nan(s, out) for s in shapes], self.sums(len(shapes))], options, [1, 2, 3]
        )

    def sum_squares(self) -> Case:
        dtype = self.dtype()
        xs = [self.quarters(dtype, self.batch(), *self.shape()) for _ in range(self.length())]
        return Case("sum_squares", [xs, self.sums(sum(map(len, xs)))], {}, [1])

    def normalize(self) -> Case:
        dtype, out, given = self.dtype(), self.dtype(), self.flip()
        make = self.quarters if given else self.two_powers
        xs = [make(dtype, self.batch(), *self.shape()) for _ in range(self.length())]
        squares = [4.0 ** self.random.randint(-2, 3) for x in xs for _ in x]
        sums = torch.tensor(squares, dtype=torch.float64, device=self.device) if given else None
        options = {"eps": self.random.choice([1e-7, 8.0]), "safety_factor": self.random.choice([1.0, 2.0])}
        return Case("normalize", [xs, sums, [self.nan(x.shape, out) for x in xs]], options, [2])

    def symm_gemm(self) -> Case:
        dtype, with_c = self.random.choice(HALVES), self.flip()
        a, c, outs = [], [], []
        for _ in range(self.length()):
            batch, m, k = self.batch(), self.eights(), self.eights()
            a.append(self.signs(dtype, batch, m, k, step=8))
            square = torch.randint(-2, 3, (batch, m, m))
            if with_c:
                c.append(self.place((square + square.mT).to(self.device, dtype), 8))
            outs.append(self.nan((batch, m, m), dtype, 8))
        options = self.factors(with_c) | {"delta": float(self.random.randint(-2, 2))}
        return Case("symm_gemm", [a, [x.mT for x in a], c, outs], options, [3])

    def gemm_add(self) -> Case:
        dtype, with_c = self.random.choice(HALVES), self.flip()
        a, b, c, outs = [], [], [], []
        for _ in range(self.length()):
            batch, m, n, k = self.batch(), self.eights(), self.eights(), self.eights()
            a.append(self.signs(dtype, batch, m, k, step=8))
            b.append(self.signs(dtype, batch, k, n, step=8))
            out = self.nan((batch, m, n), dtype, 8)
            if with_c:
                like = torch.randint(-2, 3, (batch, m, n)).to(self.device, dtype)
                c.append(self.place(like, 8, transposed=out.stride(2) != 1))
            outs.append(out)
        return Case("gemm_add", [a, b, c, outs], self.factors(with_c), [3])

    def cast(self) -> Case:
        """A product in another dtype than its operands."""
        a, b, sizes = self.last_product()
        dtype = self.random.choice(DTYPES[:2])
        outs = [self.nan((batch, m, n), dtype, transposed=False) for batch, m, n in sizes]
        return Case("gemm_add", [a, b, [], outs], {"alpha": self.random.choice([0.5, 1.0, 2.0]), "beta": 0.0}, [3])

    def gemm_apply(self) -> Case:
        a, b, sizes = self.last_product()
        dtype = self.random.choice([*DTYPES, *DTYPES[:2]])
        params = []
        mixed = self.random.random() < 0.2  # which the kernel cannot write, and most orders of what is wide
        for batch, m, n in sizes:
            order = None if mixed else m > n and self.flip()
            params += [self.quarters(dtype, m, n, transposed=order) for _ in range(batch)]
        return Case("gemm_apply", [a, b, params], self.step(len(params)), [2])

    def apply(self) -> Case:
        shapes, dtype, other = [self.shape() for _ in range(self.length())], self.dtype(), self.dtype()
        lists = [[self.quarters(d, *s) for s in shapes] for d in (dtype, other)]
        return Case("apply", lists, self.step(len(shapes)), [0])

    def last_product(self) -> tuple[list[Tensor], list[Tensor], list[tuple[int, int, int]]]:
        """Operands as the chains leave them: a square one and a wide or tall one with rows on 16 bytes, any sizes."""
        a, b, sizes = [], [], []
        for _ in range(self.length()):
            batch, (m, n) = self.batch(), self.shape()
            side = min(m, n)
            square = self.signs(torch.float16, batch, side, side, step=8, transposed=False)
            x = self.signs(torch.float16, batch, m, n, step=8, transposed=False)
            a.append(x if m > n else square)
            b.append(square.mT if m > n else x)
            sizes.append((batch, m, n))
        return a, b, sizes

    def step(self, count: int) -> dict[str, Any]:
        lr = self.random.choice([0.25, 0.5])
        dtype = self.random.choice([torch.float32, torch.float64])
        return {
            "lr": torch.tensor(lr, dtype=dtype, device=self.device) if self.flip() else lr,
            "weight_decay": self.random.choice([0.0, 0.5]),
            "scales": [2.0 ** self.random.randint(-1, 1) for _ in range(count)],
            "found_inf": self.scalar(0.0, 1.0),
        }

    def factors(self, with_c: bool) -> dict[str, float]:
        return {
            "alpha": self.random.choice([-1.0, 0.5, 1.0, 2.0]),
            "beta": self.random.choice([0.5, 1.0, -2.0]) if with_c else 0.0,
        }

    def flip(self) -> bool:
        return self.random.random() < 0.5

    def dtype(self) -> torch.dtype:
        return self.random.choice(DTYPES)

    def length(self) -> int:
        return self.random.choice([1, 1, 2, 3, 5, 9, 20])

    def batch(self) -> int:
        return self.random.choice([0, 1, 1, 2, 3, 7])

    def size(self) -> int:
        return self.random.choice(
            [1, self.random.randint(1, 40), 8 * self.random.randint(1, 12), self.random.randint(1, 300)]
        )

    def shape(self) -> tuple[int, int]:
        return self.size(), self.size()

    def eights(self) -> int:
        return 8 * self.random.choice([1, self.random.randint(1, 8), self.random.randint(1, 50)])

    def scalar(self, *values: float) -> Tensor | None:
        value = self.random.choice([None, *values])
        return None if value is None else torch.tensor(value, device=self.device)

    def sums(self, count: int) -> Tensor:
        return torch.full((count,), torch.nan, dtype=torch.float64, device=self.device)

    def quarters(self, dtype: torch.dtype, *shape: int, transposed: bool | None = None) -> Tensor:
        return self.place((torch.randint(-4, 5, shape) / 4).to(self.device, dtype), transposed=transposed)

    def two_powers(self, dtype: torch.dtype, batch: int, rows: int, cols: int) -> Tensor:
        """Matrices whose norms are powers of two: a power of four equal numbers up to signs, amid zeros."""
        equal = 4 ** (((rows * cols).bit_length() - 1) // 2)
        x = torch.zeros(batch, rows * cols)
        size = 2.0 ** torch.randint(-3, 4, (batch, 1))
        x[:, torch.randperm(rows * cols)[:equal]] = size * (2 * torch.randint(0, 2, (batch, equal)) - 1)
        return self.place(x.view(batch, rows, cols).to(self.device, dtype))

    def signs(self, dtype: torch.dtype, *shape: int, step: int, transposed: bool | None = None) -> Tensor:
        return self.place(torch.randint(-1, 2, shape).to(self.device, dtype), step, transposed)

    def nan(
        self, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype, step: int = 1, transposed: bool | None = None
    ) -> Tensor:
        return self.place(torch.full(shape, torch.nan, dtype=dtype, device=self.device), step, transposed)

    def place(self, x: Tensor, step: int = 1, transposed: bool | None = None) -> Tensor:
        """The values of x in a random memory order amid NaN: its offset and all strides but one multiples of `step`."""
        turned = self.flip() if transposed is None else transposed
        *batch, rows, cols = x.mT.shape if turned else x.shape
        pitch = -(-cols // step) * step + self.random.choice([0, 0, step, 3 * step])
        matrix = rows * pitch + self.random.choice([0, 0, step, 5 * step])
        offset = self.random.choice([0, 0, step, 2 * step])
        storage = torch.full((offset + matrix * (batch[0] if batch else 1),), torch.nan, dtype=x.dtype, device=x.device)
        strides = (matrix, pitch, 1) if batch else (pitch, 1)
        view = storage[offset:].as_strided((*batch, rows, cols), strides)
        view = view.mT if turned else view
        return view.copy_(x)


def check(case: Case, backend: str) -> None:
    """Runs a case.

    Raises:
        AssertionError: an output, or memory around it, that is not what the reference says.
    """
    exact = [_apart(argument) for argument in case.arguments]
    options = {k: v.cpu() if isinstance(v, Tensor) else v for k, v in case.options.items()}
    with use_backend("reference"):
        getattr(ops, case.op)(*exact, **options)
    expected = {}
    for i in case.written:
        for j, (mine, reference) in enumerate(zip(_listed(case.arguments[i]), _listed(exact[i]), strict=True)):
            memory = _memory(mine).clone()
            _on(memory, mine).copy_(reference.to(mine.dtype))
            expected[i, j] = memory
    with use_backend(backend):
        getattr(ops, case.op)(*case.arguments, **case.options)
    for (i, j), memory in expected.items():
        found = _memory(_listed(case.arguments[i])[j])
        rtol = 1e-15 if found.dtype == torch.float64 else 0  # the reference squares a norm
        same = torch.isclose(found, memory, rtol=rtol, atol=0, equal_nan=True)
        if not same.all():
            raise AssertionError(f"argument {i}, entry {j}: {int((~same).sum())} of {same.numel()} elements differ")


def _listed(argument: Any) -> list[Tensor]:
    return argument if isinstance(argument, list) else [argument]


def _apart(argument: Any) -> Any:
    """Copies on the CPU in float64."""
    if argument is None:
        return None
    if isinstance(argument, list):
        return [_apart(tensor) for tensor in argument]
    return argument.detach().to("cpu", torch.float64, copy=True)


def _memory(view: Tensor) -> Tensor:
    """All elements of the storage that a view is of."""
    return view.as_strided((view.untyped_storage().nbytes() // view.itemsize,), (1,), 0)


def _on(memory: Tensor, view: Tensor) -> Tensor:
    """What `view` shows of its storage, of a copy of that."""
    return memory.as_strided(view.shape, view.stride(), view.storage_offset())


def run(first: int, cases: int, device: str, backend: str) -> Counter[str]:
    """Checks cases; how many there were of each op."""
    counts: Counter[str] = Counter()
    for number in range(first, first + cases):
        case = Maker(number, device).case()
        try:
            check(case, backend)
        except Exception as error:
            raise AssertionError(f"case {number}, {case.op} {case.options}: {error}") from error
        counts[case.op] += 1
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--backend", default="cuda")
    args = parser.parse_args()
    counts = run(args.first, args.cases, args.device, args.backend)
    print(", ".join(f"{op} {count}" for op, count in sorted(counts.items())), "- none wrong")


if __name__ == "__main__":
    main()
