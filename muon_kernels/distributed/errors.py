"""What a distributed step raises: the same error on every rank of a team, before anything has been changed.

Only CollectiveFailed can come later, when a peer is lost in the middle of a step.
"""


class DistributedError(RuntimeError):
    """The base of the errors below."""


class UnsupportedPlacement(DistributedError):
    """A parameter lies on its ranks in a way that has no plan."""


class RanksDisagree(DistributedError):
    """The ranks of a team hold different parameters, options or gradients."""


class RankFailed(DistributedError):
    """Some rank found its own input to be wrong; the message is that rank's."""


class CollectiveFailed(DistributedError):
    """A collective did not complete: a peer died, the group was destroyed, or the time was up.

    If the message names the roll call, nothing has been changed. Otherwise ranks may have come to different points of
    the step: go back to a checkpoint.
    """
