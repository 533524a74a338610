"""The end of a run over ranks."""


class RankLostError(RuntimeError):
    """Another rank is gone, or did not answer in time: the run cannot go on."""
