"""Which columns of a batch of prompts are padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mpf_chains.errors import InvalidInput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HINT = "Pass the prompt's `attention_mask` to the processor, or call `reset(attention_mask)` before a new prompt."


def checked_mask(attention_mask: torch.Tensor, prompt: torch.Tensor) -> torch.Tensor:
    """The mask, if it goes with a batch, in which each prompt may have several rows next to each other.

    Args:
        attention_mask: 1 for text, 0 for padding, shape (prompts, columns).
        prompt: Token ids, shape (prompts times beams or sequences, columns).

    Returns:
        Integers, shape (prompts, columns), on the prompt's device.

    Raises:
        InvalidInput: If shapes do not go together, or padding lies behind text.
    """
    if not isinstance(attention_mask, torch.Tensor):
        raise InvalidInput(f"The `attention_mask` is a {type(attention_mask).__name__}; it must be a tensor.")
    mask = attention_mask.to(prompt.device).long()
    rows, columns = prompt.shape
    if mask.ndim != 2 or mask.shape[1] != columns or not len(mask) or rows % len(mask):
        raise InvalidInput(
            f"The `attention_mask` has shape {tuple(mask.shape)}; the prompt, of {rows} rows (beams included), has "
            f"{columns} columns.",
            hint=_HINT,
        )
    if bool((mask.diff(dim=1) < 0).any()) or not bool(mask[:, -1].all()):
        raise InvalidInput("The `attention_mask` has zeros behind ones.", hint="Pad on the left, as generation needs.")
    return mask


def inferred_padding(prompt: torch.Tensor, tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    """The mask of a batch that came without one, where the tokens leave no doubt.

    No prompt begins with the padding token: no padding. Some do, and the token means nothing else (it is no BOS or
    EOS): their first tokens, up to another one, are padding. Some do, the token means something else too, and all
    rows are one and the same prompt: no padding.

    Raises:
        InvalidInput: In all other cases.
    """
    mask = torch.ones_like(prompt)
    pad: Any = tokenizer.pad_token_id
    if pad is None or not bool((prompt == pad).any()):
        return mask
    special = pad in {tokenizer.eos_token_id, tokenizer.bos_token_id}
    begins = prompt[:, 0] == pad
    if special and (not bool(begins.any()) or bool((prompt == prompt[0]).all())):
        return mask
    if special:
        row = int(begins.long().argmax())
        raise InvalidInput(
            f"Prompt {row} begins with {tokenizer.pad_token!r}, which pads but also begins or ends texts: whether it "
            "is padding here cannot be told.",
            hint=_HINT,
        )
    text = prompt.ne(pad).long()
    mask = (text.cumsum(-1) > 0).long()
    if not torch.equal(mask, text):
        raise InvalidInput(f"A prompt has {tokenizer.pad_token!r} behind text.", hint="Pad on the left, or: " + _HINT)
    return mask


def unpadded(input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> list[list[int]]:
    """The prompts of a batch without their padding.

    Args:
        input_ids: Token ids, shape (rows, columns).
        attention_mask: 1 for text, 0 for padding on the left, same shape. None (default): no padding.

    Raises:
        InvalidInput: If there is no prompt, or the mask does not go with it.
    """
    if not isinstance(input_ids, torch.Tensor):
        raise InvalidInput(f"`input_ids` is a {type(input_ids).__name__}; it must be a tensor.")
    if input_ids.ndim != 2 or not input_ids.numel():
        raise InvalidInput(
            f"`input_ids` has shape {tuple(input_ids.shape)}; it must be (rows, columns), at least one of each."
        )
    mask = torch.ones_like(input_ids) if attention_mask is None else checked_mask(attention_mask, input_ids)
    if len(mask) != len(input_ids):
        raise InvalidInput(f"The `attention_mask` has {len(mask)} rows; there are {len(input_ids)} prompts.")
    return [ids[text].tolist() for ids, text in zip(input_ids, mask.bool(), strict=True)]
