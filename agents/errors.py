"""What can go wrong at the command line, each with its exit code and one clear line."""


class AgentsError(Exception):
    """A fault to be shown as its message alone, without a traceback."""

    exit_code = 1


class UsageError(AgentsError):
    """The user asked for something that does not exist or cannot work. One line per problem."""

    exit_code = 2


class EnvironmentFaultError(AgentsError):
    """An environment raised, or returned a value that must not reach the weights."""

    exit_code = 3


class RunFileError(AgentsError):
    """A run directory, model or metrics file is missing, truncated, foreign or damaged, or cannot be written."""

    exit_code = 4


class DivergedRunError(AgentsError):
    """The weights of a run became NaN or infinite. What was saved before is still there."""

    exit_code = 5


class InterruptedRunError(AgentsError):
    """The user stopped the run with Ctrl-C (exit 130) or SIGTERM (exit 143). What was learned is saved."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code
