"""A mixture of experts made of a dense model.

Letters: D model dim, F hidden dim of an expert, E routed experts, R experts that together are an MLP's routed shards.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from trainer.config import TrainConfig
from trainer.config.model import ModelConfig, MoEConfig
from trainer.config.routers import LearnedRouterSection
from trainer.config.run import StartReport
from trainer.config.start import DropMethodConfig, NoiseMethodConfig, UpcycleStartConfig
from trainer.interop.errors import StartInvalid
from trainer.model.transformer import Transformer
from trainer.start.base import Start
from trainer.start.source import check_model, check_tokenizer, model_fields, read_source
from trainer.start.tensors import put_tensors

_MATRICES = ("gate", "up", "down")
"""A dense MLP's projections."""
_GATE_UP, _DOWN = "experts.gate_up_weight_E2FD", "experts.down_weight_EFD"
"""The experts' stacked ones."""
_PROJECTION = {_GATE_UP: (0, 2, 3), _DOWN: (0, 1, 2)}
"""The dimensions over which a stacked weight is one projection of all experts."""


class Upcycle(Start):
    """Copies everything but the feed-forward networks that become mixtures of experts, and makes those of the MLPs.

    Sources: Komatsuzaki et al. 2022, arXiv:2212.05055; He et al. 2024, arXiv:2410.07524 (virtual groups, and weights
    scaled for what the router takes off; they scale all three matrices by a cube root for a softmax over all experts,
    ours is the exact factor for normalised weights and on the down-projections alone, so that it holds for any
    activation); Drop-Upcycling, arXiv:2502.19261.
    """

    def __init__(self, config: UpcycleStartConfig) -> None:
        self.config = config

    def apply(self, config: TrainConfig, model: Transformer, *, root: Path | None) -> StartReport:
        source = read_source(self.config, self.config.source, root=root)
        moe = _moe(config.model)
        if source.model.moe is not None:
            raise StartInvalid(
                f"start.path={self.config.path} is a mixture of experts already; upcycle a dense model, or use "
                "start.kind=checkpoint"
            )
        check_model(self.config, model_fields(source.model), model_fields(_dense_model(config.model, source.model)))
        check_tokenizer(self.config, source, config.data.tokenizer)
        num_routed_shards = routed_shards(self.config, source.model, moe)
        tensors = dict(source.tensors)
        for layer, kind in enumerate(config.model.layer_kinds()):
            if kind == "moe":
                name = f"blocks.{layer}.feed_forward"
                mlp = {matrix: tensors.pop(f"{name}.{matrix}.weight") for matrix in _MATRICES}
                built = {key: value.detach().cpu() for key, value in model.get_submodule(name).named_parameters()}
                made = self._feed_forward(mlp, built, moe, num_routed_shards, seed=f"{config.seed}/{name}")
                tensors |= {f"{name}.{key}": value for key, value in made.items()}
        put_tensors(model, tensors, origin=f"the upcycled start.path={self.config.path}")
        return source.report

    def _feed_forward(
        self, mlp: Mapping[str, Tensor], built: Mapping[str, Tensor], moe: MoEConfig, num_routed: int, *, seed: str
    ) -> dict[str, Tensor]:
        """Return the parameters of a mixture-of-experts layer by their names within it.

        Args:
            mlp: the dense layer's gate (F', D), up (F', D) and down (D, F') projections.
            built: the parameters that the layer was built with; what an MLP says nothing about stays so.
            moe: the layer's config.
            num_routed: R.
            seed: of what is drawn.
        """
        made = dict(built)
        shared_features = moe.num_shared_experts * moe.hidden_dim
        first_of_set_E = torch.arange(moe.num_experts) // num_routed * num_routed
        shard_E = torch.arange(moe.num_experts) % num_routed
        experts: dict[str, Tensor] = {}
        for matrix in _MATRICES:
            features_first = mlp[matrix] if matrix != "down" else mlp[matrix].t()  # (F', D)
            shared, routed = features_first[:shared_features], features_first[shared_features:]
            if shared_features:
                # A gate of sigmoid(0) halves what the shared experts say.
                scaled = shared * 2.0 if matrix == "down" and moe.shared_gate else shared
                made[f"shared.{matrix}.weight"] = scaled if matrix != "down" else scaled.t()
            experts[matrix] = routed.unflatten(0, (num_routed, moe.hidden_dim))[shard_E]  # (E, F, D)
        made[_GATE_UP] = torch.stack((experts["gate"], experts["up"]), dim=1)
        made[_DOWN] = experts["down"] * (num_routed / _weight_sum(moe))
        if moe.shared_gate:
            made["shared_gate.weight"] = torch.zeros_like(built["shared_gate.weight"])
        if num_routed > 1:
            made["router.weight"] = built["router.weight"].clone()
            made["router.weight"][: moe.num_experts] = built["router.weight"][first_of_set_E]
        self._diversify(made, seed=seed)
        return made

    def _diversify(self, made: dict[str, Tensor], *, seed: str) -> None:
        """Make the experts differ as the method says, in place of their entries."""
        method = self.config.method
        if isinstance(method, NoiseMethodConfig):
            for name, dims in _PROJECTION.items():
                weight, generator = made[name], _generator(f"{seed}/{name}")
                chosen = torch.rand(weight.shape, generator=generator) < method.share
                std = method.std * weight.std(dims, keepdim=True)
                made[name] = weight + std * torch.randn(weight.shape, generator=generator) * chosen
        elif isinstance(method, DropMethodConfig):
            num_experts, num_features, _ = made[_DOWN].shape
            order_EF = torch.rand(num_experts, num_features, generator=_generator(f"{seed}/features")).argsort(dim=1)
            anew_EF = order_EF < round(method.share * num_features)
            for name, dims in _PROJECTION.items():
                weight, generator = made[name], _generator(f"{seed}/{name}")
                mean, std = weight.mean(dims, keepdim=True), weight.std(dims, keepdim=True)
                drawn = mean + std * torch.randn(weight.shape, generator=generator)
                anew = anew_EF[:, None, :, None] if name == _GATE_UP else anew_EF[:, :, None]
                made[name] = torch.where(anew, drawn, weight)


