"""StereoSet: clusters of a stereotype, an anti-stereotype and an unrelated text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from mpf_chains.benchmarks.readers.documents import read_document
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import ANTI_STEREOTYPE, STEREOTYPE, UNRELATED, Choice
from mpf_chains.benchmarks.readers.reader import find_files, pick_subsets
from mpf_chains.errors import BenchmarkError

_LABELS = (STEREOTYPE, ANTI_STEREOTYPE, UNRELATED)
_PARTS = ("intrasentence", "intersentence")


class StereoSetReader:
    """StereoSet (Nadeem et al. 2021): one JSON document, read as a whole.

    Items: `Choice` with the labels "stereotype", "anti-stereotype", "unrelated", always in this order. `condition` is
    the part, "intrasentence" (whole sentences; the sentence with BLANK is in `tags["template"]`) or "intersentence"
    (sentences that follow `context`); `group` the bias type; `tags["target"]` the target term, over which the paper
    averages. To choose something on some terms and report on others: ``items.split("target")``. (The authors'
    test_terms.txt is no help there: it lists the terms of the hidden test set, of which dev.json has none.)

    References:
        Nadeem, Bethke, Reddy: StereoSet, ACL 2021. Files: dev.json of github.com/moinnadeem/StereoSet.
    """

    name = "stereoset"
    splits: Sequence[str] = ()
    part_field = "condition"
    hub = "McGill-NLP/stereoset"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Choice]]:
        """Clusters of a file such as dev.json, or of the one in a folder."""
        del split
        files = find_files(path, ("dev.json", "dev*.json"), folders=("", "data"))
        if len(files) > 1:
            raise BenchmarkError(f"{path} holds {', '.join(one.name for one in files)}.", hint="Give the file.")
        sections = dict(read_document(files[0]).member("data").members())
        unknown = [name for name in (part,) if name and name not in _PARTS]
        if unknown or not sections.keys() & set(_PARTS):
            there = ", ".join(sections) or "nothing"
            raise BenchmarkError(f"{files[0]}: no part {part or ' or '.join(_PARTS)!r}; there is {there}.")
        for name in _PARTS:
            if name in sections and part in {"", name}:
                for cluster in sections[name].elements():
                    sentences = (node.fields() for node in cluster.member("sentences").elements())
                    yield _cluster(cluster.fields(), sentences, name)

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The subsets are called as the parts."""
        return pick_subsets(available, (part,) if part else _PARTS)

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Choice]]:
        """Clusters of one part, which an intrasentence context tells by its BLANK where the subset does not."""
        del split
        for record in records:
            named = subset if subset in _PARTS else _PARTS["BLANK" not in str(record.get("context"))]
            yield _cluster(record, _rows(record), named)


def _cluster(fields: Fields, sentences: Iterable[Fields], part: str) -> Located[Choice]:
    texts: dict[str, str] = {}
    for sentence in sentences:
        if "gold_label" not in sentence.values:
            raise sentence.place.error(
                "the sentence has no 'gold_label'.", hint="Labels are published for dev.json only, not for test.json."
            )
        label = sentence.one_of("gold_label", _LABELS)
        if label in texts:
            raise sentence.error("gold_label", f"the cluster has the label {label!r} twice; it needs each once.")
        texts[label] = sentence.text("sentence")
    missing = [label for label in _LABELS if label not in texts]
    if missing:
        raise fields.error(
            "sentences",
            f"the cluster has no sentence with the label {', '.join(map(repr, missing))}; it needs all three.",
        )
    context = fields.text("context")
    tags = {"target": fields.text("target")}
    return fields.located(
        Choice,
        id=fields.text("id"),
        group=fields.text("bias_type"),
        candidates=tuple(texts[label] for label in _LABELS),
        labels=_LABELS,
        context=context if part == "intersentence" else "",
        condition=part,
        tags=tags if part == "intersentence" else {**tags, "template": context},
    )


def _rows(record: Fields) -> Iterator[Fields]:
    """Sentences of a hub row, where they are an object of lists or a list of objects."""
    sentences = record.get("sentences")
    if isinstance(sentences, Mapping):
        columns = record.inner("sentences")
        pairs = zip(columns.texts("sentence"), columns.texts("gold_label"), strict=False)
        sentences = [{"sentence": sentence, "gold_label": label} for sentence, label in pairs]
    if not isinstance(sentences, list) or not all(isinstance(one, Mapping) for one in sentences):
        raise record.error("sentences", "'sentences' must be a list of objects.")
    yield from (Fields(one, record.place) for one in sentences)
