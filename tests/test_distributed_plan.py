"""The planner, for any parameters on any mesh: every element arrives once, loads and waves keep to their bounds."""

import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from muon_kernels.distributed.costs import HARDWARE, cheaper_redundant, ns_seconds
from muon_kernels.distributed.exchange import schedule
from muon_kernels.distributed.layout import Mesh, Parameter, Placement, held, local_shape, matrices
from muon_kernels.distributed.plan import plan
from muon_kernels.distributed.traffic import EXCHANGES, moved

OPTIONS = {"steps": 5, "element_size": 2, "hardware": HARDWARE["cpu"]}
COPY = Placement()
MESHES = [(1,), (2,), (3,), (4,), (2, 2), (2, 3), (3, 2), (2, 2, 2)]


@st.composite
def parameters(draw, name, mesh_shape):
    leading = tuple(draw(st.lists(st.integers(1, 3), max_size=1)))
    rows, cols = (draw(st.lists(st.integers(0, 9), min_size=1, max_size=2)) for _ in range(2))
    shape = (*leading, sum(rows), sum(cols))
    param = tuple(
        Placement(draw(st.integers(0, len(shape) - 1)), draw(st.integers(1, 3))) if draw(st.booleans()) else COPY
        for _ in mesh_shape
    )
    state = param if draw(st.booleans()) else tuple(Placement(0) if p == COPY else p for p in param)
    return Parameter(name, shape, state, param, (tuple(rows), tuple(cols)))


@st.composite
def problems(draw):
    mesh_shape = draw(st.sampled_from(MESHES))
    count = draw(st.integers(0, 5))
    return Mesh.grid(*mesh_shape), [draw(parameters(f"p{i}", mesh_shape)) for i in range(count)]


def local_indices(parameter, placements, mesh, rank):
    """The flat global index of every element of a rank's local tensor."""
    runs = [held(n, d, placements, mesh.shape, mesh.coordinates[rank]) for d, n in enumerate(parameter.shape)]
    indices = [np.concatenate([np.arange(a, b) for a, b in r] or [np.arange(0)]).astype(int) for r in runs]
    return np.ravel_multi_index(np.ix_(*indices), parameter.shape) if parameter.shape else np.zeros(())


def cut(array, piece):
    return array[piece.lead][piece.row : piece.row + piece.rows, piece.col : piece.col + piece.cols]


def all_to_all(exchanges, buffers):
    """What torch's all_to_all_single does to (send, receive) of every rank; the splits of every pair must agree."""
    offsets = [np.concatenate([[0], np.cumsum(e.send_splits)]) for e in exchanges]
    for to, exchange in enumerate(exchanges):
        assert exchange.receive_splits == tuple(e.send_splits[to] for e in exchanges)
        assert exchange.receive_splits[to] == 0
        came = np.concatenate([send[o[to] : o[to + 1]] for (send, _), o in zip(buffers, offsets, strict=True)])
        buffers[to][1][: len(came)] = came
    return [receive for _, receive in buffers]


def empty_buffers(exchange):
    return [np.full(size, -1) for size in exchange.sizes]


def write(buffer, segment, values):
    buffer[segment.offset : segment.stop] = values.ravel()


def read(buffer, segment):
    return buffer[segment.offset : segment.stop].reshape(segment.piece.rows, segment.piece.cols)


def simulate(made):
    """Runs a plan on all ranks; a "chain" turns the index of an element into its matrix's number and that index."""
    mesh, ranks = made.mesh, range(made.mesh.size)
    state = [[local_indices(p, p.state, mesh, r) for p in made.parameters] for r in ranks]
    result = [[np.full(local_shape(p, p.param, mesh, r), -1) for p in made.parameters] for r in ranks]
    for waves in zip(*(schedule(made, r) for r in ranks), strict=True):
        filled = []
        for r, wave in enumerate(waves):
            send, receive = empty_buffers(wave.gather)
            for buffer, segments in ((send, wave.gather.send), (receive, wave.gather.kept)):
                for s in segments:
                    assert (read(buffer, s) == -1).all()
                    write(buffer, s, cut(state[r][made.assignments[s.number].parameter], s.piece))
            assert all(s.offset == sum(wave.gather.send_splits) for s in wave.gather.discarded)
            filled.append((send, receive))
        gathered = all_to_all([w.gather for w in waves], filled)
        filled = []
        for wave, buffer in zip(waves, gathered, strict=True):
            whole = {n: np.full(made.assignments[n].matrix[3:], -1) for n in wave.owned}
            for s in wave.gather.arrived:
                target = whole[s.number][s.piece.at_row :, s.piece.at_col :][: s.piece.rows, : s.piece.cols]
                assert (target == -1).all()
                target[:] = read(buffer, s)
            assert all((matrix >= 0).all() for matrix in whole.values())
            send, receive = empty_buffers(wave.scatter)
            for out, segments in ((send, wave.scatter.send), (receive, wave.scatter.kept)):
                for s in segments:
                    write(out, s, whole[s.number][s.piece.at_row :, s.piece.at_col :][: s.piece.rows, : s.piece.cols])
            filled.append((send, receive))
        scattered = all_to_all([w.scatter for w in waves], filled)
        filled = []
        for wave, buffer in zip(waves, scattered, strict=True):
            mine = {(s.number, s.piece.at_row, s.piece.at_col): s for s in wave.scatter.arrived}
            send, receive = empty_buffers(wave.copy)
            for s in wave.copy.send:
                write(send, s, read(buffer, mine[s.number, s.piece.at_row, s.piece.at_col]))
            filled.append((send, receive))
        copied = all_to_all([w.copy for w in waves], filled)
        for r, wave in enumerate(waves):
            for exchange, buffer in ((wave.scatter, scattered[r]), (wave.copy, copied[r])):
                for s in exchange.arrived:
                    cut(result[r][made.assignments[s.number].parameter], s.piece)[:] = read(buffer, s)
    return result


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([1, 40, 10**6]))
def test_every_element_arrives_where_it_belongs(problem, wave_bytes):
    mesh, params = problem
    made = plan(mesh, params, **OPTIONS, wave_bytes=wave_bytes)
    for rank, tensors in enumerate(simulate(made)):
        for parameter, local in zip(params, tensors, strict=True):
            assert (local == local_indices(parameter, parameter.param, mesh, rank)).all()


