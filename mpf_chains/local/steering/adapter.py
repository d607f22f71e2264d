"""`SteeringAdapter`: what a model needs to be steered, as a folder of safetensors that is read with suspicion."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from mpf_chains.errors import InvalidInput
from mpf_chains.local.experts.files.adapter import BASE, CONFIG, WEIGHTS, Adapter, read_adapter
from mpf_chains.local.experts.files.manifest import writing
from mpf_chains.local.experts.files.tensors import read_tensors
from mpf_chains.local.fingerprint import fingerprint, same_weights
from mpf_chains.local.steering.tokens import SteeringTokens
from mpf_chains.targets.table import TargetTable

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

STEERING = "steering.safetensors"
_FORMAT = 1
_ABOUT = "mpf_steering"  # key in the metadata of the file


@dataclass(frozen=True, eq=False)
class SteeringAdapter:
    """Rows of steering tokens, and low-rank changes of the model, that were fitted to a target table.

    The rows are kept apart from the model's vocabulary, which is not resized. Output rows act in one place, where an
    answer begins: they decide how probable each class's token is there. Input rows are the embeddings of new tokens.
    So a text without steering tokens gets the logits that it gets without the rows, to the last bit.

    Args:
        tokens: The steering tokens.
        targets: What it was fitted to.
        output_rows: Shape (classes, width): of new tokens the rows themselves, of existing ones what is added to
            theirs.
        input_rows: Shape (classes, width): embeddings of new tokens. None (default): the tokens exist.
        lora: Low-rank changes of the model's linear layers. None (default): there are none.
        base: Fingerprint of the model it was fitted on. None (default): not recorded.
        name: Where it comes from, for messages.
        plain_opening: Whether an answer's first token is drawn as if there were no steering token before it; all others
            see it. For longer texts: their openings tell no class, and stay those of the model (with its low-rank
            changes, if there are any). An answer of one token is then not steered. Needs new tokens. Default False.

    Attributes:
        digest: SHA-256 (hex) of all of it but base and name: adapters with one digest do the same.

    Raises:
        InvalidInput: If tokens, targets and rows do not fit together, or a row is not finite.
    """

    tokens: SteeringTokens
    targets: TargetTable
    output_rows: torch.Tensor
    input_rows: torch.Tensor | None = None
    lora: Adapter | None = None
    base: str | None = None
    name: str = "The steering adapter"
    plain_opening: bool = False
    digest: str = field(init=False)

    def __post_init__(self) -> None:
        import torch

        if self.targets.classes != tuple(self.tokens.classes):
            raise InvalidInput(
                f"{self.name}: the targets have the classes {', '.join(self.targets.classes)}; the tokens "
                f"{', '.join(self.tokens.classes)}."
            )
        if self.tokens.new != (self.input_rows is not None):
            raise InvalidInput(f"{self.name}: new tokens, and only those, have input rows.")
        if self.plain_opening and not self.tokens.new:
            raise InvalidInput(
                f"{self.name}: existing tokens would begin a plain opening themselves.", hint="Use new tokens."
            )
        digest = hashlib.sha256(json.dumps([self.tokens.attribute, self.tokens.tokens, self.targets.digest]).encode())
        for what in ("output_rows", "input_rows"):
            rows = getattr(self, what)
            if rows is not None:
                if rows.ndim != 2 or len(rows) != len(self.tokens.classes) or not rows.shape[1]:
                    raise InvalidInput(
                        f"{self.name}: {what!r} has shape {tuple(rows.shape)}; it needs a row for each of the "
                        f"{len(self.tokens.classes)} classes."
                    )
                if not rows.is_floating_point() or not rows.isfinite().all():
                    raise InvalidInput(f"{self.name}: {what!r} has values that are no finite numbers.")
                own = rows.detach().to("cpu", torch.float32, copy=True)
                object.__setattr__(self, what, own)
                digest.update(what.encode() + own.numpy().tobytes())
        digest.update((self.lora.digest if self.lora else "").encode())
        digest.update(b"plain opening" if self.plain_opening else b"")
        object.__setattr__(self, "digest", digest.hexdigest())

    @classmethod
    def fresh(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        tokens: SteeringTokens,
        targets: TargetTable,
        *,
        plain_opening: bool = False,
    ) -> SteeringAdapter:
        """An adapter that changes nothing yet.

        Existing tokens are as probable as they are to the model; new ones are all alike, with logit 0, and are embedded
        like the mean of the tokens of their class's name.

        Args:
            model: The model to steer.
            tokenizer: Its tokenizer.
            tokens: The steering tokens.
            targets: With the tokens' classes.
            plain_opening: See the class. Default False.

        Raises:
            InvalidInput: If a token is no single token (see `SteeringTokens.ids`), or the targets have other classes.
        """
        import torch

        from mpf_chains.local.steering.calibration.states import embedded, width

        tokens.ids(model, tokenizer)
        inputs = None
        if tokens.new:
            names = [tokenizer.encode(f" {name}", add_special_tokens=False) for name in tokens.classes]
            inputs = torch.stack([embedded(model, ids).mean(0) for ids in names])
        outputs = torch.zeros(len(tokens.classes), width(model))
        return cls(tokens, targets, outputs, inputs, plain_opening=plain_opening, base=fingerprint(model))

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Whether it fits a model.

        Args:
            model: Without an adapter in it.
            tokenizer: The model's.

        Raises:
            InvalidInput: If it was fitted on another model, a row has another width than the model's, a token is no
                single token, or the low-rank changes do not fit. The message names the file and the tensor.
        """
        from mpf_chains.local.steering.calibration.states import embedded, width

        self.tokens.ids(model, tokenizer)
        for what, rows, size in (
            ("output_rows", self.output_rows, width(model)),
            ("input_rows", self.input_rows, embedded(model, [0]).shape[1]),
        ):
            if rows is not None and rows.shape[1] != size:
                raise InvalidInput(
                    f"{self.name}: tensor {what!r} has rows of {rows.shape[1]} values; this model's have {size}.",
                    hint="The adapter was fitted on a model of another size.",
                )
        if self.lora is not None:
            self.lora.check(model)
        if self.base is not None and not same_weights(self.base, fingerprint(model)):
            raise InvalidInput(
                f"{self.name}: its tensors ('output_rows' and others) fit, but it was fitted on a model with "
                f"fingerprint {self.base}; this one has {fingerprint(model)}.",
                hint="Give the model that the adapter was fitted on.",
            )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write it into a folder; its low-rank changes in peft's format.

        Args:
            folder: Made if it is not there; an adapter in it is replaced, once all of the new one is written.

        Raises:
            InvalidInput: If the folder cannot be written.
        """
        import torch
        from safetensors.torch import save_file

        tensors = {"output_rows": self.output_rows, "targets": torch.tensor(self.targets.joint)}
        if self.input_rows is not None:
            tensors["input_rows"] = self.input_rows
        about = {
            "format": _FORMAT,
            "attribute": self.tokens.attribute,
            "tokens": self.tokens.tokens,
            "attributes": [[name, list(classes)] for name, classes in self.targets.attributes.items()],
            "contexts": list(self.targets.contexts),
            "lora": self.lora.digest if self.lora else None,
            "plain_opening": self.plain_opening,
            "digest": self.digest,
        }
        metadata = {"format": "pt", _ABOUT: json.dumps(about)} | ({BASE: self.base} if self.base else {})
        path = Path(folder)
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(prefix=".draft", dir=path) as drafts:
                save_file(tensors, Path(drafts) / STEERING, metadata=metadata)
                if self.lora is not None:
                    write_lora(Path(drafts), self.lora)
                for name in (STEERING, WEIGHTS, CONFIG):
                    draft = Path(drafts) / name
                    if draft.exists():
                        draft.replace(path / name)
                    else:
                        (path / name).unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> SteeringAdapter:
        """Read an adapter.

        Args:
            folder: As `save` writes it.

        Raises:
            InvalidInput: If a file is missing, damaged, too new, or not what its name says. Nothing in it is run.
        """
        path = Path(folder)
        file = path / STEERING
        if not file.is_file():
            files = sorted(each.name for each in path.iterdir()) if path.is_dir() else []
            pickles = [name for name in files if Path(name).suffix in {".bin", ".pt", ".pth", ".pkl"}]
            found = f"; {', '.join(pickles)} can run code when it is loaded, and is not read" if pickles else ""
            raise InvalidInput(f"{path} has no {STEERING}{found}.", hint="`SteeringAdapter.save(folder)` writes one.")
        tensors, metadata = read_tensors(file)
        try:
            about = json.loads(metadata[_ABOUT])
            if about["format"] != _FORMAT:
                raise InvalidInput(
                    f"{file} has format {about['format']!r}; this version reads {_FORMAT}.", hint="Update mpf-chains."
                )
            attributes = {name: tuple(classes) for name, classes in about["attributes"]}
            unknown = sorted(set(tensors) - {"output_rows", "input_rows", "targets"})
            if unknown:
                raise InvalidInput(f"{file}: tensor {unknown[0]!r} is none of a steering adapter.")
            targets = TargetTable(attributes, about["contexts"], tensors["targets"].numpy())
            tokens = SteeringTokens(about["attribute"], targets.classes, about["tokens"])
            wanted, digest, plain = about["lora"], about.get("digest"), bool(about.get("plain_opening", False))
            lora = read_adapter(path) if wanted is not None and (path / CONFIG).exists() else None
            rows = tensors["output_rows"], tensors.get("input_rows")
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            what = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            raise InvalidInput(f"{file} is no steering adapter: {what}") from error
        if (lora.digest if lora else None) != wanted:
            raise InvalidInput(
                f"{path / WEIGHTS} is not the file that {STEERING} was written with"
                + ("; it is missing." if lora is None else "."),
                hint="Keep all files of the folder together.",
            )
        adapter = cls(tokens, targets, *rows, lora=lora, plain_opening=plain, base=metadata.get(BASE), name=str(file))
        if digest not in (None, adapter.digest):  # older files have none
            raise InvalidInput(f"{file} is damaged: its content is not what was saved.", hint="Copy it anew.")
        return adapter


def write_lora(folder: Path, lora: Adapter) -> None:
    """Write low-rank factors in peft's format, with a scale of 1.

    Args:
        folder: Where to.
        lora: The factors.
    """
    from safetensors.torch import save_file

    ranks = {module: down.shape[0] for module, (down, _) in lora.factors.items()}
    rank = max(ranks.values())
    special = {module: each for module, each in ranks.items() if each != rank}
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "rank_pattern": special,
        "alpha_pattern": special, "target_modules": sorted(ranks), "bias": "none",
    }  # fmt: skip
    tensors = {}
    for module, factors in lora.factors.items():
        for letter, factor in zip("AB", factors, strict=True):
            tensors[f"base_model.model.{module}.lora_{letter}.weight"] = factor.contiguous()
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"} | ({BASE: lora.base} if lora.base else {}))
    (folder / CONFIG).write_text(json.dumps(config, indent=1), "utf-8")
