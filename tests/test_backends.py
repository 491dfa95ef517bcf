"""Selection is explicit or inspectable, never silent."""

import threading

import pytest
import torch

import muon_kernels
from muon_kernels import backends
from muon_kernels.backends import reference
from muon_kernels.ops import gemm_add

CPU = torch.device("cpu")


def test_auto_on_the_cpu_is_the_reference():
    assert backends.select("gemm_add", CPU, ()) is reference.gemm_add


def test_a_named_backend_that_cannot_run_raises_with_its_reason():
    x = torch.zeros(1, 2, 2)
    with (
        muon_kernels.use_backend("cuda"),
        pytest.raises(
            muon_kernels.BackendUnavailable, match=r"no backend of 'cuda' can run gemm_add: cuda: device is cpu"
        ),
    ):
        gemm_add([x], [x], [], [torch.empty_like(x)])


def test_environment_variable(monkeypatch):
    monkeypatch.setenv("MUON_KERNELS_BACKEND", "cuda")
    with pytest.raises(muon_kernels.BackendUnavailable):
        backends.select("apply", CPU, ())
    with muon_kernels.use_backend("reference"):
        assert backends.select("apply", CPU, ()) is reference.apply


def test_unknown_names(monkeypatch):
    with pytest.raises(ValueError, match=r"backend must be 'auto' or some of .*reference, got 'cublas'"):
        muon_kernels.use_backend("cublas").__enter__()
    monkeypatch.setenv("MUON_KERNELS_BACKEND", "nope")
    with pytest.raises(ValueError, match="got 'nope'"):
        backends.requested()


def test_several_names_mean_the_first_that_can():
    with muon_kernels.use_backend("cuda,reference"):
        assert backends.select("gemm_add", CPU, ()) is reference.gemm_add
    with pytest.raises(ValueError, match="got 'cuda,cublas'"):
        muon_kernels.use_backend("cuda,cublas").__enter__()


def test_auto_goes_down_the_list_op_by_op(monkeypatch):
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(
        backends._backend("cuda"), "unavailable_reason", lambda op, *_: None if op == "apply" else "no such card"
    )
    monkeypatch.setattr(backends._backend("triton"), "unavailable_reason", lambda op, *_: "no such op")
    assert backends.select("apply", cuda, ()) is backends._backend("cuda").apply
    assert backends.select("gemm_add", cuda, ()) is reference.gemm_add
    monkeypatch.setattr(backends._backend("triton"), "unavailable_reason", lambda *_: None)
    assert backends.select("gemm_add", cuda, ()) is backends._backend("triton").OPS["gemm_add"]
    with muon_kernels.use_backend("cuda"), pytest.raises(backends.BackendUnavailable, match="cuda: no such card"):
        backends.select("gemm_add", cuda, ())


def test_use_backend_ends_with_its_block_and_stays_in_its_thread():
    seen = []
    with muon_kernels.use_backend("reference"):
        assert backends.requested() == "reference"
        thread = threading.Thread(target=lambda: seen.append(backends.requested()))
        thread.start()
        thread.join()
    assert seen == ["auto"]
    assert backends.requested() == "auto"


def test_explain_names_every_op_and_every_refusal():
    text = muon_kernels.explain("cpu")
    assert text.startswith("device cpu, backend requested: auto")
    for op in backends.OP_NAMES:
        (line,) = [line for line in text.splitlines() if line.startswith(op + " ")]
        assert line.split()[1] == "reference"
        assert "cuda: " in line
    with muon_kernels.use_backend("cuda"):
        assert "nobody" in muon_kernels.explain("cpu")


def test_every_backend_names_only_known_ops():
    for name in backends.NAMES:
        assert set(backends._backend(name).OPS) <= set(backends.OP_NAMES)
    assert set(reference.OPS) == set(backends.OP_NAMES)


def refuse(monkeypatch, name, *ops):
    """Makes the backend refuse these ops alone."""
    monkeypatch.setattr(backends._backend(name), "unavailable_reason", lambda op, *_: f"no {op}" if op in ops else None)


def test_several_ops_in_one_call_are_of_the_backend_that_would_run_them(monkeypatch):
    device, parts = torch.device("cuda", 0), backends.WHOLE_OPS["orthogonalize"]
    cuda, triton = (backends._backend(name).WHOLES["orthogonalize"] for name in ("cuda", "triton"))

    def chosen(request):
        return backends.whole("orthogonalize", device, (), request)

    for name in ("cuda", "triton"):
        refuse(monkeypatch, name)
    assert chosen("auto") is chosen("cuda") is chosen("cuda,triton") is cuda
    assert chosen("triton") is chosen("triton,reference") is chosen("triton,cuda") is triton
    assert chosen("reference,triton") is None
    refuse(monkeypatch, "cuda", "orthogonalize")
    assert chosen("auto") is chosen("cuda") is chosen("cuda,triton") is None
    refuse(monkeypatch, "cuda", "orthogonalize", *parts[1:])
    assert chosen("auto") is chosen("cuda,triton") is None
    refuse(monkeypatch, "cuda", "orthogonalize", *parts)
    assert chosen("auto") is chosen("cuda,triton") is triton
    assert chosen("cuda") is chosen("cuda,reference") is None
    refuse(monkeypatch, "triton", "orthogonalize", *parts)
    assert chosen("auto") is chosen("triton") is None


def test_auto_says_who_did_not_run_several_ops_in_one_call(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_logged", set())
    refuse(monkeypatch, "cuda", "orthogonalize", *backends.WHOLE_OPS["orthogonalize"])
    refuse(monkeypatch, "triton")
    with caplog.at_level("INFO", "muon_kernels"):
        for _ in range(2):
            backends.whole("orthogonalize", torch.device("cuda", 0), (), "auto")
    assert caplog.messages == [f"{op} does not run on cuda: no {op}" for op in backends.WHOLE_OPS["orthogonalize"]]


def test_what_a_backend_does_in_one_call_is_made_of_known_ops():
    assert all(set(ops) <= set(backends.OP_NAMES) for ops in backends.WHOLE_OPS.values())
    for name in backends.NAMES:
        assert set(getattr(backends._backend(name), "WHOLES", {})) <= set(backends.WHOLE_OPS)
