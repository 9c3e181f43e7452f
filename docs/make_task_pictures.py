"""The pictures of docs/tasks.md: an episode of each NumPy task, played by somebody who knows what is hidden.

python docs/make_task_pictures.py                   # all
python docs/make_task_pictures.py fwp/TMaze-v0      # these
"""

import argparse
import pathlib

import numpy as np
from PIL import Image

import envs
from envs.tasks import VECTOR_TASKS

FOLDER = pathlib.Path(__file__).parent / "tasks"
SEED, N_COLORS = 1, 32
STEP_MS, PHYSICAL_STEP_MS, LAST_MS = 450, 50, 1500
OPTIONS = {
    "fwp/TMaze-v0": {"length": 5},
    "fwp/EndlessTMaze-v0": {"length": 5},
    "fwp/RepeatPrevious-v0": {"episode_length": 16},
    "fwp/MaskedCartPole-v0": {"episode_length": 60},
    "fwp/MaskedPendulum-v0": {"episode_length": 80},
}
PHYSICAL = ("fwp/MaskedCartPole-v0", "fwp/MaskedPendulum-v0")  # shown about as fast as they move


def path_of(env_id: str) -> pathlib.Path:
    """`fwp/TMaze-v0` is drawn in `tasks/TMaze.gif`."""
    return FOLDER / f"{env_id.removeprefix('fwp/').rpartition('-v')[0]}.gif"


def episode(env_id: str) -> list[np.ndarray]:
    """What an optimal episode looks like, step by step."""
    env = envs.make(env_id, render_mode="rgb_array", **OPTIONS.get(env_id, {}))
    env.reset(seed=SEED)
    pictures, done = [env.render()], False
    while not done:
        _, _, terminated, truncated, _ = env.step(env.unwrapped.task.oracle_actions()[0])
        done = terminated or truncated
        pictures.append(env.render())
    return pictures


def main() -> None:
    """Draw the tasks named on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ids", nargs="*", help="ids of NumPy tasks; all of them if none is named")
    FOLDER.mkdir(exist_ok=True)
    for env_id in parser.parse_args().ids or VECTOR_TASKS:
        frames = [Image.fromarray(picture).quantize(N_COLORS) for picture in episode(env_id)]
        step_ms = PHYSICAL_STEP_MS if env_id in PHYSICAL else STEP_MS
        durations = [step_ms] * (len(frames) - 1) + [LAST_MS]
        frames[0].save(
            path_of(env_id), save_all=True, append_images=frames[1:], duration=durations, loop=0, optimize=True
        )
        print(path_of(env_id), path_of(env_id).stat().st_size)


if __name__ == "__main__":
    main()
