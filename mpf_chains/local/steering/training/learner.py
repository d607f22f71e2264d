"""A model that learns to be steered: its new rows and adapters, and the log-probabilities that losses are made of."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import torch

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.adapter import Adapter
from mpf_chains.local.experts.training.tuning import adapters_in
from mpf_chains.local.prompt import write_prompt
from mpf_chains.local.steering.adapter import SteeringAdapter
from mpf_chains.local.steering.calibration.states import arguments, output_inputs
from mpf_chains.local.steering.steered import NewEmbeddings, class_log_probabilities
from mpf_chains.local.steering.training.data import SteeringRow
from mpf_chains.local.steering.training.losses import IGNORE, log_probabilities_of
from mpf_chains.local.steering.training.prefixes import Prefixes

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<factor>[AB])\..+\.weight")


class Ids(NamedTuple):
    """A row as token ids.

    Args:
        prompt: The whole prompt.
        response: Steering token, answer, end token; of a long answer only the beginning.
        given: Tokens behind the steering token that are not learned. Default 0.
    """

    prompt: Sequence[int]
    response: Sequence[int]
    given: int = 0

    @property
    def targets(self) -> list[int]:
        """What is learned behind the steering token; `IGNORE` for what is given."""
        return [IGNORE] * self.given + list(self.response[1 + self.given :])


class Read(NamedTuple):
    """What a model makes of some rows.

    Args:
        states: Shape (rows, width): what the output layer gets where responses begin.
        logits: Shape (rows, vocabulary): what it gives there.
        behind: Shape (rows, columns, vocabulary): logits of what comes behind steering tokens.
        targets: Shape (rows, columns): what does come; `IGNORE` where nothing does.
    """

    states: torch.Tensor
    logits: torch.Tensor
    behind: torch.Tensor
    targets: torch.Tensor


class Scores(NamedTuple):
    """Log-probabilities, in nats, of some rows.

    Args:
        responses: Shape (rows,): of what is learned of the responses.
        classes: Shape (rows, classes): of each class's token where the response begins.
    """

    responses: torch.Tensor
    classes: torch.Tensor


class Learner:
    """A model in which only an adapter learns; see `learning`.

    Args:
        model: The model, with low-rank adapters in it if there are to be any.
        tokenizer: Its tokenizer.
        adapter: Where to start.
        scale: Factor of the low-rank products.
        lora: The parameters of low-rank adapters by peft's names.
        longest: Tokens of an answer that are read. None (default): all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        adapter: SteeringAdapter,
        scale: float,
        lora: Mapping[str, torch.nn.Parameter],
        longest: int | None = None,
    ) -> None:
        self._model, self._tokenizer, self._adapter, self._scale = model, tokenizer, adapter, scale
        self._longest = longest
        self._ids = adapter.tokens.ids(model, tokenizer)
        self._output = _parameter(adapter.output_rows, model)
        self._input = None if adapter.input_rows is None else _parameter(adapter.input_rows, model)
        self._embeddings = None if self._input is None else NewEmbeddings(model, self._input)
        self._lora = dict(lora)
        prefixes = Prefixes(model)
        self._prefixes = prefixes if prefixes.possible and not lora else None
        if adapter.lora is not None:
            self._put(adapter.lora)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What learns, by name."""
        rows = {"output_rows": self._output} | ({} if self._input is None else {"input_rows": self._input})
        return rows | self._lora

    @property
    def adapter(self) -> SteeringAdapter:
        """What was learned so far."""
        halves: dict[str, dict[str, torch.Tensor]] = {}
        for name, parameter in self._lora.items():
            module, factor = _factor(name)
            halves.setdefault(module, {})[factor] = parameter.detach().float().cpu()
        factors = {module: (half["A"].clone(), half["B"] * self._scale) for module, half in sorted(halves.items())}
        lora = Adapter(self._adapter.name, factors, self._adapter.base) if factors else None
        inputs = None if self._input is None else self._input.detach()
        return replace(self._adapter, output_rows=self._output.detach(), input_rows=inputs, lora=lora)

    def ids(self, row: SteeringRow) -> Ids:
        """A row as the model reads it.

        Raises:
            InvalidInput: If it is longer than the model's context, or the tokenizer has no end token.
        """
        end = self._tokenizer.eos_token_id
        if end is None:
            raise InvalidInput("The tokenizer has no end token, so answers cannot be learned to end.")
        prompt = write_prompt(self._tokenizer, [{"role": "user", "content": row.prompt}])
        answer = self._tokenizer.encode(row.answer, add_special_tokens=False)
        first = self._ids[list(self._adapter.tokens.classes).index(row.token)]
        given = int(self._adapter.plain_opening)
        if given and (len(answer) <= given or self._longest == given):
            raise InvalidInput(
                f"The row about {row.context!r} has the answer {row.answer!r}, of which nothing is left to learn "
                "behind its first token.",
                hint="Leave out `plain_opening`, which is for longer texts, or learn from more tokens.",
            )
        whole = Ids(prompt, [first, *[*answer, int(end)][: self._longest]], given)
        context = getattr(self._model.config.get_text_config(), "max_position_embeddings", None)
        if context is not None and len(prompt) + len(whole.response) > context:
            raise InvalidInput(
                f"The row about {row.context!r} has {len(prompt) + len(whole.response)} tokens; the model reads "
                f"{context}."
            )
        return whole

    def read(self, rows: Sequence[Ids]) -> Scores:
        """Log-probabilities of some rows, of which there is at least one."""
        with nullcontext() if self._embeddings is None else self._embeddings.active():
            read = _after_prefixes(self._prefixes, rows) if self._prefixes else self._whole(rows)
        classes = class_log_probabilities(read.states, read.logits, self._output, self._ids)
        chosen = torch.tensor([[self._ids.index(row.response[0])] for row in rows], device=classes.device)
        responses = classes.gather(1, chosen)[:, 0] + log_probabilities_of(read.behind.float(), read.targets)
        return Scores(responses, classes)

    def _whole(self, rows: Sequence[Ids]) -> Read:
        texts = [[*row.prompt, *row.response[:-1]] for row in rows]
        size, columns, device = max(map(len, texts)), max(len(row.response) for row in rows), self._model.device
        ids = torch.tensor([[0] * (size - len(text)) + text for text in texts], device=device)
        mask = torch.tensor([[0] * (size - len(text)) + [1] * len(text) for text in texts], device=device)
        with output_inputs(self._model) as seen:
            told = arguments(self._model, mask, columns)
            logits = self._model(input_ids=ids, attention_mask=mask, use_cache=False, **told).logits[:, -columns:]
        begin = torch.tensor([columns - len(row.response) for row in rows], device=device)
        every = torch.arange(len(rows), device=device)
        rest = [[IGNORE] * (columns - len(row.response) + 1) + row.targets for row in rows]
        states = seen[0][:, -columns:][every, begin]
        return Read(states, logits[every, begin], logits, torch.tensor(rest, device=device))

    @contextmanager
    def as_of(self, state: Mapping[str, torch.Tensor]) -> Iterator[None]:
        """While open, the parameters are those of an earlier state, and nothing learns."""
        now = {name: parameter.data for name, parameter in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = state[name]
            with torch.no_grad():
                yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = now[name]

    def state(self) -> dict[str, torch.Tensor]:
        """A copy of the parameters, for `as_of`."""
        return {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    def _put(self, lora: Adapter) -> None:
        with torch.no_grad():
            for name, parameter in self._lora.items():
                module, factor = _factor(name)
                down, up = lora.factors[module]
                parameter.copy_(down if factor == "A" else up / self._scale)


def _after_prefixes(prefixes: Prefixes, rows: Sequence[Ids]) -> Read:
    """The rows, with prompts that are read once only."""
    columns = max(len(row.response) for row in rows) - 1
    gaps = [columns + 1 - len(row.response) for row in rows]
    ids = [[*row.response[:-1], *[0] * gap] for row, gap in zip(rows, gaps, strict=True)]
    mask = [[1] * (columns - gap) + [0] * gap for gap in gaps]
    targets = [[*row.targets, *[IGNORE] * gap] for row, gap in zip(rows, gaps, strict=True)]
    states, logits, behind = prefixes.after([row.prompt for row in rows], torch.tensor(ids), torch.tensor(mask))
    return Read(states, logits, behind, torch.tensor(targets, device=states.device))


@contextmanager
def learning(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    adapter: SteeringAdapter,
    *,
    rank: int | None,
    scale: float,
    targets: Sequence[str] | str | None,
    seed: int,
    longest: int | None = None,
) -> Iterator[Learner]:
    """The model with an adapter in it, of which only that learns; as it was before at the end.

    Args:
        model: A causal language model in float32.
        tokenizer: Its tokenizer.
        adapter: Where to start. Its low-rank changes, if it has any, must be of this rank and in these modules.
        rank: Of the low-rank changes. None: only rows learn.
        scale: Their factor.
        targets: Names of the modules that get them. None: peft's choice, mostly query and value projections.
        seed: Seeds them.
        longest: Tokens of an answer that are read. None (default): all.

    Raises:
        InvalidInput: If the adapter does not fit the model, or the model has no such modules.
        MissingExtra: If peft is not installed.
    """
    adapter.check(model, tokenizer)
    learns = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    was_training = model.training
    try:
        model.requires_grad_(requires_grad=False)
        model.train(mode=False)
        if rank is None:
            yield Learner(model, tokenizer, adapter, scale, {}, longest)
        else:
            with adapters_in(model, rank, scale, targets, seed) as tuned:
                yield Learner(model, tokenizer, adapter, scale, tuned.parameters, longest)
    finally:
        for parameter, before in learns:
            parameter.requires_grad_(before)
        model.train(was_training)


def _parameter(rows: torch.Tensor, model: PreTrainedModel) -> torch.nn.Parameter:
    return torch.nn.Parameter(rows.detach().clone().to(model.device))


def _factor(name: str) -> tuple[str, str]:
    match = _LORA.fullmatch(name)
    if match is None:
        raise InvalidInput(f"The parameter {name!r} is no low-rank factor of a linear module.")
    return match["module"], match["factor"]
