"""Random valid configs over every component and option, read off the config classes, for what no test combines by hand.

Kinds, flags and named choices are found in the classes themselves; numbers and strings are drawn from `VALUES`. A new
kind is therefore drawn as soon as its config is in a union, and a new number without an entry is an error that says so.
"""

import random
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from trainer.config import TrainConfig
from trainer.config.precision import Float32Config, PrecisionConfig, QuantizedExpertsSection
from trainer.config.section import Section

NUM_STEPS = 3
SEQ_LENS = (16, 32)
BATCH_SIZE = 4

WIDTHS = (16, 32, 64, 128)
"""Of the model and of its MLPs: the two smallest that the precision takes; the model's own is at least 32."""

VALUES: dict[str, tuple[Any, ...]] = {
    # Numbers, by the name of their field, or by class and field where one name means several things.
    "num_layers": (1, 2, 3),
    "vocab_size": (1024,),
    "norm_eps": (1e-5, 1e-3),
    "init_std": (0.02, 0.1),
    "ScalesConfig.embedding": (1.0, 4.0),
    "ScalesConfig.logits": (1.0, 0.25),
    "ScalesConfig.residual": (1.0, 0.5),
    "fan_in_scale": (0.1, 1.0),
    "expert_factor": (1.0, 2.0),
    "router_factor": (1.0, 5.0),
    "every": (1, 2),
    # Mixtures of experts.
    "num_experts": (2, 4, 6, 8),
    "top_k": (1, 2, 3, 4),
    "num_shared_experts": (0, 1, 2),
    "num_dense_layers": (0, 1),
    "num_null_experts": (0, 1, 3),
    "OutputScaleConfig.init": (0.5, 2.0),
    "CapacityConfig.factor": (0.3, 0.75, 1.0, 1.25, 8.0),
    # Routers.
    "scale": (1.0, 2.5),
    "input_jitter": (0.0, 0.1),
    "logit_noise": (0.0, 1.0),
    "num_groups": (1, 2, 3, 4),
    "groups_per_token": (1, 2, 3),
    "num_iterations": (1, 5),
    "capacity_factor": (0.4, 1.0, 1.5, 2.0),
    "predictor_coefficient": (0.01, 1.0),
    "HashRouterConfig.seed": (0, 7),
    # Balancing.
    "coefficient": (0.001, 0.1),
    "update_rate": (0.001, 0.1),
    "clamp": (0.01, 1.0),
    "smoothing": (0.0, 0.5),
    "num_bins": (16, 1024),
    # Attention.
    "num_heads": (1, 2, 4),
    "num_kv_heads": (1, 2, 4),
    "head_dim": (4, 8, 10),
    "v_head_dim": (4, 10),
    "qk_nope_head_dim": (5, 8),
    "qk_rope_head_dim": (4, 6),
    "kv_lora_rank": (7, 12),
    "q_lora_rank": (9,),
    "GroupedQueryAttentionConfig.window": (1, 3, 40),
    "NativeSparseAttentionConfig.window": (4, 8, 40),
    "rope_theta": (10_000.0, 500.0),
    "conv_size": (1, 3, 4),
    "compression_block_size": (2, 4, 8),
    "compression_stride": (1, 2, 4),
    "selection_block_size": (4, 8),
    "num_selected_blocks": (3, 4),
    # Optimizers.
    "lr": (1e-3, 1e-2),
    "lr_scale": (0.5, 2.0),
    "weight_decay": (0.0, 0.1),
    "beta1": (0.0, 0.9),
    "beta2": (0.9, 0.99),
    "eps": (1e-8, 1e-5),
    "momentum": (0.0, 0.9),
    "decay_exponent": (0.5, 0.8),
    "clip_threshold": (0.5, 1.0),
    "min_weight_rms": (1e-3, 0.1),
    "refresh_every": (1, 2),
    "max_dim": (20, 8192),
    "root_eps": (1e-6, 1e-3),
    "pattern": ("*", "blocks.0.*", "*.attention.*", "*.experts.*", "*.router.weight", "*norm.gain", "embedding.weight"),
    # Schedules.
    "warmup_fraction": (0.0, 0.4),
    "final_fraction": (0.0, 0.1, 1.0),
    "decay_fraction": (0.0, 0.3, 1.0),
    # Clipping and skipping: so short that something happens within three steps.
    "max_norm": (0.1, 10.0),
    "max_grad_norm": (0.1, 10.0),
    "decay": (0.0, 0.9),
    "threshold": (0.5, 2.5),
    "ZClipConfig.warmup_steps": (2, 25),
    "AdaGCConfig.warmup_steps": (1, 100),
    "max_ratio": (1.0, 1.5),
    "num_sigmas": (0.01, 6.0),
    "SkipSpikesConfig.window": (2, 3, 128),
    "min_window": (2, 3),
    # Spike policies and alarms; nothing that stops a run.
    "LowerLearningRateConfig.factor": (0.1, 0.5),
    "LowerLearningRateConfig.num_steps": (1, 100),
    "num_skipped_steps": (0, 1),
    "max_rewinds": (1, 10),
    "MetricRule.metric": ("train/loss", "router/max_violation"),
    "rearm": (0.0, 3.0),
    "for_steps": (1, 2),
    "max_load_share": (0.5, 0.9),
    "effective_fraction": (0.25, 0.6),
    "max_fraction": (0.0, 0.05),
    "rise": (0.1, 0.5),
    "EntropyFloorRule.fraction": (0.01, 0.9),
    "stop_when": ((),),
    # Data and loop.
    "measure_updates_every_steps": (1, 2),
    "probe_tokens": (0, 64),
    "mixture": ({"legal": 1}, {"legal": 1, "speeches": 2}),
    "tokenizer": ("bpe-1024",),
    "evaluation_tokens": (64,),
    "seq_len": SEQ_LENS,
    "global_batch_size": (BATCH_SIZE,),
    "micro_batch_size": (1, 2, 4),
    "log_every_steps": (1, 2, 5),
    "budget_tokens": tuple(NUM_STEPS * BATCH_SIZE * seq_len for seq_len in SEQ_LENS),
    "evaluate_every_tokens": (BATCH_SIZE * SEQ_LENS[0],),
    "checkpoint_every_tokens": (2 * BATCH_SIZE * SEQ_LENS[0],),
    "TrainConfig.seed": (0, 5),
    # Other starts need weights on disk: tests/integration/test_training_start.py.
    "start": ({"kind": "scratch"},),
}
"""What a field may be; where it may also be left out, half of all configs do."""

