"""The errors that users meet: what is wrong with the value in it, then one thing to do."""


class MlicError(Exception):
    """An error with a hint and an exit code.

    Both texts go to `Exception.__init__`, so the error survives pickling between Ray workers and the driver.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"Hint: {hint}")  # a traceback shows it

    def __str__(self) -> str:
        return self.message


class ConfigError(MlicError):
    """A flag, a configuration file or a combination of settings is wrong."""

    exit_code = 2


class DataError(MlicError):
    """Images, labels, shards, bundles or predictions are not what they should be."""

    exit_code = 3


class ClusterError(MlicError):
    """Ray, SLURM, a node, a GPU or a disk is missing or not enough."""

    exit_code = 4


class RunError(MlicError):
    """The run failed by itself, by a loss that is not finite for example."""

    exit_code = 5


class PartialError(MlicError):
    """Stopped or finished in part; what is written stays, and the same command resumes from there."""

    exit_code = 6
