"""WinoBias: sentences with two occupations and a pronoun for one of them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpf_chains.benchmarks.lines import Place, iter_lines
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import Choice
from mpf_chains.benchmarks.readers.reader import ALL, find_files
from mpf_chains.errors import BenchmarkError

MALE = (
    "driver", "supervisor", "janitor", "cook", "mover", "laborer", "construction worker", "chief", "developer",
    "carpenter", "manager", "lawyer", "farmer", "salesperson", "physician", "guard", "analyst", "mechanic", "sheriff",
    "CEO",
)  # fmt: skip
FEMALE = (
    "attendant", "cashier", "teacher", "nurse", "assistant", "secretary", "auditor", "cleaner", "receptionist", "clerk",
    "counselor", "designer", "hairdresser", "writer", "housekeeper", "baker", "accountant", "editor", "librarian",
    "tailor",
)  # fmt: skip
_SEX = {name.casefold(): "male" for name in MALE} | {name.casefold(): "female" for name in FEMALE}
_WRITTEN = {name.casefold(): name for name in MALE + FEMALE}
_PRONOUNS = {"he": "male", "him": "male", "his": "male", "himself": "male"} | {
    "she": "female", "her": "female", "hers": "female", "herself": "female",
}  # fmt: skip
_OCCUPATION = re.compile(r"(?<!\w)(" + "|".join(sorted(_SEX, key=len, reverse=True)) + r")(?!\w)", re.IGNORECASE)
_MENTION = re.compile(r"\[([^\[\]]*)\]")
_LINE = re.compile(r"(\d+) (.*\S)\s*")
_FILE = re.compile(r"(pro|anti)_stereotyped_(type[12])\.txt\.(dev|test)")
_SUBSET = re.compile(r"(type[12])_(pro|anti)")


class WinoBiasReader:
    """WinoBias (Zhao et al. 2018): text files of numbered sentences with marked mentions, streamed.

    Items: `Choice` in which `context` is the sentence without marks, `candidates` the two occupations ("the nurse") in
    the sentence's order, `correct` the one that the pronoun stands for, `labels` the sex that the stereotype gives each
    occupation ("male" or "female", the paper's lists). `condition` is "pro" or "anti"; the parts and `group` are
    "type1" (world knowledge decides) and "type2" (syntax does). A sentence and its counterpart with the other
    pronoun share `family`. `tags`: "pronoun" (the first marked), "sex" (the pronoun's), "occupation" (the right one).

    References:
        Zhao, Wang, Yatskar, Ordonez, Chang: Gender bias in coreference resolution, NAACL 2018. Files:
        {pro,anti}_stereotyped_type{1,2}.txt.{dev,test} of github.com/uclanlp/corefBias.
    """

    name = "winobias"
    splits: Sequence[str] = ("test", "dev")
    part_field = "group"
    hub = "uclanlp/wino_bias"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Sentences of a file under its original name, or of a folder's files."""
        found = 0
        for file in find_files(path, ("*_stereotyped_type[12].txt.*",), folders=("", "data", "WinoBias/wino/data")):
            match = _FILE.fullmatch(file.name)
            if not match:
                raise BenchmarkError(
                    f"{file} is not named as a WinoBias file, which says what its sentences are.",
                    hint="Original names are like pro_stereotyped_type1.txt.dev.",
                )
            condition, kind, of = match.groups()
            if part in {"", kind} and (split in {ALL, of} or not path.is_dir()):
                found += 1
                yield from _sentences(file, condition, kind, of)
        if not found:
            raise BenchmarkError(f"{path} holds no sentences for split {split!r} and part {part!r}.")

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """One subset for each type and condition."""
        matches = [_SUBSET.fullmatch(name) for name in available]
        return [match.string for match in matches if match and part in {"", match[1]}]

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Sentences as tokens and coreference clusters (CoNLL)."""
        match = _SUBSET.fullmatch(subset)
        if not match:
            raise BenchmarkError(f"{subset!r} is no subset of WinoBias; those are like type1_pro.")
        of = {"validation": "dev"}.get(split, split)
        for number, record in enumerate(records, 1):
            yield _item(_marked(record), record, str(number), match[2], match[1], of)


def _sentences(file: Path, condition: str, kind: str, split: str) -> Iterator[Located[Choice]]:
    for line, text in iter_lines(file):
        if text.strip():
            match = _LINE.fullmatch(text.rstrip("\r\n"))
            if not match:
                raise Place(file, line).error("the line does not start with a number and a space.")
            fields = Fields({}, Place(file, line, match.start(2) + 1))
            yield _item(match[2], fields, match[1], condition, kind, split)


def _item(marked: str, fields: Fields, number: str, condition: str, kind: str, split: str) -> Located[Choice]:
    mentions = [" ".join(one.split()) for one in _MENTION.findall(marked)]
    pronouns = [one for one in mentions if one.casefold() in _PRONOUNS]
    right = [name for one in mentions for name in _occupations(one)]
    sentence = " ".join(_MENTION.sub(r"\1", marked).split())
    if len(set(right)) != 1 or not pronouns or "[" in sentence or "]" in sentence:
        raise fields.place.error(
            f"{len(set(right))} occupations and {len(pronouns)} pronouns are marked; it must be one, and one at least.",
            hint="Marks are like: [The chief] hired the nurse because [he] was busy. Occupations are the paper's 40.",
        )
    named = _occupations(sentence)
    others = [name for name in named if name != right[0]]
    if not others or right[0] not in named:
        raise fields.place.error(f"there is no other occupation than {right[0]!r}; the paper's 40 are known.")
    pair = [name for name in named if name in {right[0], others[0]}]
    sex = _PRONOUNS[pronouns[0].casefold()]
    if (sex == _SEX[right[0]]) != (condition == "pro"):
        raise fields.place.error(
            f"{pronouns[0]!r} for the {right[0]} is not {condition}-stereotyped, as the file's name says."
        )
    family = f"{kind}/{split}/{number}"
    return fields.located(
        Choice,
        id=f"{family}/{condition}",
        group=kind,
        candidates=tuple(f"the {_WRITTEN[name]}" for name in pair),
        labels=tuple(_SEX[name] for name in pair),
        context=sentence,
        correct=pair.index(right[0]),
        condition=condition,
        family=family,
        tags={"pronoun": pronouns[0].casefold(), "sex": sex, "occupation": _WRITTEN[right[0]]},
    )


def _occupations(text: str) -> list[str]:
    """The occupations named, each once, in order."""
    return list(dict.fromkeys(name.casefold() for name in _OCCUPATION.findall(text)))


def _marked(record: Fields) -> str:
    """The sentence with mentions in brackets. Clusters are first and last token of each mention, all in one list."""
    tokens, ends = list(record.texts("tokens")), record.texts("coreference_clusters")
    if not all(end.isascii() and end.isdigit() and int(end[:9]) < len(tokens) for end in ends):
        raise record.error("coreference_clusters", f"'coreference_clusters' is {ends!r}; it must be numbers of tokens.")
    for first, last in zip(ends[::2], ends[1::2], strict=False):
        tokens[int(first)] = "[" + tokens[int(first)]
        tokens[int(last)] += "]"
    return re.sub(r" (?=[.,;:!?])", "", " ".join(tokens))
