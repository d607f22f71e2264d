"""BOLD: openings of Wikipedia sentences about people, professions and ideologies."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from mpf_chains.benchmarks.readers.documents import read_document
from mpf_chains.benchmarks.readers.fields import Fields, Located
from mpf_chains.benchmarks.readers.items import Prompt
from mpf_chains.benchmarks.readers.reader import find_files, pick, pick_subsets
from mpf_chains.errors import DataWarning

_SUFFIX = "_prompt"


class BOLDReader:
    """BOLD (Dhamala et al. 2021): one JSON document per domain, read one at a time. The parts are the domains.

    Items: `Prompt` with `domain` ("gender", "profession", ...), `group` ("American_actors", ...) and the name it is
    about in `tags["name"]`, to be masked where a scorer must not see it. `reference` is the whole Wikipedia sentence
    where the folder (or ../wikipedia) holds it. White space at the ends of prompts is cut off: a space there changes
    how a model reads what follows. The five prompts that are blank in the published files are left out with a
    `DataWarning`.

    Tong et al. (arXiv 2412.01711) take 5 answers a prompt, each of 15 new tokens at temperature 1 and top-p 0.9, and of
    three domains the groups that StereoSet has too: both of gender; of race African_Americans and European_Americans;
    of religious_ideology judaism, christianity and islam (``items.select(group=[...])``).

    References:
        Dhamala et al.: BOLD, FAccT 2021. Files: prompts/*_prompt.json and wikipedia/*_wiki.json of
        github.com/amazon-science/bold.
    """

    name = "bold"
    splits: Sequence[str] = ()
    part_field = "domain"
    hub = "AmazonScience/bold"

    def from_files(self, path: Path, split: str, part: str) -> Iterator[Located[Prompt]]:
        """Prompts of one domain's file, or of all in a folder."""
        del split
        files = find_files(path, (f"*{_SUFFIX}.json",), folders=("", "prompts"))
        for domain, file in pick({one.stem.removesuffix(_SUFFIX): one for one in files}, part, path).items():
            references = _references(file, domain)
            for group, names in read_document(file).members():
                for name, prompts in names.members():
                    texts = [Fields({"text": node.value}, node.place) for node in prompts.elements()]
                    yield from _prompts(texts, (domain, group, name), references.get((group, name), ()))

    def hub_subsets(self, available: Sequence[str], part: str) -> Sequence[str]:
        """One subset of all domains."""
        del part
        return pick_subsets(available, ("default",))

    def from_hub(self, records: Iterable[Fields], subset: str, split: str) -> Iterator[Located[Prompt]]:
        """One row per name, with all its prompts and references."""
        del subset, split
        for record in records:
            where = (record.text("domain"), record.text("category"), record.text("name"))
            texts = [Fields({"text": text}, record.place) for text in record.texts("prompts")]
            yield from _prompts(texts, where, record.texts("wikipedia") if "wikipedia" in record.values else ())


def _prompts(
    texts: Sequence[Fields], where: tuple[str, str, str], references: Sequence[str]
) -> Iterator[Located[Prompt]]:
    domain, group, name = where
    for number, fields in enumerate(texts):
        if fields.values["text"] == "":
            warnings.warn(DataWarning(f"{fields.place}: a blank prompt about {name!r} was left out."), stacklevel=2)
            continue
        yield fields.located(
            Prompt,
            id=f"{domain}/{group}/{name}/{number}",
            group=group,
            text=fields.text("text").strip(),
            domain=domain,
            reference="".join(references[number : number + 1]).strip(),
            tags={"name": name.replace("_", " ").strip() or name},
        )


def _references(prompts: Path, domain: str) -> dict[tuple[str, str], tuple[str, ...]]:
    """Sentences by group and name; empty where there is no such file."""
    for folder in (prompts.parent, prompts.parent.parent / "wikipedia"):
        file = folder / f"{domain}_wiki.json"
        if file.is_file():
            groups = [(group, names.fields()) for group, names in read_document(file).members()]
            return {(group, name): names.texts(name) for group, names in groups for name in names.values}
    return {}
