"""Exchange of weights with Hugging Face `transformers`, which is not imported: architectures by their `model_type`."""

from typing import TYPE_CHECKING, Any

from trainer.registry import Registry

if TYPE_CHECKING:
    from trainer.interop.architecture import Architecture

__all__ = ["ARCHITECTURES"]

ARCHITECTURES: "Registry[Architecture[Any]]" = Registry(
    "Hugging Face architecture",
    {
        "llama": "trainer.interop.llama:Llama",
        "mixtral": "trainer.interop.mixtral:Mixtral",
        "olmoe": "trainer.interop.olmoe:Olmoe",
        "qwen2_moe": "trainer.interop.qwen2_moe:Qwen2Moe",
        "qwen3": "trainer.interop.qwen3:Qwen3",
        "qwen3_moe": "trainer.interop.qwen3_moe:Qwen3Moe",
        "gpt_oss": "trainer.interop.gpt_oss:GptOss",
        "glm4_moe": "trainer.interop.glm4_moe:Glm4Moe",
        "deepseek_v2": "trainer.interop.deepseek_v2:DeepseekV2",
        "deepseek_v3": "trainer.interop.deepseek_v3:DeepseekV3",
    },
)
