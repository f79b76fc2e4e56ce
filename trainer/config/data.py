"""Training data: a weighted mixture of corpora, one tokenizer, one sequence length."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from trainer.config.section import Section

CORPORA = ("books", "code_python", "docs", "legal", "math_formal", "speeches")
"""The corpora that come with evenload, in the order in which results list them."""

MIN_SHARE = 1e-4
"""The smallest share of a mixture: the schedule of samples repeats after at most 10,000 of them."""

TOKENIZER_VOCAB_SIZES = {"bpe-1024": 1024, "bpe-4096": 4096}


def _known_corpus(name: str) -> str:
    if name not in CORPORA:
        raise ValueError(f"there is no corpus named {name!r}; there are: {', '.join(CORPORA)}")
    return name


CorpusName = Annotated[str, AfterValidator(_known_corpus), Field(json_schema_extra={"enum": list(CORPORA)})]


class DataConfig(Section):
    """What is read, in which proportion, and how it is cut."""

    mixture: dict[CorpusName, Annotated[float, Field(gt=0, le=1e6)]] = Field(
        default_factory=lambda: dict.fromkeys(CORPORA, 1.0)
    )
    """Weight per corpus, in any unit: tokens are drawn in proportion to them."""
    tokenizer: Literal["bpe-1024", "bpe-4096"] = "bpe-4096"
    seq_len: int = Field(ge=8, le=131_072)
    evaluation_tokens: int = Field(default=8_192, ge=64, le=10_000_000)
    """Held-out tokens per corpus at each evaluation (all there are, if fewer)."""
    document_masking: bool = False
    """Whether the documents that share a window are kept apart: no position sees an earlier one, in training and in
    evaluation. The end-of-text token before a document is its first position."""

    @model_validator(mode="after")
    def _can_be_scheduled(self) -> "DataConfig":
        if not self.mixture:
            raise ValueError(f"mixture is empty; name at least one of: {', '.join(CORPORA)}")
        total = sum(self.mixture.values())
        name, weight = min(self.mixture.items(), key=lambda item: item[1])
        if weight / total < MIN_SHARE:
            raise ValueError(
                f"mixture gives {name} {weight / total:.2e} of all tokens; give it at least {MIN_SHARE:g} of them, "
                "or leave it out"
            )
        return self
