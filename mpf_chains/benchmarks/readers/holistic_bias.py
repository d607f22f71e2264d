"""HolisticBias: sentences about people, put together from descriptors, nouns and templates."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mpf_chains.benchmarks.readers.documents import Node, read_document
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import Prompt
from mpf_chains.benchmarks.readers.reader import pick_subsets
from mpf_chains.errors import BenchmarkError

_NONE = "(none)"
_CONTROL = "control"
_SINGULAR, _PLURAL = "{noun_phrase}", "{plural_noun_phrase}"
_TAGS = ("bucket", "noun", "noun_gender", "descriptor_gender", "descriptor_preference", "noun_phrase_type", "template")


@dataclass(frozen=True)
class _Phrase:
    id: str
    axis: str
    descriptor: str
    singular: str
    plural: str
    kind: str
    bucket: str = _NONE
    noun: str = _NONE
    noun_gender: str = _NONE
    gender: str = _NONE
    preference: str = _NONE

    def filled(self, noun: _Noun) -> _Phrase:
        """The phrase with a noun in it."""
        return replace(
            self,
            singular=self.singular.replace("{article}", _article(noun.singular)).replace("{noun}", noun.singular),
            plural=self.plural.replace("{article} ", "").replace("{noun}", noun.plural),
            noun=noun.singular,
            noun_gender=noun.gender,
        )


@dataclass(frozen=True)
class _Noun:
    singular: str
    plural: str
    gender: str


class HolisticBiasReader:
    """HolisticBias (Smith et al. 2022): four small JSON documents; their product, 567,000 sentences, is streamed.

    Items: `Prompt` with `domain` the axis (the parts; "control" are sentences without descriptor), `group` the
    descriptor, and `family` template and noun: sentences of one family differ in the descriptor only. Made as the
    authors' generator makes them, without its random variations of style. `tags`: "bucket", "noun", "noun_gender",
    "descriptor_gender", "descriptor_preference" ("dispreferred", "polarizing", "reviewed", "no_data"),
    "noun_phrase_type", "template"; "(none)" where there is none.

    References:
        Smith et al.: "I'm sorry to hear that", EMNLP 2022. Files: dataset/v1.1 of holistic_bias in
        github.com/facebookresearch/ResponsibleNLP.
    """

    name = "holistic_bias"
    splits: Sequence[str] = ()
    part_field = "domain"
    hub = "fairnlp/holistic-bias"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Prompt]]:
        """Sentences of a folder with descriptors, nouns, sentence_templates and standalone_noun_phrases."""
        del split
        folder = path if path.is_dir() else path.parent
        nouns = list(_nouns(folder))
        templates = list(_templates(folder))
        axes: set[str] = set()
        for node, phrase in _phrases(folder, nouns):
            axes.add(phrase.axis)
            if part in {"", phrase.axis}:
                for template, must_be_noun in templates:
                    if not (must_be_noun and phrase.noun == _NONE):
                        yield _sentence(phrase, template, node)
        if part and part not in axes:
            raise BenchmarkError(f"{path} has no axis {part!r}; there is {', '.join(sorted(axes))}.")

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """The sentences."""
        del part
        return pick_subsets(available, ("sentences",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Prompt]]:
        """Sentences with the columns that the authors' generator writes."""
        del subset, split
        for number, record in enumerate(records):
            axis, tags = record.text("axis"), {name: record.text(name) for name in _TAGS}
            of = (str(number), _CONTROL if axis == "null" else axis, record.text("descriptor"))
            yield _item(record, record.text("text"), of, tags)


def _sentence(phrase: _Phrase, template: str, node: Node) -> Located[Prompt]:
    text = template.replace(_PLURAL, phrase.plural).replace(_SINGULAR, phrase.singular)
    values = (phrase.bucket, phrase.noun, phrase.noun_gender, phrase.gender, phrase.preference, phrase.kind, template)
    of = (f"{phrase.id}/{phrase.noun}/{template}", phrase.axis, phrase.descriptor)
    return _item(Fields({}, node.place), text, of, dict(zip(_TAGS, values, strict=True)))


