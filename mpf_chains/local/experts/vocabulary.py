"""What token ids there are, and whether two models mean the same by each."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, VocabularyMismatch
from mpf_chains.local.sampling import is_whole

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HINT = "Experts must have the base model's vocabulary; take a small model of the same family."


def vocabulary_size(tokenizer: PreTrainedTokenizerBase) -> int:
    """Ids that mean something: one more than the highest. Models often have more output rows than that, as padding."""
    return max(tokenizer.get_vocab().values()) + 1


def token_ids(ids: Any, size: int, what: str) -> list[int]:
    """A text's token ids, whatever holds them.

    Args:
        ids: A sequence, or a tensor or array of one dimension.
        size: Ids must lie below it.
        what: Its name, for the message.

    Raises:
        InvalidInput: If it is something else, or an id is outside of the vocabulary.

    Examples:
        >>> token_ids([3, 29], 29, "prompt")
        Traceback (most recent call last):
        ...
        mpf_chains.errors.InvalidInput: `prompt` has 29 at place 1; token ids are whole numbers from 0 to 28.
    """
    found = ids.tolist() if hasattr(ids, "tolist") else ids
    if isinstance(found, str) or not isinstance(found, Iterable):
        raise InvalidInput(f"`{what}` is {str(ids)[:40]!r}; it must be a list of token ids.")
    found = list(found)
    for place, token in enumerate(found):
        if not is_whole(token, least=0) or token >= size:
            raise InvalidInput(
                f"`{what}` has {str(token)[:40]} at place {place}; token ids are whole numbers from 0 to {size - 1}."
            )
    return [int(token) for token in found]


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
