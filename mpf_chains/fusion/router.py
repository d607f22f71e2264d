"""One perspective per request, drawn by weight."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import Runnable

from mpf_chains.artifact import Mode, WeightsLike
from mpf_chains.fusion.base import PerspectiveRunnable


class PerspectiveRouter(PerspectiveRunnable):
    """Answers each request under one perspective, drawn with the calibrated weights ("sampled" mode).

    One model call per request, so latency and cost are those of the model. Whatever the model gives passes through:
    tool calls, usage, chunks as they come.

    The draw is a function of (seed, entity, key). The key is ``config["configurable"]["mpf_key"]``, else the run id,
    else a fresh one. The answer's ``response_metadata["mpf"]`` (in a stream: that of the first chunk) holds mode,
    perspective, entity, key and weights_version.

    While serving, any field can be assigned (``router.weights = Calibration.load("new.json")``): it is checked, then
    takes effect for the requests that begin after it, without a lock. Each request sees one version.

    Args:
        model: A chat model, or any Runnable from messages to a message or text.
        weights: A Calibration, perspective → weight, or entity → perspective → weight.
        perspectives: What to draw from. Default: the Calibration's own.
        entity: Whose weights to use: a name, or a function of the conversation (a list of messages) that returns one,
            such as :class:`~mpf_chains.fusion.policy.MentionedEntity`. ``config["configurable"]["mpf_entity"]`` comes
            first. Default None.
        fallback: For an entity without weights: "error" (default), "pooled" or "uniform".
        position: Where the instruction joins an existing system message: "before" (default), "after", "replace".
        seed: Of the draws. Default 0, or that of a given sampler.
        sampler: "iid" (default; independent by key), "quota" (realised counts stay within one of n · weight), or an
            object with their ``draw``.
        strength: The share of requests, 0 to 1 (default), that a perspective answers; the others go to the model with
            the prompt they came with. With "iid", a key steered at one strength is steered at every higher one.
        shadow: Whether to let the bare model answer, and only record what would have been drawn, under "shadow".
            Default False.

    Raises:
        WeightsError: If the weights are no distributions over the perspectives.

    Examples:
        >>> from mpf_chains.perspectives import Perspective
        >>> from mpf_chains.testing import BiasedChatModel
        >>> model = BiasedChatModel(answers={"Praise": ["Great."], "Doubt": ["Risky."]})
        >>> router = PerspectiveRouter(
        ...     model=model,
        ...     perspectives=[Perspective("fan", "Praise it."), Perspective("critic", "Doubt it.")],
        ...     weights={"fan": 0.0, "critic": 1.0},
        ... )
        >>> answer = router.invoke("How is it?", {"configurable": {"mpf_key": "request-1"}})
        >>> answer.text, answer.response_metadata["mpf"]["perspective"]
        ('Risky.', 'critic')
    """

    def __init__(self, *, model: Runnable[Any, Any], weights: WeightsLike, **fields: Any) -> None:
        super().__init__(**fields, model=model, weights=weights)

    @property
    def _mode(self) -> Mode:
        return "sampled"
