"""What a result must say about where it was measured: device, clocks, driver, versions, commit; no names, no paths."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

GPU_FIELDS = (
    "driver_version",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "power.draw",
    "power.limit",
    "temperature.gpu",
)


def software() -> dict[str, Any]:
    """Versions of everything whose change can move a number."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = None
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "torch": torch.__version__,
        "triton": triton_version,
        "cuda": torch.version.cuda,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """The device's name and size."""
    if device.type != "cuda":
        return {"device": _cpu_name(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return {
        "device": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "l2_bytes": properties.L2_cache_size,
    }


def gpu_state(device: torch.device) -> dict[str, str]:
    """Driver, clocks, power and temperature as nvidia-smi reads them now; nothing is ever set."""
    if device.type != "cuda":
        return {}
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = ["nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader"]
    values = _output(command + ([f"--id=GPU-{uuid}"] if uuid else [])) or _output(command)
    return dict(zip(GPU_FIELDS, (v.strip() for v in values.splitlines()[0].split(",")), strict=False)) if values else {}


def commit() -> str | None:
    """The commit of this tree, "-dirty" appended if tracked files differ from it; None outside a repository."""
    found = _output(["git", "describe", "--always", "--abbrev=40", "--dirty", "--exclude=*"])
    return found.strip() or None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, cwd=Path(__file__).parent)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
