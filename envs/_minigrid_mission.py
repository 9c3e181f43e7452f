"""Missions as numbers: each word of the text one-hot, over the closed vocabulary of the task."""

import itertools
from collections.abc import Sequence

import numpy as np
from gymnasium import spaces
from minigrid.core.constants import COLOR_NAMES
from minigrid.core.mission import MissionSpace
from minigrid.envs.babyai.core.levelgen import LevelGen
from minigrid.envs.babyai.core.roomgrid_level import BabyAIMissionSpace
from minigrid.minigrid_env import MiniGridEnv

_BABYAI_WORDING = "go to open pick up put next the a object box ball key door on your left right in front of behind you"
_BABYAI_VOCABULARY = (*_BABYAI_WORDING.split(), "and", "then", "after", *COLOR_NAMES)
# the longest clause is "put a red ball in front of you next to a red box in front of you"; "and" and ", then" join two
_CLAUSE_WORDS = 16
_BABYAI_WORDS = {
    ("action",): _CLAUSE_WORDS,
    ("action", "and"): 2 * _CLAUSE_WORDS + 1,
    ("action", "and", "seq"): 4 * _CLAUSE_WORDS + 4,
}


class MissionEncoder:
    """Turns a mission into uint8[max_words * vocabulary]: word after word one-hot, zeros behind the last."""

    def __init__(self, vocabulary: Sequence[str], max_words: int, *, varies: bool) -> None:
        self.varies = varies
        self.vocabulary = tuple(vocabulary)
        self.max_words = max_words
        self.space = spaces.Box(0, 1, (max(1, max_words * len(self.vocabulary)),), np.uint8)
        self._index = {word: index for index, word in enumerate(self.vocabulary)}

    def encode(self, mission: str) -> np.ndarray:
        words = _words(mission)
        unknown = [word for word in words if word not in self._index]
        if unknown or len(words) > self.max_words:
            reason = f"unknown word {unknown[0]!r}" if unknown else f"more than {self.max_words} words"
            raise ValueError(f"mission {mission!r} does not fit its encoding: {reason}")
        tokens = np.zeros(self.space.shape, np.uint8)
        tokens[[place * len(self.vocabulary) + self._index[word] for place, word in enumerate(words)]] = 1
        return tokens


def mission_encoder(env: MiniGridEnv) -> MissionEncoder:
    """The encoder for all missions that a stock environment can set."""
    assert isinstance(env.observation_space, spaces.Dict)
    space = env.observation_space["mission"]
    if isinstance(space, BabyAIMissionSpace):
        kinds = tuple(sorted(env.instr_kinds)) if isinstance(env, LevelGen) else ("action", "and")
        return MissionEncoder(
            _BABYAI_VOCABULARY, _BABYAI_WORDS.get(kinds, _BABYAI_WORDS["action", "and", "seq"]), varies=True
        )
    assert isinstance(space, MissionSpace)
    missions = _missions(space)
    vocabulary = sorted({word for mission in missions for word in _words(mission)})
    return MissionEncoder(vocabulary, max(len(_words(mission)) for mission in missions), varies=len(missions) > 1)


def _missions(space: MissionSpace) -> set[str]:
    return {space.mission_func(*words) for words in itertools.product(*(space.ordered_placeholders or ()))}


def _words(mission: str) -> list[str]:
    return mission.lower().replace(",", " ").split()
