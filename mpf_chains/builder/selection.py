"""Which sentences become questions, under which keyword, and on which side of the split."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from langchain_core.embeddings import Embeddings

from mpf_chains.benchmarks import Split, swap_entity
from mpf_chains.benchmarks.entities import mentioned
from mpf_chains.builder.corpus import Source
from mpf_chains.builder.keywords import contains, length_of, words_of
from mpf_chains.builder.sentences import Sentence, is_complete, sentences
from mpf_chains.errors import BenchmarkError
from mpf_chains.features import EmbeddingSimilarity

Names = tuple[str, ...]
"""What one entity is called, its full name first."""
Rank = Callable[[Sequence[str], str], Sequence[float]]
"""Scores sentences for a keyword; higher is better."""

SHORTEST: Final = 5
LONGEST: Final = 60
ALIKE: Final = 0.9  # share of common words from which two sentences say the same


@dataclass(frozen=True)
class Passage:
    """A sentence of the corpus that can become a question.

    Args:
        source: The text it stands in.
        sentence: The sentence with its place there.
        subject: What its entity is called; the first is the full name.
        keyword: The keyword it was selected for. Default empty: not selected.
        split: Side of the split of everything made of it. Default "decomposition".
    """

    source: Source
    sentence: Sentence
    subject: Names
    keyword: str = ""
    split: Split = "decomposition"


def passages(
    sources: Iterable[Source], subjects: Sequence[Names], others: Collection[str] = (), *, named: bool = True
) -> tuple[list[Passage], Counter[str]]:
    """The sentences that are about one subject.

    Args:
        sources: Texts.
        subjects: Entities the texts may be about.
        others: Names that may not occur in a sentence beside its subject: after the swap it would compare an entity
            with itself. Default none.
        named: Whether a sentence must name its subject. False also takes the other sentences of a text that names just
            one of the subjects. Default True.

    Returns:
        The passages in order, and how many sentences were left out for which reason.
    """
    kept: list[Passage] = []
    left: Counter[str] = Counter()
    every = [name for subject in subjects for name in subject]
    for source in sources:
        in_text = _subjects_in(source.text, subjects, every)
        for sentence in sentences(source.text):
            held = _subjects_in(sentence.text, subjects, every)
            about = held or ([] if named or len(in_text) != 1 else in_text)
            reason = _unfit(sentence.text, about, held, [*every, *others])
            if reason:
                left[reason] += 1
            else:
                kept.append(Passage(source, sentence, about[0]))
    return kept, left


def _subjects_in(text: str, subjects: Sequence[Names], every: Sequence[str]) -> list[Names]:
    found = set(mentioned(text, every))
    return [subject for subject in subjects if found & set(subject)]


def _unfit(text: str, about: Sequence[Names], held: Sequence[Names], names: Sequence[str]) -> str:
    if not is_complete(text):
        return "no complete sentence (a title, an item)"
    if text.rstrip("\"'”’»)*_").endswith(("?", "？")):
        return "a question"
    if not SHORTEST <= length_of(text) <= LONGEST:
        return f"not {SHORTEST} to {LONGEST} words long"
    if not about:
        return "does not name the entity"
    if len(about) > 1 or set(mentioned(text, names)) - {name for subject in held for name in subject}:
        return "names more than one entity"
    return ""


def by_words(interest: Collection[str]) -> Rank:
    """Rank sentences by how many different words of interest (topic, keywords) they hold."""
    words = {word for phrase in interest for word in words_of(phrase)}
    return lambda texts, _: [float(len(words & set(words_of(text)))) for text in texts]


def by_embeddings(embeddings: Embeddings, topic: str = "") -> Rank:
    """Rank sentences by cosine similarity of their embeddings to topic and keyword.

    Args:
        embeddings: Any LangChain embeddings.
        topic: Put before each keyword. Default empty.
    """

    def rank(texts: Sequence[str], keyword: str) -> Sequence[float]:
        return [float(one) for one in EmbeddingSimilarity(embeddings, f"{topic} {keyword}".strip())(texts)]

    return rank


def select(
    candidates: Sequence[Passage], keywords: Sequence[str], per_keyword: int, rank: Rank, *, seed: int = 0
) -> tuple[list[Passage], Counter[str]]:
    """For each keyword its best sentences, each sentence once.

    Args:
        candidates: Passages.
        keywords: In order: a sentence with several goes to the first of them that wants it.
        per_keyword: Most sentences of a keyword.
        rank: Scores the sentences of a keyword.
        seed: Orders sentences with equal scores, by a hash of their text. Default 0.

    Returns:
        The chosen passages in the order of the corpus, with their keyword, and how many sentences were left out for
        saying the same as a chosen one (their words, the entity's name aside, overlap by 90 % or more).
    """
    chosen: dict[int, Passage] = {}
    seen: list[frozenset[str]] = []
    left: Counter[str] = Counter()
    alike: set[int] = set()
    for keyword in keywords:
        wanted = [i for i, one in enumerate(candidates) if i not in chosen and contains(one.sentence.text, keyword)]
        texts = [candidates[i].sentence.text for i in wanted]
        scores = dict(zip(wanted, rank(texts, keyword), strict=True)) if wanted else {}
        taken = 0
        for index in sorted(wanted, key=lambda i: (-scores[i], _hash(seed, candidates[i].sentence.text), i)):
            if taken == per_keyword:
                break
            words = _content(candidates[index])
            if any(_overlap(words, other) >= ALIKE for other in seen):
                alike.add(index)
                continue
            seen.append(words)
            chosen[index] = replace(candidates[index], keyword=keyword)
            taken += 1
    if alike:
        left["says the same as another sentence"] = len(alike)
    return [chosen[index] for index in sorted(chosen)], left


def assign_splits(chosen: Sequence[Passage], validation: float, *, seed: int = 0) -> list[Passage]:
    """Put a share of the sentences on the validation side, spread over the keywords.

    The side of a sentence depends on the seed and on which sentences there are, not on their order: they are sorted by
    keyword and by a hash of seed and text, and taken at even steps (systematic sampling), so that each keyword gives
    its share up to one sentence.

    Args:
        chosen: Passages with keywords.
        validation: Share from 0 (none) to below 1. At least one sentence stays on either side.
        seed: Default 0.

    Raises:
        BenchmarkError: If there are fewer than two sentences to split.
    """
    if not validation:
        return list(chosen)
    total = len(chosen)
    if total < 2:
        raise BenchmarkError(
            f"{total} sentence cannot be split into decomposition and validation; two or more are needed.",
            hint="Add text or keywords, or pass validation=0.",
        )
    count = min(max(1, round(total * validation)), total - 1)
    texts = [one.sentence.text for one in chosen]
    order = sorted(range(total), key=lambda i: (chosen[i].keyword.casefold(), _hash(seed, texts[i]), texts[i]))
    held = {
        i for n, i in enumerate(order) if (n * count + total // 2) // total < ((n + 1) * count + total // 2) // total
    }
    return [replace(one, split="validation" if i in held else "decomposition") for i, one in enumerate(chosen)]


def _content(passage: Passage) -> frozenset[str]:
    text = swap_entity(passage.sentence.text, passage.subject, "X", articles=False).casefold()
    return frozenset(re.findall(r"[\u3040-\u9fff]|[^\W\u3040-\u9fff]+", text))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Jaccard index."""
    return len(one & other) / len(one | other) if one | other else 1.0


def _hash(seed: int, text: str) -> bytes:
    return hashlib.blake2b(f"{seed}\n{text}".encode(), digest_size=16).digest()