def test_all_owners_work_in_every_wave_of_two_replicas():
    rows = (Placement(), Placement(0))
    params = [Parameter(f"{i}", (64, 128), rows, rows, ((64,), (128,))) for i in range(8)]
    made = plan(Mesh.grid(2, 2), params, **OPTIONS, wave_bytes=1)  # as much as the largest matrix needs
    assert made.waves == 2
    for wave in range(2):
        assert sorted(a.owner for a in made.assignments if a.wave == wave) == [0, 1, 2, 3]


@settings(max_examples=120, deadline=None, derandomize=True)
@given(problems(), st.sampled_from([1, 40, 10**6]), st.randoms())
def test_loads_waves_and_order(problem, wave_bytes, random):
    mesh, params = problem
    made = plan(mesh, params, **OPTIONS, wave_bytes=wave_bytes)
    costs = [ns_seconds(a.matrix.rows, a.matrix.cols, 5, OPTIONS["hardware"]) for a in made.assignments]
    loads, redundant = np.zeros(mesh.size), np.zeros(mesh.size)
    for a, cost in zip(made.assignments, costs, strict=True):
        owners = sorted({made.owner_for(a, r) for r in range(mesh.size)})
        loads[owners] += cost
        redundant[owners] += cost if a.kind == "redundant" else 0
    assert np.allclose(loads, made.loads)
    assert loads.max() <= (redundant.max() + loads.mean() + max(costs, default=0)) * (1 + 1e-9)
    assert sorted((a.parameter, a.matrix) for a in made.assignments) == sorted(
        (i, m) for i, p in enumerate(params) for m in matrices(p)
    )

    def buffers(schedules):
        return [
            2 * size for waves in schedules for w in waves for e in (w.gather, w.scatter, w.copy) for size in e.sizes
        ]

    schedules = [schedule(made, rank) for rank in range(mesh.size)]
    for wave in (wave for waves in schedules for wave in waves):
        shapes = [made.assignments[number].matrix[3:] for number in wave.owned]
        assert shapes == sorted(shapes)  # equal ones are neighbours
    alone = [
        schedule(replace(made, assignments=(a._replace(wave=0),)), rank)
        for a in made.assignments
        for rank in range(mesh.size)
    ]
    assert max(buffers(schedules), default=0) <= max(wave_bytes, max(buffers(alone), default=0))
    for a in made.assignments:
        waves = [schedule(replace(made, assignments=(a._replace(wave=0),)), rank)[0] for rank in range(mesh.size)]
        sent = [[sum(getattr(wave, name).send_splits) for wave in waves] for name in EXCHANGES]
        assert (moved(made, a)[:, 0] == sent).all() and (moved(made, a).sum(axis=2)[:, 1] == np.sum(sent, axis=1)).all()
        assert (a.gathers, a.scatters, a.copies) == tuple(sum(row) > 0 for row in sent)
        assert (a.kind == "local") == (not np.any(sent) and a.kind != "redundant")
        assert sorted(made.owners(a)) == sorted({made.owner_for(a, rank) for rank in range(mesh.size)})

    shuffled = list(params)
    random.shuffle(shuffled)
    again = plan(mesh, shuffled, **OPTIONS, wave_bytes=wave_bytes)
    assert [(params[a.parameter].name, *a[1:]) for a in made.assignments] == [
        (shuffled[a.parameter].name, *a[1:]) for a in again.assignments
    ]
    assert plan(mesh, params, **OPTIONS, wave_bytes=wave_bytes).digest == made.digest


