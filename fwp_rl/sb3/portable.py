"""Policies as files that cannot run code: three members of the model's zip.

    portable/manifest.json        format, versions, size and SHA-256 of the other two
    portable/config.json          spaces, memory, layers: numbers and names from closed lists
    portable/policy.safetensors   the weights

Reading never unpickles and never imports what a file names. Everything is checked before it is used: a file from a
stranger can be refused, or can act badly; it cannot do more.
"""

import copy
import dataclasses
import hashlib
import json
import math
import pathlib
import typing
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from gymnasium import spaces
from safetensors import SafetensorError
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from fwp_rl.registry import memory_configs, memory_name
from fwp_rl.sb3.policies import (
    MemoryActorCriticCnnPolicy,
    MemoryActorCriticPolicy,
    MultiInputMemoryActorCriticPolicy,
)

FORMAT_VERSION = 1
ACTIVATIONS = {a.__name__: a for a in (nn.Tanh, nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU)}
EXTRACTORS = {e.__name__: e for e in (FlattenExtractor, NatureCNN, CombinedExtractor)}
MANIFEST, CONFIG, WEIGHTS = "portable/manifest.json", "portable/config.json", "portable/policy.safetensors"
_POLICIES = (MemoryActorCriticPolicy, MemoryActorCriticCnnPolicy, MultiInputMemoryActorCriticPolicy)
# Well above anything sensible, well below what fills a machine.
_LARGEST = {MANIFEST: 2**20, CONFIG: 2**22, WEIGHTS: 2**32}  # bytes
_LARGEST_SIZE = 2**16  # of a layer, a memory, a space
_LARGEST_OBSERVATION = 2**22  # entries
_MOST_KEYS = 256  # of a Dict observation
_MOST_LAYERS = 64


class ModelFileError(ValueError):
    """The file is not a model that can be read safely; the message says why, in one line."""


class NotPortableError(ValueError):
    """The policy has a part that the portable format has no name for."""


def write_portable(archive: zipfile.ZipFile, policy: MemoryActorCriticPolicy) -> None:
    """Add the three portable members to an open zip.

    :raises NotPortableError: the policy uses a class or a space that the format does not know; nothing was written.
    """
    config = json.dumps(_config_of(policy), indent=1, allow_nan=False).encode()
    if len(config) > _LARGEST[CONFIG]:
        raise NotPortableError(f"its description has {len(config)} bytes, more than {_LARGEST[CONFIG]}")
    weights = safetensors.torch.save({name: p.detach().cpu().contiguous() for name, p in _tensors(policy).items()})
    members = {CONFIG: config, WEIGHTS: weights}
    manifest = {
        "format": "fwp-rl-policy",
        "version": FORMAT_VERSION,
        "files": {
            name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
            for name, content in members.items()
        },
    }
    for name, content in {MANIFEST: json.dumps(manifest, indent=1).encode(), **members}.items():
        archive.writestr(name, content)