def routed_shards(config: UpcycleStartConfig, dense: ModelConfig, moe: MoEConfig) -> int:
    """Return R: into how many shards that are routed an MLP of the dense model is cut.

    Raises:
        StartInvalid: the sizes do not allow it.
    """
    if dense.activation != moe.activation:
        raise StartInvalid(
            f"model.moe.activation={moe.activation}, and start.path={config.path} has {dense.activation}; make them "
            "equal"
        )
    num_shards, rest = divmod(dense.hidden_dim, moe.hidden_dim)
    if rest or (config.method.kind != "granular" and num_shards != 1):
        wanted = "a divisor of it" if config.method.kind == "granular" else "that, or start.method.kind to granular"
        raise StartInvalid(
            f"model.moe.hidden_dim={moe.hidden_dim} does not fit start.path={config.path}, whose MLPs have hidden_dim="
            f"{dense.hidden_dim}; set it to {wanted}"
        )
    num_routed = num_shards - moe.num_shared_experts
    if num_routed < 1:
        raise StartInvalid(
            f"model.moe.num_shared_experts={moe.num_shared_experts} leaves none of the {num_shards} shards of an MLP "
            "to the routed experts; lower it or model.moe.hidden_dim"
        )
    for name, value in (("num_experts", moe.num_experts), ("top_k", moe.top_k)):
        if value % num_routed:
            raise StartInvalid(
                f"model.moe.{name}={value} is not a multiple of the {num_routed} routed shards of an MLP "
                f"(hidden_dim {dense.hidden_dim} / {moe.hidden_dim} less {moe.num_shared_experts} shared); change it"
            )
    return num_routed


def _weight_sum(moe: MoEConfig) -> float:
    """Return what the weights of a token's experts sum to if they are normalised."""
    scale = moe.router.scale if isinstance(moe.router, LearnedRouterSection) else 1.0
    return scale * (1.0 if moe.output_scale is None else moe.output_scale.init)


def _dense_model(config: ModelConfig, dense: ModelConfig) -> ModelConfig:
    """Return the dense model that the run's model stands for: all of it but the mixture of experts."""
    mlps = {} if "dense" in config.layer_kinds() else {"hidden_dim": dense.hidden_dim, "activation": dense.activation}
    return config.model_copy(update={"moe": None} | mlps)


def _moe(config: ModelConfig) -> MoEConfig:
    assert config.moe is not None, "TrainConfig has seen to it"
    return config.moe


def _generator(name: str) -> torch.Generator:
    digest = hashlib.sha256(f"upcycle/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
