"""The small models of expert pairs, loaded once each: safetensors only, no code from a repository."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpf_chains.errors import InvalidInput, MPFError
from mpf_chains.local.engine import check_place, no_progress_bars
from mpf_chains.local.experts.files.adapter import BASE, CONFIG, MODEL, WEIGHTS, Adapter, read_adapter
from mpf_chains.local.experts.files.manifest import PAIR
from mpf_chains.local.experts.files.tensors import check_tensors
from mpf_chains.local.experts.pair import ExpertPair
from mpf_chains.local.fingerprint import fingerprint, same_weights
from mpf_chains.local.smollm2 import smollm2_path

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Small:
    """A small model and its tokenizer.

    Args:
        name: For messages.
        model: The model.
        tokenizer: Its tokenizer.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


@dataclass(frozen=True)
class Half:
    """An expert or an anti-expert, loaded.

    Args:
        small: The model it is, or is an adapter on.
        adapter: None: the model as it is.
    """

    small: Small
    adapter: Adapter | None = None

    @property
    def key(self) -> tuple[int, str]:
        """Equal for halves that give the same logits because they are the same."""
        return id(self.small.model), self.adapter.digest if self.adapter else ""


@dataclass(frozen=True)
class LoadedPair:
    """A pair with its models.

    Args:
        pair: What was asked for.
        expert: The expert, or what stands in for it.
        anti_expert: The same for the anti-expert.
        untuned: The small model as it is. None: the pair names none.
    """

    pair: ExpertPair
    expert: Half
    anti_expert: Half
    untuned: Half | None

    @property
    def idle(self) -> bool:
        """Whether both halves are the same, so that the pair moves nothing."""
        return self.expert.key == self.anti_expert.key


