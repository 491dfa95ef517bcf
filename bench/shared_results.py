"""The results file of several ranks, in the form of the other benchmarks: rank 0 writes it after every number."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist

from . import environment
from .ceilings import Ceilings
from .ranks import Ranks

Kind = Literal["benchmarks", "missing", "checks", "link"]

SWITCHES = ("NCCL_NVLS_ENABLE", "TORCH_SYMM_MEM_DISABLE_MULTICAST")
"""Environment variables that move times between GPUs."""


class SharedResults:
    """What has been found so far; the same on every rank."""

    def __init__(self, path: Path, ranks: Ranks, ceilings: Ceilings, commit: str | None) -> None:
        self._path, self._ranks, self._ceilings = path, ranks, ceilings
        self._commit = commit or environment.commit()
        self._machine = environment.software() | environment.hardware(ranks.device)
        self._machine |= {"ranks": ranks.world, "backend": dist.get_backend()}
        self._machine |= {name: os.environ.get(name) for name in SWITCHES}
        self._lists: dict[Kind, list[dict[str, Any]]] = {"benchmarks": [], "missing": [], "checks": [], "link": []}

    def __getitem__(self, kind: Kind) -> list[dict[str, Any]]:
        return self._lists[kind]

    def add(self, kind: Kind, entry: dict[str, Any], text: str) -> None:
        """Appends to a list and shows `text`."""
        self._lists[kind].append(entry)
        if self._ranks.rank == 0:
            print(f"{self._ranks.elapsed:6.1f} s  {text}", flush=True)
            self._path.write_text(json.dumps(self._as_json(), indent=1) + "\n")

    def _as_json(self) -> dict[str, Any]:
        ours = {
            "budget_seconds": self._ranks.budget,
            "elapsed_seconds": self._ranks.elapsed,
            "smoke": self._ranks.smoke,
            "ceilings": asdict(self._ceilings),
        }
        return {
            "machine_info": self._machine,
            "commit_info": {"id": self._commit},
            "datetime": datetime.now(timezone.utc).isoformat(),
            "benchmarks": self._lists["benchmarks"],
            "muon_kernels": ours | {kind: found for kind, found in self._lists.items() if kind != "benchmarks"},
        }