_MAX_ATTEMPTS = 1000
_LEFT_OUT = {
    "evaluation_tokens": 0.0,
    "mixture": 0.0,
    "moe": 0.1,
    "router": 0.1,
    "balancing": 0.2,
    "predictor": 0.2,
    "normalize": 0.7,
    "trained": 0.6,
}
"""How often a field stays at its default, where that is not half of the time."""


def random_config(seed: int) -> TrainConfig:
    """Returns a valid config of tiny sizes that trains `NUM_STEPS` steps; the same for the same seed.

    Raises:
        NotImplementedError: a field is of a type that nothing here says values for.
    """
    draw = _Draw(seed)
    for _ in range(_MAX_ATTEMPTS):
        try:
            config = draw.train_config()
        except ValidationError:
            continue
        if config.num_steps == NUM_STEPS:
            return config
    raise AssertionError(f"no valid config in {_MAX_ATTEMPTS} attempts of seed {seed}")


def options_of(section: BaseModel, path: str = "") -> set[str]:
    """Returns `Class.field=value` of every kind, flag and named choice of a config and `Class.field` of what is given
    where it may be left out: what a set of configs has to cover together."""
    found: set[str] = set()
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        place = f"{type(section).__name__}.{name}"
        if isinstance(value, str | bool) and place not in _UNBOUND:
            found.add(f"{place}={value}")
        for each in value if isinstance(value, tuple) else (value,):
            if isinstance(each, BaseModel):
                found |= options_of(each)
        if info.default is None:
            found.add(f"{place} {'absent' if value is None else 'given'}")
    return found


_UNBOUND = {"PatternGroup.pattern", "MetricRule.metric"}