def load_pairs(
    pairs: Sequence[ExpertPair], *, device: str | None = None, dtype: str = "auto"
) -> tuple[LoadedPair, ...]:
    """Load pairs; a model or adapter that several of them name is loaded once.

    Args:
        pairs: With unique names.
        device: Torch device for models that are loaded here. None (default): "cuda" if there is one, else "cpu".
        dtype: Name of a torch dtype for them. Default "auto", the checkpoint's own.

    Raises:
        InvalidInput: If two pairs share a name, or something cannot be loaded; names file and tensor where one of
            them is wrong.
    """
    names = [pair.name for pair in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise InvalidInput(f"Several expert pairs are named {', '.join(map(repr, twice))}.")
    loader = _Loader(device, dtype)
    return tuple(loader.pair(pair) for pair in pairs)


class _Loader:
    def __init__(self, device: str | None, dtype: str) -> None:
        self._device, self._dtype = device, dtype
        self._models: dict[Any, Small] = {}
        self._adapters: dict[Path, Adapter] = {}

    def pair(self, pair: ExpertPair) -> LoadedPair:
        untuned = None if pair.base is None else Half(self._model(pair.base, pair))
        expert, anti_expert = (self._half(half, pair, untuned) for half in (pair.expert, pair.anti_expert))
        return LoadedPair(pair, expert, anti_expert, untuned)

    def _half(self, what: Any, pair: ExpertPair, untuned: Half | None) -> Half:
        folder = adapter_folder(what)
        if what is None or folder is not None:
            if untuned is None:
                raise InvalidInput(
                    f"Pair {pair.name!r}: {what} is an adapter, and the model that it adapts is not given.",
                    hint="Give it as `base`.",
                )
            if folder is None:
                return untuned
            if folder not in self._adapters:
                self._adapters[folder] = read_adapter(folder)
            adapter = self._adapters[folder]
            adapter.check(untuned.small.model)
            changes = any(bool(up.any()) for _, up in adapter.factors.values())
            return Half(untuned.small, adapter if changes else None)
        if untuned is not None and isinstance(what, str):
            _check_base(Path(what) / MODEL, untuned.small)
        return Half(self._model(what, pair))

    def _model(self, what: Any, pair: ExpertPair) -> Small:
        import torch

        named = isinstance(what, str)
        key = what if named else id(what)
        if key not in self._models:
            model: Any
            tokenizer: Any
            if named:
                model, tokenizer = load_model(what, device=self._device, dtype=self._dtype)
            else:
                model, tokenizer = what, pair.tokenizer
                if not isinstance(model, torch.nn.Module):
                    raise InvalidInput(f"Pair {pair.name!r} has {model!r} for a model: no name and no loaded model.")
                if hasattr(model, "peft_config"):
                    raise InvalidInput(
                        f"Pair {pair.name!r} has a model with peft adapters in it.",
                        hint="Save the adapter with `save_pretrained(folder)` and give the folder and the plain model.",
                    )
                if tokenizer is None:
                    raise InvalidInput(
                        f"Pair {pair.name!r} has a loaded model and no tokenizer, so vocabularies cannot be compared.",
                        hint="Give the pair `tokenizer=`.",
                    )
            model.eval()
            self._models[key] = Small(what if named else type(what).__name__, model, tokenizer)
        return self._models[key]


def adapter_folder(what: Any) -> Path | None:
    """The folder of an adapter, fetched if it is one on the hub; None for anything else."""
    if not isinstance(what, str) or what == "smollm2":
        return None
    if Path(what).is_dir():
        return Path(what) if (Path(what) / CONFIG).exists() else None
    check_place(what)
    from transformers.utils.hub import cached_file

    lenient: dict[str, Any] = {"_raise_exceptions_for_missing_entries": False}
    try:
        config = cached_file(what, CONFIG, **lenient, _raise_exceptions_for_connection_errors=False)
        if config:
            cached_file(what, WEIGHTS, **lenient)  # into the same folder; reading that says if there is none
    except OSError:  # no such repository; loading it as a full model says so
        return None
    return Path(config).parent if config else None


def load_model(
    name: str, *, device: str | None = None, dtype: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a full causal language model and its tokenizer.

    Args:
        name: Hub id, folder, or "smollm2".
        device: As in `load_pairs`.
        dtype: As in `load_pairs`.

    Raises:
        InvalidInput: If it cannot be loaded: it has no safetensors, they are damaged, a tensor is missing or of the
            wrong shape, or its configuration asks for code or for files of another kind.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_place(name)
    folder = smollm2_path() if name == "smollm2" else Path(name)
    if folder.is_dir():
        _check_folder(folder)
    source = str(folder) if folder.is_dir() else name
    try:
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source, dtype=dtype, use_safetensors=True, weights_only=True, trust_remote_code=False,
                output_loading_info=True, ignore_mismatched_sizes=True,
            )  # fmt: skip
            model, report = loaded
            model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except MPFError:
        raise
    except Exception as error:  # what a damaged configuration leads to is of any kind
        raise InvalidInput(
            f"The expert {name!r} could not be loaded: {type(error).__name__}: {error}",
            hint="Give the folder of a LoRA adapter, or the id or folder of a causal language model.",
        ) from error
    if getattr(model, "_hf_peft_config_loaded", False):  # with peft installed, transformers loads those too
        raise InvalidInput(f"{name} is an adapter, not a model.", hint="Give the model it was trained on as `base`.")
    for tensor, stored, wanted in sorted(report["mismatched_keys"]):
        raise InvalidInput(
            f"{name}: tensor {tensor!r} has shape {tuple(stored)}; by its configuration it should have {tuple(wanted)}."
        )
    for tensor in sorted(report["missing_keys"]):
        raise InvalidInput(f"{name}: tensor {tensor!r} is missing.", hint="The files are incomplete; fetch them again.")
    return model, tokenizer


def _check_folder(folder: Path) -> None:
    if (folder / CONFIG).exists():
        raise InvalidInput(f"{folder} is an adapter, not a model.", hint="Give the model it was trained on as `base`.")
    if (folder / PAIR).is_file():
        raise InvalidInput(
            f"{folder} holds a pair, not one half of it.", hint="Load it with `ExpertPair.load(folder)`."
        )
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in {".bin", ".pt", ".pth", ".pkl"})
        found = f"; {', '.join(pickles)} can run code when it is loaded, and is not read" if pickles else ""
        raise InvalidInput(
            f"{folder} has neither {CONFIG} nor weights in safetensors{found}.",
            hint="Save the model again with `save_pretrained(folder)`, which writes safetensors.",
        )
    for file in files:
        check_tensors(file)
    for source, name in _files_named(folder):
        if Path(name).name != name or not name.endswith((".safetensors", ".safetensors.index.json")):
            raise InvalidInput(
                f"{source} names {name!r} as a file of weights; it must be a safetensors file in the same folder.",
                hint="Save the model again with `save_pretrained(folder)`.",
            )


def _files_named(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files of weights that transformers would be told to read, and where that stands."""
    named = _json(folder / "config.json").get("transformers_weights")
    if named is not None:
        yield folder / "config.json", str(named)
    for index in sorted(folder.glob("*.safetensors.index.json")):
        shards = _json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise InvalidInput(f"{index} has no `weight_map`.", hint="Save the model again.")
        yield from ((index, name) for name in sorted({str(name) for name in shards.values()}))


def _check_base(file: Path, base: Small) -> None:
    """Whether a full model, if it says what it was trained from, says that it was this one."""
    recorded = check_tensors(file).get(BASE) if file.is_file() else None
    if recorded is not None and not same_weights(recorded, fingerprint(base.model)):
        raise InvalidInput(
            f"{file} was trained from a model with fingerprint {recorded}; {base.name!r} has "
            f"{fingerprint(base.model)}.",
            hint="Give as `base` the small model that it was trained from.",
        )


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{file} cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise InvalidInput(f"{file} holds no JSON object.")
    return content
