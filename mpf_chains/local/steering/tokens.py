"""`SteeringTokens`: one token for each class of an attribute, with which an answer can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput
from mpf_chains.perspectives import Perspective, PerspectiveSet

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ARGUMENT = "steer"
"""The argument of a model call that names the class an answer is steered to."""


@dataclass(frozen=True)
class SteeringTokens:
    """The tokens that stand for the classes of an attribute.

    Args:
        attribute: Its name, such as "gender"; of a joint target "gender × race".
        classes: Their names, at least two, all different.
        tokens: The token of each class, a text that the tokenizer writes as one token ("0", "1"). None (default): new
            tokens, which no text contains: their ids follow the model's vocabulary, and their embeddings are the
            adapter's, so the vocabulary is not resized.

    Raises:
        InvalidInput: If names are blank or repeated, or tokens and classes are not equally many.

    Examples:
        >>> SteeringTokens("gender", ("female", "male"), ("0", "1")).perspectives["female"].arguments["steer"]
        'female'
    """

    attribute: str
    classes: Sequence[str]
    tokens: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "classes", tuple(self.classes))
        names = (self.attribute, *self.classes)
        if len(self.classes) < 2 or not all(isinstance(name, str) and name.strip() for name in names):
            raise InvalidInput(
                f"Steering tokens of {self.attribute!r} have classes {', '.join(map(repr, self.classes)) or 'none'}; "
                "at least two texts are needed, none blank."
            )
        _check_unique("Classes", self.attribute, self.classes)
        if self.tokens is not None:
            object.__setattr__(self, "tokens", tuple(self.tokens))
            if not all(isinstance(token, str) for token in self.tokens):
                raise InvalidInput(
                    f"The tokens of {self.attribute!r} are {', '.join(map(repr, self.tokens))}; they must be texts.",
                    hint="Give what the tokenizer writes as one token, such as '0', and not its id.",
                )
            if len(self.tokens) != len(self.classes):
                raise InvalidInput(
                    f"There are {len(self.tokens)} tokens for the {len(self.classes)} classes of {self.attribute!r}."
                )
            _check_unique("Tokens", self.attribute, self.tokens)

    @property
    def new(self) -> bool:
        """Whether the tokens are new ones."""
        return self.tokens is None

    @property
    def perspectives(self) -> PerspectiveSet:
        """Each class as a perspective of its name that binds its token: weights over them are target shares."""
        return PerspectiveSet([Perspective(name, arguments={ARGUMENT: name}) for name in self.classes])

    def ids(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
        """The id of each class's token; of new tokens the numbers that follow the model's vocabulary.

        Args:
            model: Says how many tokens it has embeddings of.
            tokenizer: The model's.

        Raises:
            InvalidInput: If a token is several tokens to this tokenizer (named with their ids), is unknown to it, ends
                an answer, or is that of another class too.
        """
        size = vocabulary_size(model)
        if self.tokens is None:
            return tuple(range(size, size + len(self.classes)))
        found: dict[int, str] = {}
        for name, token in zip(self.classes, self.tokens, strict=True):
            ids = list(tokenizer.encode(token, add_special_tokens=False))
            if len(ids) != 1:
                pieces = ", ".join(f"{piece!r} ({i})" for piece, i in zip(_pieces(tokenizer, ids), ids, strict=True))
                raise InvalidInput(
                    f"The token {token!r} of class {name!r} is {len(ids)} tokens to this tokenizer: "
                    f"{pieces or 'none'}.",
                    hint="Choose texts of one token, such as digits, or leave `tokens` out for new ones.",
                )
            (id_,) = ids
            if id_ == tokenizer.unk_token_id and token != tokenizer.unk_token:
                raise InvalidInput(f"The token {token!r} of class {name!r} is unknown to this tokenizer.")
            if id_ in _ends(model, tokenizer):
                raise InvalidInput(f"The token {token!r} of class {name!r} (id {id_}) ends an answer.")
            if id_ in found:
                raise InvalidInput(f"The classes {found[id_]!r} and {name!r} share the token {token!r} (id {id_}).")
            found[id_] = name
        return tuple(found)


def vocabulary_size(model: PreTrainedModel) -> int:
    """How many tokens a model has embeddings of, padding included."""
    embeddings: Any = model.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def _pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    return [str(piece) for piece in tokenizer.convert_ids_to_tokens(list(ids))]


def _ends(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> set[int]:
    configured = getattr(model.generation_config, "eos_token_id", None)
    ids = configured if isinstance(configured, list) else [configured]
    return {int(i) for i in [*ids, tokenizer.eos_token_id] if i is not None}


def _check_unique(what: str, attribute: str, names: Sequence[str]) -> None:
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise InvalidInput(f"{what} of {attribute!r} are given more than once: {', '.join(map(repr, twice))}.")
