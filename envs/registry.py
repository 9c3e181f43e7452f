"""Names of environments: which there are, which one is meant, and what to say when there is none."""

import contextlib
import difflib
import importlib
import importlib.util
import inspect
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import gymnasium
from gymnasium.envs.registration import load_env_creator

_VERSION = re.compile(r"-v(\d+)$")
_N_SUGGESTIONS = 3


class UnknownEnvironmentError(ValueError):
    """There is no environment of that name; the message names the nearest ones."""


class MissingDependencyError(ImportError):
    """The environment needs a package that is not installed; the message says which."""


@dataclass(frozen=True, kw_only=True)
class Package:
    """A package whose import registers environments with Gymnasium."""

    name: str
    """Name under which it is imported."""
    prefixes: tuple[str, ...]
    """How the ids of its environments begin."""
    install: str
    """What to type where it is missing."""


PACKAGES = (
    Package(name="minigrid", prefixes=("MiniGrid-", "BabyAI-"), install='pip install -e ".[app]"'),
    Package(name="popgym", prefixes=("popgym-",), install='pip install -e ".[popgym]"'),
    Package(name="ale_py", prefixes=("ALE/",), install='pip install -e ".[atari]"'),
    Package(
        name="memory_gym",
        prefixes=("MortarMayhem", "MysteryPath", "SearingSpotlights", "Endless-"),
        # it asks for an old Gymnasium, and for pygame, whose files would replace those of pygame-ce
        install="pip install --no-deps memory-gym",
    ),
)


def package_of(env_id: str) -> Package | None:
    """The package that the id belongs to, installed or not; None for every other id."""
    return next((package for package in PACKAGES if env_id.startswith(package.prefixes)), None)


def register(package: Package) -> None:
    """Make the environments of the package known to Gymnasium; `MissingDependencyError` where it is not installed."""
    if importlib.util.find_spec(package.name) is None:
        raise MissingDependencyError(f"{package.name} is not installed: {package.install}")
    importlib.import_module(package.name)


def known_ids() -> list[str]:
    """Every environment that `make` can be asked for here: Gymnasium's registry with all packages and our own."""
    for package in PACKAGES:
        with contextlib.suppress(MissingDependencyError):
            register(package)
    return list(gymnasium.registry)


def resolve(env_id: str) -> str:
    """The full name of the environment meant: a name without a version means the newest version.

    Raises:
        UnknownEnvironmentError: there is none; the message names the nearest.
        MissingDependencyError: its package is not installed; the message says how to install it.
    """
    if ":" in env_id:
        raise UnknownEnvironmentError(
            f"environment id {env_id!r}: 'module:id' is not supported, because it would run code that a string names; "
            "import the module in Python and pass the id alone"
        )
    if env_id in gymnasium.registry:
        return env_id
    if (package := package_of(env_id)) is not None:
        register(package)
    ids = known_ids()
    if env_id in ids:
        return env_id
    versions = [known for known in ids if _VERSION.sub("", known) == env_id and known != env_id]
    if versions:
        return max(versions, key=_version)
    raise UnknownEnvironmentError(f"unknown environment {env_id!r}{did_you_mean(env_id, ids)}")


def check_options(env_id: str, options: Iterable[str], allowed: Sequence[str] | None) -> None:
    """Raise `ValueError` for the first option that the environment does not take; None allows all."""
    if allowed is None:
        return
    for name in options:
        if name not in allowed:
            known = f"it takes {', '.join(allowed)}" if allowed else "it takes none"
            raise ValueError(f"{env_id} has no option {name!r}{did_you_mean(name, allowed)}; {known}")


def option_names(env_id: str) -> list[str] | None:
    """Names of the keyword arguments that a registered environment takes; None if it takes any."""
    entry_point = gymnasium.spec(env_id).entry_point
    if entry_point is None:
        return None
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    parameters = inspect.signature(creator).parameters.values()
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return [parameter.name for parameter in parameters if parameter.name not in ("self", "render_mode")]


@contextlib.contextmanager
def missing_dependency(env_id: str) -> Iterator[None]:
    """Turn Gymnasium's complaint about a package that is not installed into ours."""
    try:
        yield
    except gymnasium.error.DependencyNotInstalled as error:
        raise MissingDependencyError(f"{env_id} cannot run here: {error}") from error


def _version(env_id: str) -> int:
    match = _VERSION.search(env_id)
    return int(match[1]) if match else -1


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """The nearest names; the version does not count, and neither does a namespace that was left out."""
    by_spelling: dict[str, str] = {}
    for choice in choices:
        spelling = _VERSION.sub("", choice).lower()
        by_spelling[spelling] = choice
        by_spelling.setdefault(spelling.split("/")[-1], choice)
    wanted = _VERSION.sub("", name).lower()
    near = difflib.get_close_matches(wanted, by_spelling, n=_N_SUGGESTIONS, cutoff=0.6)
    unique = dict.fromkeys(by_spelling[spelling] for spelling in near)
    return f"; did you mean {' or '.join(unique)}?" if unique else ""
