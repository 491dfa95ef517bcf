"""What a plan moves between ranks, counted without building any rank's schedule."""

from __future__ import annotations

import numpy as np

from .layout import beside, elements
from .plan import Assignment, Plan

EXCHANGES = ("gather", "scatter", "copy")


def moved(plan: Plan, assignment: Assignment) -> np.ndarray:
    """Elements of one matrix that cross between ranks: int64 [exchange, sent or received, ranks]."""
    mesh, parameter = plan.mesh, plan.parameters[assignment.parameter]
    state, param = (elements(parameter, assignment.matrix, p, mesh) for p in (parameter.state, parameter.param))
    counts = np.zeros((len(EXCHANGES), 2, mesh.size), dtype=np.int64)
    for owner in plan.owners(assignment):
        given = state * beside(mesh, parameter.state, owner)
        taken = param * beside(mesh, parameter.param, owner)
        given[owner] = 0
        counts[0, 0] += given
        counts[0, 1, owner] += given.sum()
        if assignment.copies:
            replicas = len(plan.replicas(assignment, owner))
            counts[2, 0] += taken * (replicas - 1)
            counts[2, 1] += param * (taken == 0)
        taken[owner] = 0
        counts[1, 0, owner] += taken.sum()
        counts[1, 1] += taken
    return counts
