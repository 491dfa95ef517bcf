"""What a distributed step raises. Every rank of a team gets the error, before anything has been changed."""


class DistributedError(RuntimeError):
    """The base of the errors below."""


class UnsupportedPlacement(DistributedError):
    """A parameter lies on its ranks in a way that has no plan."""


class RanksDisagree(DistributedError):
    """The ranks of a team hold different parameters, options or gradients."""


class RankFailed(DistributedError):
    """Some rank found its own input to be wrong; the message is that rank's."""


class CollectiveFailed(DistributedError):
    """A collective did not complete: a peer died, the group was destroyed, or the time was up."""
