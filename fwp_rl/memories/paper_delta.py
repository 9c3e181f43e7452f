"""`schlag2021` and `irie2021`: the delta rule in the blocks of the papers that brought it to fast weights."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from fwp_rl.feature_maps import FeatureMap, feature_map, feature_size, require_feature_map
from fwp_rl.layers import FastWeightConfig, HeadInputs, require_positive_sizes, run_heads
from fwp_rl.memory import Memory
from fwp_rl.ops.fast_weight_scan import Rule
from fwp_rl.registry import register
from fwp_rl.state import State


@dataclass(frozen=True, kw_only=True)
class PaperDeltaConfig(FastWeightConfig):
    """What the two blocks share: keys and queries that are positive and sum to 1. Abstract."""

    expansion: int = 4
    """Width of the feed-forward layer, as a multiple of `width`."""
    feature_map: FeatureMap = "elu"
    """Of keys and queries, which are then divided by their sum: "elu", "dpfp" or "softmax"."""
    rule: Rule = "delta"
    """The "delta" rule, or "additive" for the sum update that the papers compare it with."""

    def build(self, input_size: int) -> Memory:
        """The memory for inputs `[T, B, input_size]`."""
        return PaperDelta(input_size, self)


@register("schlag2021")
@dataclass(frozen=True, kw_only=True)
class Schlag2021Config(PaperDeltaConfig):
    """The Delta Network of Schlag et al. 2021: sparse features (DPFP), write strengths with a bias."""

    feature_map: FeatureMap = "dpfp"
    """Of keys and queries, which are then divided by their sum: "elu", "dpfp" or "softmax"."""


@register("irie2021")
@dataclass(frozen=True, kw_only=True)
class Irie2021Config(PaperDeltaConfig):
    """The Delta Net of the agents of Irie et al. 2021: elu + 1, no bias in the slow net; they stack two."""


class PaperDelta(Memory):
    """The delta rule as published.

        k, q = phi(Wk z), phi(Wq z)     v = Wv z     beta = sigmoid(w z [+ b])     z = norm(x)
        S_t = S_{t-1} + beta k (v - S_{t-1}^T k)^T
        x = x + Wo S_t^T q
        x = x + down(relu(up(norm(x))))

    Schlag et al. 2021 (arXiv 2102.11174) and Irie et al. 2021 (arXiv 2106.06295), with phi a positive feature map
    divided by its sum. What `delta` does in another way: keys of length 1, write strengths that start by how long they
    remember, reads of one size, and a share of the present value. State: S `[B, H, F, V]`.
    """

    def __init__(self, input_size: int, config: PaperDeltaConfig) -> None:
        super().__init__()
        c = self.config = config
        require_positive_sizes(input_size, c)
        require_feature_map(c.feature_map, "sum")
        self.input_size = input_size
        self.output_size = c.width
        keys, values = c.n_heads * c.key_size, c.n_heads * c.value_size
        self.encode = nn.Identity() if input_size == c.width else nn.Linear(input_size, c.width)
        self.norm = nn.LayerNorm(c.width)
        self.qkv = nn.Linear(c.width, 2 * keys + values, bias=False)
        self.strength = nn.Linear(c.width, c.n_heads, bias=isinstance(c, Schlag2021Config))
        self.readout = nn.Linear(values, c.width, bias=False)
        self.feed_forward_norm = nn.LayerNorm(c.width)
        self.up = nn.Linear(c.width, c.expansion * c.width)
        self.down = nn.Linear(c.expansion * c.width, c.width)
        if isinstance(c, Schlag2021Config):  # as in the authors' code
            nn.init.uniform_(self.qkv.weight[: 2 * keys], -1 / math.sqrt(c.width), 1 / math.sqrt(c.width))
            nn.init.xavier_uniform_(self.qkv.weight[2 * keys :])

    def initial_state(self, batch_size: int) -> State:
        """Empty fast weights."""
        c = self.config
        shape = (feature_size(c.key_size, c.feature_map), c.value_size)
        return self.norm.weight.new_zeros(batch_size, c.n_heads, *shape)

    def scan(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> tuple[Float[Tensor, "T B O"], State]:
        """See `Memory.scan`."""
        x = self.encode(inputs)
        y, final = run_heads(self._program(x, state), episode_starts)
        x = x + self.readout(y.flatten(-2))
        return x + self.down(self.up(self.feed_forward_norm(x)).relu()), final

    def head_inputs(
        self, inputs: Float[Tensor, "T B D"], state: State, episode_starts: Bool[Tensor, "T B"]
    ) -> HeadInputs:
        """See `fwp_rl.inspection.Inspectable`."""
        return self._program(self.encode(inputs), state)

    def _program(self, x: Tensor, state: State) -> HeadInputs:
        c = self.config
        keys, values = c.n_heads * c.key_size, c.n_heads * c.value_size
        z = self.norm(x)
        parts = self.qkv(z).split([keys, keys, values], dim=-1)
        q, k, v = (part.unflatten(-1, (c.n_heads, -1)) for part in parts)
        q, k = (feature_map(part, c.feature_map, "sum") for part in (q, k))
        return HeadInputs(q, k, v, torch.sigmoid(self.strength(z)), None, state, c.rule)
