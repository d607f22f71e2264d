"""Numbers that a LoRA configuration gives to some modules, found in a time that a hostile file cannot stretch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mpf_chains.errors import InvalidInput, NotSupportedError

_PLAIN = re.compile(r"\^?\w+(?:\\?\.\w+)*\$?")
_WITH_GAPS = re.compile(r"\^?(?:\w|\\?\.(?!\*)|\.\*)+\$?")
_MOST_WITH_GAPS = 100
_LARGEST = 1e9


class ModuleNumbers:
    """A number for all modules, and others for those that patterns name.

    A pattern matches a module if it matches its name or what follows one of the dots in it; the first one that does
    counts, as in peft's ``get_pattern_key``. Peft's patterns are any regular expressions, which can be written so that
    they take for ever; here they are names ("layers.0.self_attn.q_proj"), with "^" in front for the whole name and
    ".*" for anything in between.

    Args:
        config: Settings of peft's LoraConfig.
        default: Which one is the number.
        patterns: Which one maps patterns to other numbers; it may be missing.
        source: Where the configuration stands, for messages.

    Raises:
        InvalidInput: If the patterns are no mapping.
        NotSupportedError: If a pattern is another regular expression, or more than 100 have ".*".

    Examples:
        >>> config = {"r": 8, "rank_pattern": {"0.attn.q": 4, "^layers.1.*q$": 2}}
        >>> ranks = ModuleNumbers(config, "r", "rank_pattern", "config.json")
        >>> [ranks.of(module) for module in ("layers.0.attn.q", "layers.1.attn.q", "layers.0.attn.v", "layers.10.q")]
        [4.0, 2.0, 8.0, 2.0]
    """

    def __init__(self, config: Mapping[str, Any], default: str, patterns: str, source: str) -> None:
        self._name, self._source = default, source
        given = config.get(patterns) or {}
        if not isinstance(given, dict):
            raise InvalidInput(f"{source}: `{patterns}` is a {type(given).__name__}; it must map names to numbers.")
        self._default = config.get(default)
        self._numbers: list[Any] = list(given.values())
        self._plain: dict[str, int] = {}
        self._with_gaps: list[tuple[int, _WithGaps]] = []
        for place, pattern in enumerate(given):
            if _PLAIN.fullmatch(pattern):
                self._plain.setdefault(pattern.removesuffix("$").replace("\\", ""), place)
            elif len(self._with_gaps) < _MOST_WITH_GAPS and _WITH_GAPS.fullmatch(pattern):
                self._with_gaps.append((place, _WithGaps(pattern)))
            else:
                raise NotSupportedError(
                    f"{source}: `{patterns}` has {pattern[:200]!r}, which is no name of a module, nor one of at most "
                    f"{_MOST_WITH_GAPS} with gaps ('.*').",
                    hint="Give each module an entry of its own, such as 'layers.0.self_attn.q_proj'.",
                )

    def of(self, module: str) -> float:
        """The number of a module.

        Raises:
            InvalidInput: If it is no positive number.
        """
        parts = module.split(".")
        names = [f"^{module}", *(".".join(parts[i:]) for i in range(len(parts)))]
        places = [self._plain[name] for name in names if name in self._plain]
        places += [place for place, pattern in self._with_gaps if pattern.matches(module)]
        number: Any = self._numbers[min(places)] if places else self._default
        if type(number) not in {int, float} or not 0 < number <= _LARGEST:
            raise InvalidInput(
                f"{self._source}: `{self._name}` of {module!r} is {str(number)[:80]!r}; it must be a positive number."
            )
        return float(number)


class _WithGaps:
    """A name with ".*" in it; "." is any character. Matching takes a time proportional to the lengths of both."""

    def __init__(self, pattern: str) -> None:
        self._whole = pattern.startswith("^")
        self._parts = [re.compile(part) for part in pattern.removeprefix("^").removesuffix("$").split(".*")]
        self._end = len(self._parts[-1].pattern.replace("\\", ""))

    def matches(self, module: str) -> bool:
        starts = [0] if self._whole else [0, *(i + 1 for i, letter in enumerate(module) if letter == ".")]
        first, *others, last = self._parts
        found = next((match for match in (first.match(module, start) for start in starts) if match), None)
        for part in others:
            found = found and part.search(module, found.end())
        tail = len(module) - self._end
        return found is not None and found.end() <= tail and last.fullmatch(module, tail) is not None
