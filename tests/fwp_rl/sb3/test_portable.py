"""Model files: what comes back from them, and what a stranger's file cannot do."""

import copy
import hashlib
import importlib
import json
import pickle
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import safetensors.torch
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.torch_layers import FlattenExtractor

from fwp_rl import DeltaConfig
from fwp_rl.memories import ContinuousDeltaConfig, LinearAttentionConfig
from fwp_rl.registry import memory_configs
from fwp_rl.sb3 import MemoryActorCriticPolicy, MemoryPPO, ModelFileError, load_policy
from fwp_rl.sb3.portable import CONFIG, MANIFEST, WEIGHTS, _memory_config

BOX = spaces.Box(-1, 1, (5,))
IMAGE = spaces.Box(0, 255, (36, 36, 3), np.uint8)
DISCRETE = spaces.Discrete(4)
SPACES = [
    BOX,
    spaces.Box(np.array([-np.inf, -1.5]), np.array([np.inf, 2.25]), dtype=np.float64),
    spaces.Box(-(2**62), 2**62 + 1, (2,), np.int64),
    IMAGE,
    DISCRETE,
    spaces.MultiDiscrete([2, 5]),
    spaces.MultiBinary(3),
    spaces.MultiBinary([2, 3]),
    spaces.Dict({"z": IMAGE, "a": BOX, "task": spaces.Discrete(3)}),
]
ACTIONS = [
    DISCRETE,
    spaces.Discrete(3, start=-2),
    spaces.MultiDiscrete([2, 3], start=[1, -1]),
    spaces.MultiBinary(3),
    spaces.Box(np.array([-1.0, -3.0], dtype=np.float32), np.array([1.0, 0.5], dtype=np.float32)),
]


def assert_same_policy(first: MemoryActorCriticPolicy, second: MemoryActorCriticPolicy, n_envs: int = 2) -> None:
    """Bit for bit: actions, values and states over a few steps."""
    assert first.observation_space == second.observation_space
    assert first.action_space == second.action_space
    space = copy.deepcopy(first.observation_space)
    states, numpy_states = [p.initial_state(n_envs) for p in (first, second)], [None, None]
    for t in range(4):
        samples = [space.sample() for _ in range(n_envs)]
        obs: Any = np.stack(samples) if not isinstance(space, spaces.Dict) else stack(samples)
        starts = torch.tensor([t == 2, False])
        results = []
        for i, policy in enumerate((first, second)):
            tensors, _ = policy.obs_to_tensor(obs)
            torch.manual_seed(t)
            with torch.no_grad():
                actions, values, log_probs, states[i] = policy(tensors, states[i], starts)
            predicted, numpy_states[i] = policy.predict(obs, numpy_states[i], starts.numpy(), deterministic=True)
            results.append((actions, values, log_probs, torch.as_tensor(predicted)))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