def whole(name, shape, placements):
    return Parameter(name, shape, placements, placements, ((shape[-2],), (shape[-1],)))


SHAPES = [(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336), (7, 5), (1, 9)]


@pytest.mark.parametrize(
    ("sides", "placements"),
    [
        ((4096,), (Placement(0),)),
        ((32, 128), (COPY, Placement(1))),
        ((512, 8), (Placement(0, 8), Placement(0))),
        ((8, 64, 8), (COPY, Placement(0), Placement(1))),
    ],
)
def test_thousands_of_ranks(sides, placements):
    mesh = Mesh.grid(*sides)
    made = plan(mesh, [whole(f"{i}", SHAPES[i % 6], placements) for i in range(60)], **OPTIONS)
    biggest = max(ns_seconds(*shape, 5, OPTIONS["hardware"]) for shape in SHAPES)
    assert max(made.loads) <= sum(made.loads) / mesh.size + biggest
    owners = {made.owner_for(a, 0) for a in made.assignments}
    ranks = sorted({0, 1, 777, 4095, *sorted(owners)[:4]})
    schedules = {rank: schedule(made, rank) for rank in ranks}
    for a in ranks:
        for b in ranks:
            for mine, theirs in zip(schedules[a], schedules[b], strict=True):
                for name in EXCHANGES:
                    assert getattr(mine, name).send_splits[b] == getattr(theirs, name).receive_splits[a]
    number = max(range(len(made.assignments)), key=lambda i: made.assignments[i].matrix.rows)
    waves = schedule(made, made.owner_for(made.assignments[number], 0))
    received = sum(s.stop - s.offset for w in waves for s in w.gather.arrived if s.number == number)
    assert received == 14336 * 4096


def test_whole_matrices_stay_where_they_are():
    experts = whole("experts", (8, 64, 64), (Placement(0),))
    dense = [whole(f"dense{i}", (64, 96), (Placement(0),)) for i in range(4)]
    made = plan(Mesh.grid(4), [experts, *dense], **OPTIONS)
    kinds = {a.matrix.lead: a for a in made.assignments if a.parameter == 0}
    assert all(a.kind == "local" and a.owner == lead[0] // 2 for lead, a in kinds.items())
    assert sorted(a.owner for a in made.assignments if a.parameter) == [0, 1, 2, 3]


@pytest.mark.parametrize("element_size", [2, 8])
def test_small_replicated_matrices_are_redundant_and_large_ones_spread(element_size):
    params = [whole(f"{rows}", (rows, 64), (COPY,)) for rows in (2, 8, 64)]
    assert cheaper_redundant(2, 64, 5, OPTIONS["hardware"])
    made = plan(Mesh.grid(4), params, **OPTIONS | {"element_size": element_size})
    kinds = {made.parameters[a.parameter].name: a.kind for a in made.assignments}
    assert kinds == {"2": "redundant", "8": "owner", "64": "owner"}


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["deep", "pickle"]
)
def test_copies_of_a_plan_are_the_plan(copied):
    params = [whole(f"{i}", (12, 6), placements) for i, placements in enumerate([(COPY, COPY), (COPY, Placement(0))])]
    made = plan(Mesh.grid(2, 2), params, **OPTIONS)
    again = copied(made)
    assert again == made and again.digest == made.digest and schedule(again, 1) == schedule(made, 1)


def test_chunks_are_torchs():
    assert [held(7, 0, (Placement(0),), (4,), (i,)) for i in range(4)] == [((0, 2),), ((2, 4),), ((4, 6),), ((6, 7),)]
    assert [held(3, 0, (Placement(0),), (4,), (i,)) for i in range(4)] == [((0, 1),), ((1, 2),), ((2, 3),), ()]
    strided = (Placement(0, 2), Placement(0))
    assert held(8, 0, strided, (2, 2), (0, 1)) == ((4, 6),) and held(8, 0, strided, (2, 2), (1, 0)) == ((2, 4),)
    assert held(8, 0, (Placement(0, 2), COPY), (2, 2), (0, 0)) == ((0, 2), (4, 6))


@pytest.mark.parametrize(
    ("params", "options", "message"),
    [
        ([whole("w", (2, 2), (COPY,))] * 2, {}, r"parameters must have distinct names, got \['w', 'w'\]"),
        ([whole("w", (2, 2), (COPY,) * 2)], {}, "w must have one placement for each of the mesh's 1 dimensions, got 2"),
        ([], {"wave_bytes": 0}, "wave_bytes must be > 0, got 0"),
    ],
)
def test_bad_input(params, options, message):
    with pytest.raises(ValueError, match=message):
        plan(Mesh.grid(2), params, **OPTIONS, **options)
