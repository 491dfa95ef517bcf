"""setup.py's decisions: whether to build, for which architectures, from which files."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def fake_nvcc(folder: Path) -> Path:
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return nvcc


def test_mode_is_auto_unless_set(setup_py):
    assert setup_py.requested_mode({}) == "auto"
    assert [setup_py.requested_mode({"MUON_KERNELS_CUDA": mode}) for mode in ("auto", "require", "skip")] == [
        "auto",
        "require",
        "skip",
    ]


@pytest.mark.parametrize("value", ["", "1", "Require", "off"])
def test_unknown_mode_names_the_allowed_ones(setup_py, value):
    with pytest.raises(ValueError, match="auto, require, skip"):
        setup_py.requested_mode({"MUON_KERNELS_CUDA": value})


def test_nvcc_is_searched_in_cuda_home_then_path_then_default(setup_py, tmp_path):
    home, path, default = (fake_nvcc(tmp_path / name) for name in ("home", "path", "default"))
    environ = {"CUDA_HOME": str(tmp_path / "home"), "PATH": str(tmp_path / "path" / "bin")}
    find = setup_py.find_nvcc
    assert find(environ, tmp_path / "default") == home
    assert find({"PATH": environ["PATH"]}, tmp_path / "default") == path
    assert find({"PATH": ""}, tmp_path / "default") == default
    assert find({"PATH": ""}, tmp_path / "nowhere") is None


def test_cuda_home_without_nvcc_means_no_nvcc(setup_py, tmp_path):
    fake_nvcc(tmp_path / "path")
    environ = {"CUDA_HOME": str(tmp_path / "missing"), "PATH": str(tmp_path / "path" / "bin")}
    assert setup_py.find_nvcc(environ) is None
    assert setup_py.nvcc_to_use(environ) is None
    with pytest.raises(RuntimeError, match="nvcc was not found"):
        setup_py.nvcc_to_use({**environ, "MUON_KERNELS_CUDA": "require"})


def test_skip_ignores_nvcc(setup_py, tmp_path):
    fake_nvcc(tmp_path)
    assert setup_py.nvcc_to_use({"CUDA_HOME": str(tmp_path), "MUON_KERNELS_CUDA": "skip"}) is None


def test_elementwise_kernels_are_built_for_what_nvcc_knows_and_ptx_of_the_lowest(setup_py):
    assert setup_py.gencode_flags("elementwise", {"80", "86", "90", "90a"}) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_80,code=compute_80",
    ]
    assert setup_py.gencode_flags("elementwise", {"90", "120"})[-1] == "-gencode=arch=compute_90,code=compute_90"


def test_hopper_kernels_are_built_for_sm_90a_alone(setup_py):
    assert setup_py.gencode_flags("sm90", {"80", "90", "90a"}) == ["-gencode=arch=compute_90a,code=sm_90a"]
    with pytest.raises(RuntimeError, match="csrc/sm90"):
        setup_py.gencode_flags("sm90", {"75", "80"})


def test_supported_architectures_include_the_specific_variants(setup_py, tmp_path):
    nvcc = fake_nvcc(tmp_path)
    nvcc.write_text("#!/bin/sh\necho sm_80\necho sm_90\n")
    assert setup_py.supported_architectures(nvcc) == {"80", "90", "90a"}


def test_ninja_file_compiles_every_source_for_its_folder_and_links_once(setup_py, tmp_path):
    csrc = tmp_path / "with space"
    for name in ("bindings.cpp", "api.h", "elementwise/op.cu", "elementwise/op.cuh", "sm90/gemm.cu"):
        (csrc / name).parent.mkdir(parents=True, exist_ok=True)
        (csrc / name).touch()
    text = setup_py.ninja_file(csrc, tmp_path / "_C.so", Path("/nvcc"), {"80", "90", "90a"}, ["/include"])
    builds = {line.split(":")[0].split()[1]: line for line in text.splitlines() if ": compile" in line}
    assert set(builds) == {"bindings.cpp.o", "elementwise/op.cu.o", "sm90/gemm.cu.o"}
    assert "with$ space/sm90/gemm.cu" in builds["sm90/gemm.cu.o"]
    assert "  flags = -gencode=arch=compute_90a,code=sm_90a\n" in text
    assert text.count("-I/include") == 1, "only the bindings need headers from elsewhere"
    assert text.count(": link ") == 1 and "-cudart=static" in text


def test_every_source_of_the_repository_is_found(setup_py):
    found = {path.relative_to(ROOT / "csrc").as_posix() for path in setup_py.sources(ROOT / "csrc")}
    assert found == {p.relative_to(ROOT / "csrc").as_posix() for p in (ROOT / "csrc").rglob("*.c[pu]*")} - {
        p.relative_to(ROOT / "csrc").as_posix() for p in (ROOT / "csrc").rglob("*.cuh")
    }