def all_options(annotation: Any = TrainConfig) -> set[str]:
    """Returns what `options_of` can find in any config, read off the classes; starts from weights on disk excepted."""
    found: set[str] = set()
    for section in _sections(annotation):
        for name, info in section.model_fields.items():
            place = f"{section.__name__}.{name}"
            if name == "start":
                found.add("ScratchStartConfig.kind=scratch")
                continue
            kind = _bare(info.annotation)
            if info.default is None:
                found |= {f"{place} absent", f"{place} given"}
            for member in _members(kind):
                if member is bool:
                    found |= {f"{place}=True", f"{place}=False"}
                elif get_origin(member) is Literal:
                    found |= {f"{place}={choice}" for choice in _choices(section, name, member)}
            found |= all_options(kind)
    return found


class _Draw:
    """Draws values of fields from one stream of random numbers."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._width_multiple = 1

    def train_config(self) -> TrainConfig:
        precision: Any = Float32Config()
        if self._random.random() < 0.5:
            precision = self._value(TrainConfig, "precision", PrecisionConfig)
        self._width_multiple = precision.dim_multiple if isinstance(precision, QuantizedExpertsSection) else 1
        return self._section(TrainConfig, precision=precision)

    def _section(self, section: type[BaseModel], **fixed: Any) -> Any:
        """Returns a valid instance; what must fit to fields outside of it is refused further up."""
        fields = dict(fixed)
        for _ in range(_MAX_ATTEMPTS):
            fields = dict(fixed)
            for name, info in section.model_fields.items():
                if name == "kind" or name in fixed:
                    continue
                if not info.is_required() and self._random.random() < _LEFT_OUT.get(name, 0.5):
                    continue
                fields[name] = self._value(section, name, info.annotation)
            try:
                return section.model_validate(fields)
            except ValidationError:
                if section is TrainConfig:
                    raise  # a precision without experts would never fit
        raise AssertionError(f"no valid {section.__name__} in {_MAX_ATTEMPTS} attempts: {fields}")

    def _value(self, section: type[BaseModel], name: str, annotation: Any) -> Any:
        if name in ("dim", "hidden_dim"):
            fitting = [width for width in WIDTHS if width % self._width_multiple == 0]
            return self._random.choice([width for width in fitting if name == "hidden_dim" or width >= 32][:2])
        for key in (f"{section.__name__}.{name}", name):
            if key in VALUES:
                return self._random.choice(VALUES[key])
        return self._of_type(section, name, _bare(annotation))

    def _of_type(self, section: type[BaseModel], name: str, kind: Any) -> Any:
        members = [member for member in _members(kind) if member is not type(None)]
        chosen = self._random.choice(members)
        if get_origin(chosen) is Literal:
            return self._random.choice(get_args(chosen))
        if get_origin(chosen) is tuple:
            element = _bare(get_args(chosen)[0])
            number = self._random.choice((0, 1, 1, 2, 2, 3))
            return tuple(self._of_type(section, name, element) for _ in range(number))
        if chosen is bool:
            return self._random.random() < 0.5
        if isinstance(chosen, type) and issubclass(chosen, Section):
            return self._section(chosen)
        raise NotImplementedError(
            f"{section.__name__}.{name} is {chosen}, and nothing says what it may be; add an entry to VALUES in "
            f"{__name__}"
        )


def _bare(annotation: Any) -> Any:
    """Returns the type without what `Annotated` says of it."""
    return _bare(get_args(annotation)[0]) if get_origin(annotation) is Annotated else annotation


def _members(annotation: Any) -> tuple[Any, ...]:
    """Returns the types of a union, or the one type there is."""
    annotation = _bare(annotation)
    if get_origin(annotation) not in (Union, types.UnionType):
        return (annotation,)
    return tuple(inner for member in get_args(annotation) for inner in _members(member))


def _choices(section: type[BaseModel], name: str, literal: Any) -> tuple[Any, ...]:
    for key in (f"{section.__name__}.{name}", name):
        if key in VALUES:
            return VALUES[key]
    return get_args(literal)


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """Returns the config classes that a value of this type may be made of, directly or as a tuple's elements."""
    found: list[type[BaseModel]] = []
    for member in _members(annotation):
        if get_origin(member) is tuple:
            found += _sections(get_args(member)[0])
        elif isinstance(member, type) and issubclass(member, BaseModel):
            found.append(member)
    return found