def load_policy(path: str | pathlib.Path, device: torch.device | str = "cpu") -> MemoryActorCriticPolicy:
    """The policy in a model file, from its portable part alone.

    :raises ModelFileError: the file is missing, truncated, foreign or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _check_beginning(archive)
            members = {name: _read(archive, name) for name in (MANIFEST, CONFIG, WEIGHTS)}
        _check_manifest(_parse(members[MANIFEST]), members)
        policy = _load(_parse(members[CONFIG]), safetensors.torch.load(members[WEIGHTS]))
    except ModelFileError as error:
        problem = str(error)
    except FileNotFoundError:
        problem = "no such file"
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        problem = f"truncated or not a model file ({error})"
    except SafetensorError as error:
        problem = f"damaged weights ({error})"
    except Exception as error:  # whatever a wrong config can make a constructor raise
        problem = f"config does not describe a policy ({type(error).__name__}: {error})"
    else:
        policy = policy.to(device)
        if policy.use_sde:
            policy.reset_noise()  # with the loaded spread, on the device
        return policy
    raise ModelFileError(f"{path}: {_one_line(problem)}")


def _one_line(text: str) -> str:
    """The first line of `text`, which may quote the file: nothing that moves a cursor, and not too much of it."""
    line = "".join(c if c.isprintable() else "?" for c in (text.splitlines() or [""])[0])
    return line if len(line) <= 300 else f"{line[:300]} ..."


def _tensors(policy: MemoryActorCriticPolicy) -> dict[str, torch.Tensor]:
    """Parameters and buffers; those that SB3 reaches by several names, once."""
    return {**dict(policy.named_parameters()), **dict(policy.named_buffers())}


def _config_of(policy: MemoryActorCriticPolicy) -> dict[str, Any]:
    if type(policy) not in _POLICIES:
        raise NotPortableError(f"{type(policy).__name__} is a policy class of its own")
    arguments = policy._get_constructor_parameters()
    try:
        name = memory_name(policy.memory_config)
    except ValueError as error:
        raise NotPortableError(str(error)) from None
    return {
        "observation_space": _encode_space(policy.observation_space),
        "action_space": _encode_space(policy.action_space),
        "memory": {"type": name, **dataclasses.asdict(policy.memory_config)},
        "n_blocks": policy.n_blocks,
        "critic": policy.critic,
        "encoder_size": policy.encoder_size,
        "normalize_features": policy.normalize_features,
        "normalize_values": policy.normalize_values,
        "net_arch": arguments["net_arch"],
        "activation_fn": _name_of(arguments["activation_fn"], ACTIVATIONS),
        "features_extractor_class": _name_of(arguments["features_extractor_class"], EXTRACTORS),
        "features_extractor_kwargs": _plain(arguments["features_extractor_kwargs"]),
        "normalize_images": arguments["normalize_images"],
        "use_sde": arguments["use_sde"],
        "log_std_init": float(arguments["log_std_init"]),
        **({key: bool(arguments[key]) for key in _SDE_KEYS} if arguments["use_sde"] else {}),
    }


_SDE_KEYS = ("squash_output", "full_std", "use_expln")


def _name_of(cls: type, known: Mapping[str, type]) -> str:
    if known.get(cls.__name__) is not cls:
        raise NotPortableError(f"{cls.__name__} is not one of {', '.join(known)}")
    return cls.__name__


def _plain(kwargs: dict[str, Any]) -> dict[str, Any]:
    if not all(isinstance(value, bool | int | float) for value in kwargs.values()):
        raise NotPortableError(f"features_extractor_kwargs must be numbers, got {kwargs}")
    return kwargs


def _encode_space(space: spaces.Space[Any]) -> dict[str, Any]:
    match space:
        case spaces.Box():
            bounds = {name: _encode_bound(getattr(space, name)) for name in ("low", "high")}
            return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}
        case spaces.Discrete():
            return {"type": "Discrete", "n": int(space.n), "start": int(space.start)}
        case spaces.MultiDiscrete():
            return {"type": "MultiDiscrete", "nvec": space.nvec.tolist(), "start": space.start.tolist()}
        case spaces.MultiBinary():
            return {"type": "MultiBinary", "n": space.n if isinstance(space.n, int) else list(space.shape)}
        case spaces.Dict():
            return {"type": "Dict", "spaces": {key: _encode_space(part) for key, part in space.spaces.items()}}
    raise NotPortableError(f"space {type(space).__name__} has no portable form")


def _encode_bound(bound: np.ndarray) -> Any:
    """One number if all entries are equal; infinities as text, for JSON has none."""
    values = [x if math.isfinite(x) else str(x) for x in bound.flatten().tolist()]
    return values[0] if len(set(values)) == 1 else values


def _decode_space(code: dict[str, Any], depth: int = 0) -> spaces.Space[Any]:
    kind = code.pop("type")
    if depth > 1:
        raise ModelFileError("spaces are nested too deeply")
    if kind == "Box":
        shape = tuple(_size(n) for n in code.pop("shape"))
        if math.prod(shape) > _LARGEST_OBSERVATION:
            raise ModelFileError(f"observations of more than {_LARGEST_OBSERVATION} numbers are refused")
        if code["dtype"] not in ("float32", "float64", "uint8", "int8", "int16", "int32", "int64"):
            raise ModelFileError(f"unknown dtype {code['dtype']!r}")
        dtype = np.dtype(code.pop("dtype"))
        low, high = (np.array(_decode_bound(code.pop(name)), dtype=dtype) for name in ("low", "high"))
        low, high = (np.broadcast_to(b if b.ndim == 0 else b.reshape(shape), shape) for b in (low, high))
        space: spaces.Space[Any] = spaces.Box(low, high, dtype=dtype.type)
    elif kind == "Discrete":
        space = spaces.Discrete(_size(code.pop("n")), start=_integer(code.pop("start")))
    elif kind == "MultiDiscrete":
        nvec, start = code.pop("nvec"), code.pop("start")
        space = spaces.MultiDiscrete([_size(n) for n in nvec], start=[_integer(n) for n in start])
    elif kind == "MultiBinary":
        n = code.pop("n")
        space = spaces.MultiBinary([_size(x) for x in n] if isinstance(n, list) else _size(n))
    elif kind == "Dict":
        parts = code["spaces"].values()
        n_numbers = sum(math.prod(_size(n) for n in part.get("shape", [])) for part in parts)
        if len(parts) > _MOST_KEYS or n_numbers > _LARGEST_OBSERVATION:
            raise ModelFileError(
                f"observations of more than {_MOST_KEYS} keys or {_LARGEST_OBSERVATION} numbers are refused"
            )
        space = spaces.Dict({str(key): _decode_space(part, depth + 1) for key, part in code.pop("spaces").items()})
    else:
        raise ModelFileError(f"unknown space {kind!r}")
    if code:
        raise ModelFileError(f"unknown keys in a {kind} space: {', '.join(code)}")
    return space


def _decode_bound(bound: Any) -> Any:
    if isinstance(bound, list):
        return [_decode_bound(x) for x in bound]
    if bound in ("inf", "-inf"):
        return float(bound)
    if not isinstance(bound, int | float):
        raise ModelFileError(f"expected a number or infinity as bound, got {bound!r}")
    return bound


def _load(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> MemoryActorCriticPolicy:
    """The policy that `config` describes, with these weights."""
    # First without memory, so that a config cannot ask for more than its file holds. State-dependent exploration
    # draws numbers when it is built, which needs memory; it adds but the shape of log_std, checked below.
    plain = {key: value for key, value in copy.deepcopy(config).items() if key not in _SDE_KEYS} | {"use_sde": False}
    with torch.device("meta"):
        shapes = _tensors(_policy_of(plain, optimizer_kwargs={}))
    ignored = {"log_std"} if config.get("use_sde") else set()
    _compare(
        {name: tensor for name, tensor in shapes.items() if name not in ignored},
        {name: tensor for name, tensor in weights.items() if name not in ignored},
    )
    policy = _policy_of(config, ortho_init=False)  # an initialisation that takes time, for weights to be replaced
    own = _tensors(policy)
    _compare(own, weights)
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(weights[name])
    return policy


def _policy_of(config: dict[str, Any], **kwargs: Any) -> MemoryActorCriticPolicy:
    """Build the policy that `config` describes, with fresh weights."""
    memory = dict(config.pop("memory"))
    kind = memory.pop("type")
    if kind not in memory_configs():
        raise ModelFileError(f"unknown memory {kind!r}; known are {', '.join(memory_configs())}")
    net_arch = config.pop("net_arch")
    encoder_size = config.pop("encoder_size")
    for layers in net_arch.values() if isinstance(net_arch, dict) else [net_arch]:
        if len(layers) > _MOST_LAYERS:
            raise ModelFileError(f"net_arch has {len(layers)} layers, more than {_MOST_LAYERS}")
        for size in layers:
            _size(size)
    kwargs |= {
        "memory": _memory_config(memory_configs()[kind], memory),
        "n_blocks": _size(config.pop("n_blocks"), 64),
        "critic": str(config.pop("critic", "shared")),  # older files do not have it
        "encoder_size": None if encoder_size is None else _size(encoder_size),
        **{key: bool(config.pop(key, False)) for key in ("normalize_features", "normalize_values")},  # older: without
        "net_arch": net_arch,
        "activation_fn": _known(config.pop("activation_fn"), ACTIVATIONS),
        "features_extractor_class": _known(config.pop("features_extractor_class"), EXTRACTORS),
        "features_extractor_kwargs": {
            str(key): value if isinstance(value, bool | float) else _size(value)
            for key, value in config.pop("features_extractor_kwargs").items()
        },
        "normalize_images": bool(config.pop("normalize_images")),
        "use_sde": bool(config.pop("use_sde")),
        "log_std_init": float(config.pop("log_std_init")),
    }
    kwargs |= {key: bool(config.pop(key)) for key in _SDE_KEYS if key in config}
    observation_space, action_space = (_decode_space(config.pop(f"{name}_space")) for name in ("observation", "action"))
    if config:
        raise ModelFileError(f"unknown keys in the config: {', '.join(config)}; written by a newer version?")
    return MemoryActorCriticPolicy(observation_space, action_space, lambda _: 0.0, **kwargs)


def _memory_config(config_class: type[Any], values: dict[str, Any]) -> Any:
    known = {field.name: field for field in dataclasses.fields(config_class)}
    for name, value in values.items():
        if name not in known:
            raise ModelFileError(f"memory {config_class.__name__} has no {name!r}")
        expected = known[name].type
        if isinstance(value, int) and not isinstance(value, bool) and expected in (int, float):
            values[name] = _bounded(name, value) if expected is int else float(value)
            continue
        if typing.get_origin(expected) is typing.Literal:
            fits = isinstance(value, str) and value in typing.get_args(expected)
        elif expected == int | None:  # an index, which may be negative
            fits = value is None or _bounded(name, value) is not None
        else:
            fits = type(value) is expected
        if not fits:
            raise ModelFileError(f"{config_class.__name__}.{name}={value!r} is not of type {expected}")
    return config_class(**{**config_class.absent, **values})


def _known(name: str, known: dict[str, Any]) -> Any:
    if name not in known:
        raise ModelFileError(f"unknown name {name!r}; known are {', '.join(known)}")
    return known[name]


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelFileError(f"expected a whole number, got {value!r}")
    return value


def _bounded(name: str, value: Any) -> int:
    """Check an integer of a memory, whose own constructor knows which values it takes."""
    if abs(_integer(value)) > _LARGEST_SIZE:
        raise ModelFileError(f"{name}={value} is not between -{_LARGEST_SIZE} and {_LARGEST_SIZE}")
    return int(value)


def _size(value: Any, largest: int = _LARGEST_SIZE) -> int:
    if not 0 < _integer(value) <= largest:
        raise ModelFileError(f"size {value} is not between 1 and {largest}")
    return int(value)


def _compare(own: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> None:
    if own.keys() != weights.keys():
        odd = sorted(own.keys() ^ weights.keys())
        raise ModelFileError(f"weights and config disagree about {', '.join(odd[:4])}")
    for name, tensor in own.items():
        if tensor.shape != weights[name].shape or tensor.dtype != weights[name].dtype:
            raise ModelFileError(
                f"{name} is {weights[name].dtype}{list(weights[name].shape)}, "
                f"the config asks for {tensor.dtype}{list(tensor.shape)}"
            )
        if not torch.isfinite(weights[name]).all():
            raise ModelFileError(f"{name} holds NaN or infinity")


def _check_beginning(archive: zipfile.ZipFile) -> None:
    # In what is left of a truncated model, zipfile finds the directory of a weights file, itself a zip, in its middle.
    if not archive.filelist or min(info.header_offset for info in archive.filelist) > 0:
        raise zipfile.BadZipFile("its directory is not that of its beginning")


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    try:
        info = archive.getinfo(name)
    except KeyError:
        raise ModelFileError("no portable part: written by plain Stable-Baselines3, or not a model") from None
    if info.file_size > _LARGEST[name]:
        raise ModelFileError(f"{name} claims {info.file_size} bytes")
    if info.compress_type != zipfile.ZIP_STORED:  # so that it cannot grow
        raise ModelFileError(f"{name} is compressed; we store it as it is")
    return archive.read(name)


def _parse(content: bytes) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise ModelFileError(f"{constant} in a config")

    try:
        parsed = json.loads(content, parse_constant=refuse)
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ModelFileError(f"damaged config ({error})") from None
    if not isinstance(parsed, dict):
        raise ModelFileError("config is not an object")
    return parsed


def _check_manifest(manifest: dict[str, Any], members: dict[str, bytes]) -> None:
    if manifest.get("format") != "fwp-rl-policy":
        raise ModelFileError("not a policy of fwp-rl")
    if manifest.get("version") != FORMAT_VERSION:
        raise ModelFileError(f"format version {manifest.get('version')}; this fwp-rl reads version {FORMAT_VERSION}")
    for name in (CONFIG, WEIGHTS):
        if manifest["files"][name]["sha256"] != hashlib.sha256(members[name]).hexdigest():
            raise ModelFileError(f"{name} is damaged: its SHA-256 is not the one in the manifest")
