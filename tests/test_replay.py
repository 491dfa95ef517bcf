"""When launches are replayed as a graph (csrc/sm90/replay.h), without a GPU: over a CUDA runtime that takes notes."""

import subprocess

import pytest
from test_build import ROOT

NOTHING_LEFT = "0 0 0 0 0 0"
"""Streams, captures, graphs and executables; the thread's capture mode; calls that could invalidate another capture."""


@pytest.fixture(scope="module")
def replay(nvcc, tmp_path_factory):
    """The command tests/host/replay.cpp: its lines, without those of the end."""
    target = tmp_path_factory.mktemp("replay") / "replay"
    source = ROOT / "tests" / "host" / "replay.cpp"
    subprocess.run([nvcc, "-std=c++17", "-cudart=none", source, "-o", target], check=True)

    def run(captured, failing="none"):
        command = [target, failing, *(str(int(x)) for x in captured)]
        *lines, left = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
        assert left.strip() == NOTHING_LEFT
        return [line.strip() for line in lines]

    return run


def test_from_the_third_call_on(replay):
    assert replay([False] * 5) == ["enqueued 0", "enqueued 0", "recorded replayed 0", "replayed 0", "replayed 0"]


def test_a_captured_stream_gets_the_launches_and_does_not_count(replay):
    lines = replay([False, True, True, False, True, False, True, False])
    assert [line.split()[0] for line in lines] == ["enqueued"] * 5 + ["recorded"] + ["enqueued", "replayed"]


@pytest.mark.parametrize(
    "function",
    ["cudaStreamCreateWithFlags", "cudaStreamBeginCapture", "record", "cudaStreamEndCapture", "cudaGraphInstantiate"],
)
def test_what_cannot_be_recorded_is_enqueued_and_not_recorded_again(replay, function):
    lines = replay([False] * 5, failing=function)
    assert lines[2].removeprefix("recorded ") == "cleared enqueued 0"
    assert lines[3:] == ["enqueued 0", "enqueued 0"]


@pytest.mark.parametrize(("function", "call"), [("enqueue", 0), ("cudaStreamIsCapturing", 0), ("cudaGraphLaunch", 2)])
def test_other_errors_are_returned(replay, function, call):
    errors = [line.split()[-1] for line in replay([False] * 4, failing=function)]
    assert [i for i, error in enumerate(errors) if error != "0"] == [call]
    assert errors[call] == "999"
