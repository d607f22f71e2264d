"""The losses that steering is trained with, on log-probabilities: KL to the target, KTO, and DPO beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

from mpf_chains.errors import InvalidInput

IGNORE = -100
"""A target that counts for nothing."""


@dataclass(frozen=True)
class KTO:
    """A KTO loss and what it was measured against.

    Args:
        loss: Mean over the rows, a scalar with a gradient.
        z_ref: max(0, mean log-ratio of the mismatched pairs), in nats; without a gradient.
    """

    loss: torch.Tensor
    z_ref: torch.Tensor


def log_probabilities_of(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Log-probabilities (nats) of tokens, summed over each row.

    Args:
        logits: Shape (rows, positions, vocabulary), those that predict the targets at the same positions.
        targets: Shape (rows, positions); ids, or `IGNORE` where there is none.

    Returns:
        Shape (rows,); 0 for a row without targets.
    """
    return -functional.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none"
    ).view(targets.shape).sum(-1)  # fmt: skip


def kl_to_target(log_probabilities: torch.Tensor, target: torch.Tensor, desirable: torch.Tensor) -> torch.Tensor:
    """Mean over desirable rows of KL(target ‖ tokens) = Σ p (log p − log π), in nats.

    π is over the whole vocabulary: what goes to other tokens than those of the classes is lost to them, and counts.
    Source: arXiv 2604.05756, the KL part of its loss.

    Args:
        log_probabilities: Shape (rows, classes): log π of each class's token after the row's prompt.
        target: Shape (rows, classes): p, each row summing to 1.
        desirable: Shape (rows,), boolean: rows that count.

    Returns:
        A scalar; 0 if no row is desirable.

    Examples:
        >>> half = torch.full((1, 2), 0.5)
        >>> round(float(kl_to_target((half / 2).log(), half, torch.tensor([True]))), 4)  # half of π is elsewhere
        0.6931
    """
    wanted = target > 0
    log_target = target.masked_fill(~wanted, 1.0).log()
    terms = target * (log_target - log_probabilities.masked_fill(~wanted, 0.0))
    counted = terms.sum(-1).masked_fill(~desirable, 0.0)
    return counted.sum() / desirable.sum().clamp(min=1)


def kto(
    policy: torch.Tensor,
    reference: torch.Tensor,
    desirable: torch.Tensor,
    mismatched: torch.Tensor,
    mismatched_reference: torch.Tensor,
    *,
    beta: float = 0.1,
    weights: tuple[float, float] = (1.0, 1.0),
) -> KTO:
    """Kahneman-Tversky optimisation: mean of 1 − σ(β(r − z)) over desirable rows and 1 − σ(β(z − r)) over the others.

    r = policy − reference, and z = max(0, mean r of mismatched pairs) estimates how far the policy has moved.
    Source: Ethayarajh et al. 2024, "KTO: Model alignment as prospect theoretic optimization", arXiv 2402.01306,
    equation 7; agrees with TRL's to 1e-6.

    Args:
        policy: Shape (rows,): log-probability (nats) of what is learned of each response, under the model that
            learns.
        reference: Shape (rows,): the same under the frozen one.
        desirable: Shape (rows,), boolean.
        mismatched: Shape (pairs,): as ``policy``, of prompts with responses to other prompts.
        mismatched_reference: Shape (pairs,).
        beta: How fast the loss saturates, above 0. Default 0.1.
        weights: Of desirable and of undesirable rows. Default 1 and 1.

    Raises:
        InvalidInput: If there are fewer than two rows: a row alone has no mismatched pair.
    """
    if len(policy) < 2 or not len(mismatched):
        raise InvalidInput(
            f"KTO got {len(policy)} rows and {len(mismatched)} mismatched pairs; a row alone has no pair to measure "
            "its reference point on.",
            hint="Use a micro-batch of at least 2.",
        )
    z_ref = (mismatched - mismatched_reference).detach().mean().clamp(min=0)
    gain = beta * (policy - reference - z_ref)
    losses = torch.where(desirable, weights[0] * torch.sigmoid(-gain), weights[1] * torch.sigmoid(gain))
    return KTO(losses.mean(), z_ref)


def dpo(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    chosen_reference: torch.Tensor,
    rejected_reference: torch.Tensor,
    *,
    beta: float = 0.1,
) -> torch.Tensor:
    """Direct preference optimisation: mean −log σ(β (r chosen − r rejected)), r = policy − reference.

    Source: Rafailov et al. 2023, arXiv 2305.18290, equation 7.

    Args:
        chosen: Shape (pairs,): log-probability (nats) of the better response under the model that learns.
        rejected: Shape (pairs,): of the worse response to the same prompt.
        chosen_reference: Shape (pairs,): under the frozen model.
        rejected_reference: Shape (pairs,).
        beta: Above 0. Default 0.1.

    Returns:
        A scalar.
    """
    margin = (chosen - chosen_reference) - (rejected - rejected_reference)
    return -functional.logsigmoid(beta * margin).mean()
