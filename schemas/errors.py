"""Errors, named by their consequence. Each carries the exit code that the command line returns."""


class ProponentError(Exception):
    """Something the user can mend: the message says what was expected, what was found and what to do."""

    exit_code = 1


class ConfigError(ProponentError):
    """An option or an input is wrong; nothing was written."""

    exit_code = 2


class ArtifactMismatch(ProponentError):
    """Two artifacts do not belong together (other model, tokenizer, content or format version): refused."""

    exit_code = 3


class FailureBudgetExceeded(ProponentError):
    """More records were refused than the job may lose."""

    exit_code = 4


class DiskFull(ProponentError):
    """There is no room for the output; what is finished of it stays, and the same command resumes."""

    exit_code = 5


ERRORS_BY_NAME = {error.__name__: error for error in (ConfigError, ArtifactMismatch, FailureBudgetExceeded, DiskFull)}