def _item(fields: Fields, text: str, of: tuple[str, str, str], tags: dict[str, str]) -> Located[Prompt]:
    identifier, axis, descriptor = of
    family = f"{tags['template']}/{tags['noun']}"
    return fields.located(Prompt, id=identifier, group=descriptor, text=text, domain=axis, family=family, tags=tags)


def _phrases(folder: Path, nouns: Sequence[_Noun]) -> Iterator[tuple[Node, _Phrase]]:
    """Every noun phrase, with where its descriptor stands: nouns alone, with descriptors, and standalone phrases."""
    root = read_document(folder / "nouns.json")
    for noun in nouns:
        bare = _Phrase(_CONTROL, _CONTROL, _NONE, "{article} {noun}", "{noun}", "noun")
        yield root, bare.filled(noun)
    for axis, buckets in read_document(folder / "descriptors.json").members():
        for bucket, descriptors in buckets.members():
            for number, node in enumerate(descriptors.elements()):
                for phrase in _described(_object(node, "descriptor"), axis, bucket, nouns, number):
                    yield node, phrase
    for axis, phrases in read_document(folder / "standalone_noun_phrases.json").members():
        for number, node in enumerate(phrases.elements()):
            for phrase in _standalone(_object(node, "noun_phrase"), axis, nouns, number):
                yield node, phrase


def _described(fields: Fields, axis: str, bucket: str, nouns: Sequence[_Noun], number: int) -> Iterator[_Phrase]:
    name = fields.text("descriptor")
    article, gender = _optional(fields, "article", _article(name)), _optional(fields, "gender", _NONE)
    where, preference = f"{axis}/{bucket}/{number}", _optional(fields, "preference", "no_data")
    alone = _Phrase(where, axis, name, name, name, "descriptor", bucket, gender=gender, preference=preference)
    yield alone
    with_noun = replace(alone, singular=f"{article} {name} {{noun}}", plural=f"{name} {{noun}}", kind="descriptor_noun")
    yield from (with_noun.filled(noun) for noun in nouns if gender in {_NONE, noun.gender})


def _standalone(fields: Fields, axis: str, nouns: Sequence[_Noun], number: int) -> Iterator[_Phrase]:
    singular = fields.text("noun_phrase")
    plural = _optional(fields, "plural_noun_phrase", singular)
    name = singular.replace("{article}", "").replace("{noun}", "").strip()
    kind = "noun_descriptor" if "{noun}" in singular else "fixed_phrase"
    preference = _optional(fields, "preference", "no_data")
    phrase = _Phrase(f"{axis}/{_NONE}/{number}", axis, name or singular, singular, plural, kind, preference=preference)
    if kind == "fixed_phrase":
        yield replace(phrase, noun_gender="neutral")
    else:
        yield from map(phrase.filled, nouns)


def _nouns(folder: Path) -> Iterator[_Noun]:
    for gender, pairs in read_document(folder / "nouns.json").members():
        for pair in pairs.elements():
            forms = [form.text() for form in pair.elements()]
            if len(forms) != 2:
                raise pair.error(f"the noun has {len(forms)} forms; it must have singular and plural.")
            yield _Noun(forms[0], forms[1], gender)


def _templates(folder: Path) -> Iterator[tuple[str, bool]]:
    for template, options in read_document(folder / "sentence_templates.json").members():
        if (_SINGULAR in template) == (_PLURAL in template):
            raise options.error(f"the template {template!r} must hold either {_SINGULAR} or {_PLURAL}.")
        yield template, options.fields().values.get("must_be_noun") is True


def _object(node: Node, key: str) -> Fields:
    """A descriptor or phrase, which is an object or just its text."""
    return Fields({key: node.value}, node.place) if isinstance(node.value, str) else node.fields()


def _optional(fields: Fields, name: str, default: str) -> str:
    return fields.text(name) if name in fields.values else default


def _article(word: str) -> str:
    return "an" if word[0].casefold() in "aeiou" else "a"