def stack(samples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
    return {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, to be copied and spoilt."""
    import gymnasium as gym

    class Env(gym.Env):
        observation_space, action_space = BOX, DISCRETE

    memory = DeltaConfig(width=8, n_heads=2, key_size=3, value_size=5)
    kwargs = {"memory": memory, "net_arch": [6], "encoder_size": 10}
    model = MemoryPPO("MlpPolicy", Env(), policy_kwargs=kwargs, n_steps=16, device="cpu")
    path = tmp_path_factory.mktemp("model") / "model.zip"
    model.save(path)
    return path


def members(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """A model file of these members, with a manifest that vouches for them."""
    manifest = json.loads(parts[MANIFEST])
    for name in (CONFIG, WEIGHTS):
        manifest["files"][name] = {"bytes": len(parts[name]), "sha256": hashlib.sha256(parts[name]).hexdigest()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in (parts | {MANIFEST: json.dumps(manifest).encode()}).items():
            archive.writestr(name, content)
    return path


def refusal(path: Path | str) -> str:
    """The message with which `load_policy` refuses a file: one line, soon, and of the one type."""
    start = time.process_time()
    with pytest.raises(ModelFileError) as error:
        load_policy(path)
    assert time.process_time() - start < 3
    message = str(error.value)
    assert message.startswith(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 700
    return message.removeprefix(f"{path}: ")


# ---- what comes back


# Red if a memory or a choice of the policy were missing in the file, or weights were cast or transposed.
@pytest.mark.parametrize("memory", list(memory_configs()))
def test_policy_of_a_file_is_the_policy(memory: str, make_model: Callable, tmp_path: Path) -> None:
    kwargs = {"n_blocks": 2, "net_arch": {"pi": [6, 4], "vf": [5]}, "activation_fn": torch.nn.GELU}
    model = make_model(memory, policy_kwargs=kwargs).learn(48)
    model.save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip")
    assert policy.memory_config == model.policy.memory_config
    assert policy.activation_fn is torch.nn.GELU
    assert_same_policy(model.policy, policy)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_observation_spaces_come_back(
    space: spaces.Space, make_model: Callable, random_envs: Callable, tmp_path: Path
) -> None:
    policy = "CnnPolicy" if space is IMAGE else "MultiInputPolicy" if isinstance(space, spaces.Dict) else "MlpPolicy"
    features = {"CnnPolicy": {"features_dim": 9}, "MultiInputPolicy": {"cnn_output_dim": 9}}.get(policy, {})
    kwargs = {"features_extractor_kwargs": features}
    model = make_model("delta", random_envs(space, DISCRETE), policy=policy, policy_kwargs=kwargs)
    model.save(tmp_path / "model.zip")
    assert_same_policy(model.policy, load_policy(tmp_path / "model.zip"))


@pytest.mark.parametrize("use_sde", [False, True])
@pytest.mark.parametrize("space", ACTIONS, ids=str)
def test_action_spaces_come_back(
    use_sde: bool, space: spaces.Space, make_model: Callable, random_envs: Callable, tmp_path: Path
) -> None:
    if use_sde and not isinstance(space, spaces.Box):
        return
    model = make_model("gru", random_envs(BOX, space), use_sde=use_sde)
    model.save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip")
    if use_sde:
        for p in (model.policy, policy):
            torch.manual_seed(0)
            p.reset_noise(2)
    assert_same_policy(model.policy, policy)


@pytest.mark.parametrize("kwargs", [{"squash_output": True}, {"full_std": False, "use_expln": True}])
def test_options_of_gsde_come_back(
    kwargs: dict[str, bool], make_model: Callable, random_envs: Callable, tmp_path: Path
) -> None:
    model = make_model(
        "gru", random_envs(BOX, ACTIONS[-1]), use_sde=True, policy_kwargs=kwargs | {"log_std_init": -2.0}
    )
    with torch.no_grad():
        model.policy.log_std.fill_(-40.0)
    model.save(tmp_path / "model.zip")
    policy = load_policy(tmp_path / "model.zip")
    # Red if the noise were still that of the fresh weights.
    observation = np.ones((1, 5), dtype=np.float32)
    np.testing.assert_allclose(
        policy.predict(observation)[0], policy.predict(observation, deterministic=True)[0], atol=1e-6
    )
    for p in (model.policy, policy):
        torch.manual_seed(0)
        p.reset_noise(2)
    assert_same_policy(model.policy, policy)


class CustomExtractor(FlattenExtractor):
    """The portable format has no name for it."""


class CustomPolicy(MemoryActorCriticPolicy):
    """It may do anything."""


# Red if the file kept a portable part that means something else.
@pytest.mark.parametrize(
    ("custom", "reason"),
    [
        ({"policy_kwargs": {"features_extractor_class": CustomExtractor}}, "CustomExtractor is not one of"),
        ({"policy_kwargs": {"activation_fn": torch.nn.Hardtanh}}, "Hardtanh is not one of Tanh, ReLU"),
        ({"policy": CustomPolicy}, "CustomPolicy is a policy class of its own"),
    ],
)
def test_what_is_not_portable_is_saved_with_a_warning(
    custom: dict[str, Any], reason: str, make_model: Callable, tmp_path: Path
) -> None:
    model = make_model(**custom)
    with pytest.warns(UserWarning, match=f"saved without the portable part: {reason}"):
        model.save(tmp_path / "model.zip")
    assert not [name for name in members(tmp_path / "model.zip") if name.startswith("portable/")]
    loaded = MemoryPPO.load(tmp_path / "model.zip", device="cpu")
    assert_same_policy(model.policy, loaded.policy)
    assert "no portable part" in refusal(tmp_path / "model.zip")


# ---- what a file cannot do


# Red if any way to run code from a file were taken.
def test_reading_never_unpickles(model_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_policy(model_file)  # lazy imports come first

    def forbidden(*_: Any, **__: Any) -> None:
        raise AssertionError("a file must not run code")

    for module, name in (
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (cloudpickle, "load"),
        (cloudpickle, "loads"),
        (torch, "load"),
        (importlib, "import_module"),
    ):
        monkeypatch.setattr(module, name, forbidden)
    policy = load_policy(model_file)
    with pytest.raises(AssertionError, match="must not run code"):
        MemoryPPO.load(model_file)
    monkeypatch.undo()
    assert_same_policy(policy, MemoryPPO.load(model_file, device="cpu").policy)


class Bomb:
    """What a malicious pickle does."""

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path("exploded"),)


def test_pickles_beside_the_portable_part_are_left_alone(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    evil = dict.fromkeys(["data", "policy.pth", "pytorch_variables.pth", "../evil", "/evil"], pickle.dumps(Bomb()))
    load_policy(write(tmp_path / "model.zip", members(model_file) | evil))
    assert [path.name for path in tmp_path.iterdir()] == ["model.zip"]


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, key = path.split(".")
    part = config
    for parent in parents:
        part = part[parent]
    part[key] = value
    return config


DEEP: Any = []
for _ in range(500):
    DEEP = [DEEP]


# Red if a value of a config were used before it is checked.
@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("memory.type", "dleta", "unknown memory 'dleta'"),
        ("memory.type", "os.system", "unknown memory 'os.system'"),
        ("memory.type", "\x1b[2Jdelta\nx", "unknown memory "),
        ("memory.type", "lstm", "LSTMConfig has no 'width'"),
        ("memory.type", ["delta"], ""),
        ("memory.width", 2**16 + 1, "65537 is not between -65536 and 65536"),
        ("memory.delay_heads", -1, "delay_heads=-1 must lie between 0 and n_heads="),
        ("memory.delay_heads", 2**17, "131072 is not between -65536 and 65536"),
        ("memory.delay_heads", 1.5, "delay_heads=1.5 is not of type"),
        ("memory.width", 2**16, "the config asks for"),
        ("memory.n_heads", 2**16, "the config asks for"),
        ("memory.key_size", 0, "sizes must be at least 1, got key_size=0"),
        ("memory.width", -8, "sizes must be at least 1, got width=-8"),
        ("memory.width", 8.0, "DeltaConfig.width=8.0 is not of type"),
        ("memory.width", "8", "DeltaConfig.width='8' is not of type"),
        ("memory.width", True, "DeltaConfig.width=True is not of type"),
        ("memory.negative_eigenvalues", 1, "negative_eigenvalues=1 is not of type"),
        ("memory.__class__", "x", "DeltaConfig has no '__class__'"),
        ("memory", "delta", ""),
        ("memory", ["delta"], ""),
        ("n_blocks", 65, "size 65 is not between 1 and 64"),
        ("n_blocks", 64, "weights and config disagree about"),
        ("n_blocks", 10**400, ""),
        ("encoder_size", 2**16, "the config asks for"),
        ("encoder_size", 0, "size 0 is not between"),
        ("net_arch", [2**16] * 64, "weights and config disagree"),
        ("net_arch", [6] * 100_000, "net_arch has 100000 layers"),
        ("net_arch", {"pi": [6], "q": "x"}, ""),
        ("net_arch", 7, ""),
        ("net_arch", DEEP, ""),
        ("net_arch", [], "weights and config disagree"),
        ("activation_fn", "os.system", "unknown name 'os.system'"),
        ("activation_fn", "Hardtanh", "unknown name 'Hardtanh'"),
        ("features_extractor_class", "builtins.eval", "unknown name 'builtins.eval'"),
        ("features_extractor_class", "NatureCNN", ""),
        ("features_extractor_kwargs", {"features_dim": 3}, ""),
        ("features_extractor_kwargs", {"evil": "x"}, "expected a whole number, got 'x'"),
        ("features_extractor_kwargs", [1], ""),
        ("use_sde", True, ""),
        ("log_std_init", "x", ""),
        ("evil", "x", "unknown keys in the config: evil"),
        ("action_space.type", "Tuple", "unknown space 'Tuple'"),
        ("action_space.n", 5, "the config asks for"),
        ("action_space.n", 2**16, "the config asks for"),
        ("action_space.start", 10**30, ""),
        ("action_space.evil", 1, "unknown keys in a Discrete space: evil"),
        ("action_space", [], ""),
        ("observation_space.shape", [2**12, 2**12], "observations of more than 4194304 numbers are refused"),
        ("observation_space.shape", [2**16] * 1000, "observations of more than 4194304 numbers are refused"),
        ("observation_space.shape", [-5], "size -5 is not between"),
        ("observation_space.shape", [6], "the config asks for"),
        ("observation_space.dtype", "object", "unknown dtype 'object'"),
        ("observation_space.low", "nan", "expected a number or infinity as bound, got 'nan'"),
        ("observation_space.low", [0.0] * 4, ""),
        ("observation_space.low", {"x": 1}, "expected a number or infinity as bound"),
        ("observation_space", {"type": "Dict", "spaces": {}}, ""),
        (
            "observation_space",
            {
                "type": "Dict",
                "spaces": {"a": {"type": "Dict", "spaces": {"b": {"type": "Discrete", "n": 2, "start": 0}}}},
            },
            "spaces are nested too deeply",
        ),
        (
            "observation_space",
            {
                "type": "Dict",
                "spaces": {
                    str(i): {"type": "Box", "shape": [2**15], "dtype": "float64", "low": 0, "high": 1}
                    for i in range(256)
                },
            },
            "observations of more than 256 keys or 4194304 numbers are refused",
        ),
        ("observation_space", {"type": "MultiDiscrete", "nvec": [2**16] * 100, "start": [0] * 100}, "asks for"),
        ("observation_space", {"type": "MultiDiscrete", "nvec": [[2]], "start": [[0]]}, "expected a whole number"),
        ("observation_space", {"type": "MultiBinary", "n": [2**16, 2**16]}, "the config asks for"),
    ],
)
def test_wrong_configs_are_refused(path: str, value: Any, reason: str, model_file: Path, tmp_path: Path) -> None:
    parts = members(model_file)
    config = changed(json.loads(parts[CONFIG]), path, value)
    assert reason in refusal(write(tmp_path / "bad.zip", parts | {CONFIG: json.dumps(config).encode()}))


@pytest.mark.parametrize(
    "path", ["memory", "memory.type", "net_arch", "n_blocks", "use_sde", "observation_space", "action_space.n"]
)
def test_missing_keys_are_refused(path: str, model_file: Path, tmp_path: Path) -> None:
    parts = members(model_file)
    config = json.loads(parts[CONFIG])
    part = config
    *parents, key = path.split(".")
    for parent in parents:
        part = part[parent]
    del part[key]
    refusal(write(tmp_path / "bad.zip", parts | {CONFIG: json.dumps(config).encode()}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "damaged config"),
        (b"{", "damaged config"),
        (b"\xff\xfe{}", "damaged config"),
        (b"[]", "config is not an object"),
        (b"null", "config is not an object"),
        (b"[" * 100_000, "damaged config"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "damaged config"),
        (b'{"log_std_init": NaN}', "NaN in a config"),
        (b'{"log_std_init": -Infinity}', "-Infinity in a config"),
        (b'{"n": ' + b"9" * 10_000 + b"}", ""),
        (b" " * (2**22 + 1), "claims 4194305 bytes"),
    ],
)
def test_what_is_no_config_is_refused(content: bytes, reason: str, model_file: Path, tmp_path: Path) -> None:
    assert reason in refusal(write(tmp_path / "bad.zip", members(model_file) | {CONFIG: content}))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "fwp-model"}, "not a policy of fwp-rl"),
        ({"version": 2}, "format version 2; this fwp-rl reads version 1"),
        ({"version": "\n"}, "format version"),
        ({"files": []}, ""),
        ({"files": {}}, ""),
        ({"files": {CONFIG: {"sha256": 0}, WEIGHTS: 3}}, ""),
    ],
)
def test_wrong_manifests_are_refused(change: dict[str, Any], reason: str, model_file: Path, tmp_path: Path) -> None:
    parts = members(model_file)
    manifest = json.loads(parts[MANIFEST]) | change
    with zipfile.ZipFile(tmp_path / "bad.zip", "w") as archive:
        for name, content in (parts | {MANIFEST: json.dumps(manifest).encode()}).items():
            archive.writestr(name, content)
    assert reason in refusal(tmp_path / "bad.zip")


def spoilt_weights(weights: dict[str, torch.Tensor], how: str) -> bytes:
    name = "value_net.weight"
    if how == "missing":
        del weights[name]
    elif how == "extra":
        weights["evil\n\x1b[2J"] = torch.zeros(1)
    elif how == "transposed":
        weights[name] = weights[name].T.contiguous()
    elif how == "half":
        weights[name] = weights[name].half()
    elif how == "integer":
        weights[name] = weights[name].long()
    elif how in ("nan", "inf"):
        weights[name][0, 0] = float(how)
    content = safetensors.torch.save(weights)
    if how == "empty":
        return b""
    if how == "huge header":
        return (2**60).to_bytes(8, "little") + content[8:]
    if how == "truncated":
        return content[:-1]
    if how == "text":
        return b"GIF89a" * 100
    return content


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("missing", "weights and config disagree about value_net.weight"),
        ("extra", "weights and config disagree about evil"),
        ("transposed", "value_net.weight is torch.float32[6, 1], the config asks for torch.float32[1, 6]"),
        ("half", "value_net.weight is torch.float16[1, 6], the config asks for torch.float32[1, 6]"),
        ("integer", "value_net.weight is torch.int64[1, 6]"),
        ("nan", "value_net.weight holds NaN or infinity"),
        ("inf", "value_net.weight holds NaN or infinity"),
        ("empty", "damaged weights"),
        ("huge header", "damaged weights"),
        ("truncated", "damaged weights"),
        ("text", "damaged weights"),
    ],
)
def test_wrong_weights_are_refused(how: str, reason: str, model_file: Path, tmp_path: Path) -> None:
    parts = members(model_file)
    parts[WEIGHTS] = spoilt_weights(safetensors.torch.load(parts[WEIGHTS]), how)
    assert reason in refusal(write(tmp_path / "bad.zip", parts))


# Red if a part were trusted because it is there: flips in the zip's own structures, in config and weights.
def test_flipped_bits_are_noticed(model_file: Path, tmp_path: Path) -> None:
    content = model_file.read_bytes()
    expected = load_policy(model_file)
    start = content.index(b"portable/manifest.json") - 30  # the local header of the first of our members
    directory = content.rindex(b"PK\x01\x02")
    rng = np.random.default_rng(0)
    positions = [*rng.integers(start, len(content), 60), *range(directory, len(content), 2), *range(start, start + 40)]
    path = tmp_path / "bad.zip"
    n_refused = 0
    for position in positions:
        spoilt = bytearray(content)
        spoilt[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(spoilt)
        try:
            policy = load_policy(path)
        except ModelFileError:
            n_refused += 1
        else:  # a date or another field that means nothing
            assert_equal_tensors(policy, expected)
    assert n_refused > len(positions) / 2
    for name in (CONFIG, WEIGHTS):
        for position in (0, -1, 100):
            part = bytearray(members(model_file)[name])
            part[position] ^= 1
            with zipfile.ZipFile(path, "w") as archive:  # a sound zip, but not what the manifest vouches for
                for other, original in (members(model_file) | {name: bytes(part)}).items():
                    archive.writestr(other, original)
            assert refusal(path) == f"{name} is damaged: its SHA-256 is not the one in the manifest"


def assert_equal_tensors(first: MemoryActorCriticPolicy, second: MemoryActorCriticPolicy) -> None:
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("fraction", [0.0, 0.001, 0.3, 0.5, 0.9, 0.999])
def test_truncated_files_are_refused(fraction: float, model_file: Path, tmp_path: Path) -> None:
    content = model_file.read_bytes()
    (tmp_path / "bad.zip").write_bytes(content[: int(fraction * len(content))])
    assert "truncated or not a model file" in refusal(tmp_path / "bad.zip")


# Red if a small file could unpack to a large one.
@pytest.mark.parametrize("compression", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_parts_are_refused(compression: int, model_file: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "bad.zip", members(model_file) | {WEIGHTS: bytes(2**22)}, compression)
    assert "is compressed" in refusal(path)


def test_other_files_are_refused(model_file: Path, tmp_path: Path) -> None:
    assert refusal(tmp_path / "nothing.zip") == "no such file"
    assert "not a model file" in refusal(tmp_path)
    (tmp_path / "text.zip").write_text("hello")
    assert "not a model file" in refusal(tmp_path / "text.zip")
    (tmp_path / "evil.zip").write_bytes(pickle.dumps(Bomb()))
    assert "not a model file" in refusal(tmp_path / "evil.zip")
    with zipfile.ZipFile(tmp_path / "foreign.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "no portable part" in refusal(tmp_path / "foreign.zip")
    PPO("MlpPolicy", "CartPole-v1", device="cpu", n_steps=64).save(tmp_path / "ppo.zip")
    assert "no portable part: written by plain Stable-Baselines3" in refusal(tmp_path / "ppo.zip")


def test_device_that_is_not_there_is_not_the_fault_of_the_file(model_file: Path) -> None:
    with pytest.raises(RuntimeError, match="nowhere"):
        load_policy(model_file, device="nowhere")


@pytest.mark.parametrize(
    ("config", "values", "reason"),
    [
        (LinearAttentionConfig, {"feature_map": "relu"}, "feature_map='relu' is not of type"),
        (LinearAttentionConfig, {"feature_map": ["elu"]}, "is not of type"),
        (ContinuousDeltaConfig, {"elapsed_time": 0.5}, "expected a whole number, got 0.5"),
        (ContinuousDeltaConfig, {"elapsed_time": True}, "expected a whole number, got True"),
        (ContinuousDeltaConfig, {"elapsed_time": -(10**9)}, "elapsed_time=-1000000000 is not between"),
    ],
)
def test_choices_of_a_memory_are_checked(config: Any, values: dict[str, Any], reason: str) -> None:
    """Red if a name or an index of a config were used before it is checked."""
    with pytest.raises(ModelFileError, match=reason):
        _memory_config(config, values)
