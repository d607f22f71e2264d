"""Put ChatMPF where the model was in an LCEL chain, and roll it out step by step.

An adviser's model praises whatever it is asked about. Weights over five perspectives are fitted to the tone of a sober
encyclopaedia; the same chain then gets the same questions in shadow mode, at growing strength, and while its weights
are swapped. The line that matters:

    chain = prompt | ChatMPF(model=model, weights=calibration, entity="ETH Zurich") | StrOutputParser()

    python examples/lcel_chain.py                      # seconds, offline: the model is a fake with a planted bias
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import LLMResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import Runnable, RunnableConfig

from mpf_chains import Benchmark, ChatMPF, MPFCalibrator
from mpf_chains.features import SentimentFeature
from mpf_chains.testing import ANSWERS, BiasedChatModel

ENTITY = "ETH Zurich"
PLANTED = {
    **ANSWERS,  # a tone for each perspective
    "You advise": (  # and, under the application's own system message, the bias of this model
        "An excellent choice: everybody is happy there, and proud of it.",
        "It is wonderful, and you will love it.",
        "A great success, and the best there is.",
        "It has about ten thousand members.",
    ),
}
TONES = ("very negative", "negative", "neutral", "positive", "very positive")
sentiment = SentimentFeature()  # VADER: 0 negative, 0.5 neutral, 1 positive


class Draws(BaseCallbackHandler):
    """Notes the perspective of every answer, from its metadata: in shadow the one that would have answered."""

    def __init__(self) -> None:
        self.counts: Counter[str | None] = Counter()

    def on_llm_end(self, response: LLMResult, **_: Any) -> None:
        """A model call has ended."""
        for generation in response.generations[0]:
            record = generation.message.response_metadata["mpf"]  # type: ignore[union-attr]
            self.counts[record.get("shadow") or record["perspective"]] += 1


def ask(chain: Runnable[dict[str, str], str], questions: Mapping[str, str]) -> tuple[list[str], Draws]:
    """Every question once. The key makes a request's draw repeatable; without it every run draws anew."""
    draws = Draws()
    configs = [RunnableConfig(configurable={"mpf_key": key}, callbacks=[draws]) for key in questions]
    return chain.batch([{"question": question} for question in questions.values()], configs), draws


def show(title: str, texts: Sequence[str]) -> None:
    """A histogram of the texts' tone."""
    scores = sentiment(texts)
    counts, _ = np.histogram(scores, bins=len(TONES), range=(0, 1))
    print(f"\n{title}: mean sentiment {scores.mean():.3f}")
    for tone, count in zip(TONES, counts, strict=True):
        print(f"  {tone:>13} {count:4d} {'#' * round(60 * count / len(texts))}")


def main() -> None:
    """Before, shadow, rollout, after, swap."""
    model = BiasedChatModel(answers=PLANTED)
    prompt = ChatPromptTemplate([("system", "You advise people who want to study."), ("human", "{question}")])
    benchmark = Benchmark.builtin("university", [ENTITY])
    questions = {row.id: row.question for row in benchmark.rows}

    bare = prompt | model | StrOutputParser()
    before = bare.batch([{"question": question} for question in questions.values()])
    print(f'Asked: "{benchmark.rows[0].question}" and {len(questions) - 1} more.')
    show("Before, the bare model", before)
    show("The target, an encyclopaedia", [row.target_text or "" for row in benchmark.rows])

    calibrator = MPFCalibrator(model=model, feature="sentiment", validate=(), progress=False)
    calibration = calibrator.invoke(benchmark)
    chat = ChatMPF(model=model, weights=calibration, entity=ENTITY)  # takes the model's place ...
    chain = prompt | chat | StrOutputParser()  # ... and all else stays as it was

    print("\nShadow: every request draws a perspective, the bare model answers.")
    chat.shadow = True
    answers, draws = ask(chain, questions)
    print(f"  answers changed: {sum(a != b for a, b in zip(answers, before, strict=True))} of {len(answers)}")
    print(f"  would have answered: {dict(draws.counts.most_common())}")
    chat.shadow = False

    print("\nRollout: the strength is the share of requests that a perspective answers.")
    for chat.strength in (0.0, 0.25, 0.5, 1.0):
        answers, draws = ask(chain, questions)
        steered = sum(count for name, count in draws.counts.items() if name)
        print(f"  strength {chat.strength:.2f}: {steered:3d} steered, mean sentiment {sentiment(answers).mean():.3f}")
    show("After, the same chain over ChatMPF", answers)
    weights = {name: round(weight, 3) for name, weight in calibration.weights[ENTITY].items()}
    print(f"  fitted weights: {weights}\n  drawn: {dict(draws.counts.most_common())}")

    print("\nHot swap: other weights, while serving; nothing is restarted.")
    plain = {name: float(name == "realist") for name in chat.perspectives.names}
    for _ in range(2):
        _, draws = ask(chain, questions)
        print(f"  version {chat.weights.version}: {dict(draws.counts.most_common())}")
        chat.weights = plain


if __name__ == "__main__":
    main()
