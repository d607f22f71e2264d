"""Whether two models mean the same by each token id."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpf_chains.errors import VocabularyMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HINT = "Experts must have the base model's vocabulary; take a small model of the same family."


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that mean something: one more than the highest. Models often have more output rows than that, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def check_vocabulary(
    base: PreTrainedTokenizerBase, expert: PreTrainedTokenizerBase, rows: int, who: str = "the expert"
) -> None:
    """Compare two vocabularies id by id; the size of the padding behind them does not matter.

    Args:
        base: Tokenizer of the model that is corrected.
        expert: Tokenizer of the model that corrects it.
        rows: Logits that the latter gives.
        who: Its name, for the message.

    Raises:
        VocabularyMismatch: If an id stands for different tokens, for none in one of them, or has no logit.
    """
    ours, theirs = ({i: token for token, i in each.get_vocab().items()} for each in (base, expert))
    if base is not expert:
        for i in sorted(ours.keys() | theirs.keys()):
            if ours.get(i) != theirs.get(i):
                raise VocabularyMismatch(
                    f"Token id {i} is {_shown(ours, i)} in the base model's vocabulary ({len(ours)} tokens) and "
                    f"{_shown(theirs, i)} in that of {who} ({len(theirs)} tokens).",
                    hint=_HINT,
                )
    missing = [i for i in ours if i >= rows]
    if missing:
        raise VocabularyMismatch(
            f"Token id {min(missing)} is {_shown(ours, min(missing))}; {who} has logits for ids below {rows} only.",
            hint=_HINT,
        )


def _shown(tokens: dict[int, str], i: int) -> str:
    return repr(tokens[i]) if i in tokens else "no token"
