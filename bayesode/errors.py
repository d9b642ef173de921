"""Every error that a user can cause, with what was needed, what came and how to mend it."""


class BayesODEError(Exception):
    """Base of all errors of this package."""


class ShapeError(BayesODEError, ValueError):
    """A tensor has the wrong shape."""


class DataError(BayesODEError, ValueError):
    """The data, a file or an argument cannot be used as they are."""


class SolverError(BayesODEError, RuntimeError):
    """A differential equation could not be solved."""


class FitError(BayesODEError, RuntimeError):
    """A fit cannot be started or went wrong."""
