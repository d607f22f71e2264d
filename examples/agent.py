"""One perspective for a whole agent run: the tool loop, and if you like the whole conversation, keep one tone.

An agent looks things up before it advises. Its scripted model calls tools twice and then breaks down, so that a
fallback model writes the answer: a fake that takes the tone of the instruction it is given. Everything happens under
the perspective that was drawn when the run began. The line that matters:

    agent = create_agent(model, tools, middleware=[PerspectiveMiddleware(weights=weights, perspectives=perspectives)])

    pip install -e ".[agents]"
    python examples/agent.py                           # seconds, offline: the models are shipped fakes
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from langchain.agents import create_agent
from langchain.agents.middleware import AgentMiddleware, ModelFallbackMiddleware
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver

from mpf_chains import PerspectiveSet
from mpf_chains.agents import PerspectiveMiddleware, Scope
from mpf_chains.testing import BiasedChatModel, FaultyChatModel

PERSPECTIVES = PerspectiveSet.builtin("mpf")
WEIGHTS = {"optimist": 0.2, "realist": 0.4, "empathetic": 0.1, "cautious": 0.2, "critical": 0.1}
QUESTION = "Is ETH Zurich the right place for me?"
THREADS, TURNS = ("ann", "bob", "cem"), 4


@tool
def founded(university: str) -> str:
    """Year in which a university was founded."""
    return {"ETH Zurich": "1855"}.get(university, "unknown")


@tool
def fees(university: str, nationality: str) -> str:
    """What a year costs."""
    return f"{university} publishes its fees for {nationality} students every year."


def script(turns: int) -> list[str | AIMessage | Exception]:
    """For each turn: one tool call, two at once, and then the provider is down."""

    def call(name: str, number: str, **arguments: str) -> dict[str, Any]:
        return {"name": name, "args": {"university": "ETH Zurich", **arguments}, "id": f"call-{number}"}

    steps: list[str | AIMessage | Exception] = []
    for turn in range(1, turns + 1):
        both = [call("fees", f"{turn}b", nationality="Swiss"), call("fees", f"{turn}c", nationality="other")]
        steps += [AIMessage("", tool_calls=[call("founded", f"{turn}a")]), AIMessage("", tool_calls=both)]
        steps.append(ConnectionError("The provider is down."))
    return steps


class Heard(BaseCallbackHandler):
    """Notes the perspective of each model call, from the system message that reached the model."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def on_chat_model_start(self, serialized: dict[str, Any], messages: list[list[BaseMessage]], **_: Any) -> None:
        """A model call begins."""
        del serialized
        self.names += [each.name for each in PERSPECTIVES if each.instruction in messages[0][0].text]


class Turn(NamedTuple):
    """What one run of the agent added to its conversation, and the perspectives that its model calls had."""

    messages: list[BaseMessage]
    heard: list[str]


def converse(scope: Scope) -> dict[str, list[Turn]]:
    """Several conversations with one agent, turn by turn."""
    steering = PerspectiveMiddleware(weights=WEIGHTS, perspectives=PERSPECTIVES, scope=scope, seed=0)
    middleware: list[AgentMiddleware[Any, Any, Any]] = [steering, ModelFallbackMiddleware(BiasedChatModel())]
    agent = create_agent(
        FaultyChatModel(script=script(TURNS * len(THREADS))),
        [founded, fees],
        system_prompt="You advise people who want to study.",
        middleware=middleware,
        checkpointer=InMemorySaver(),
    )
    told: dict[str, list[Turn]] = {thread: [] for thread in THREADS}
    for number in range(1, TURNS + 1):
        for thread, turns in told.items():
            configurable = {"thread_id": thread, "mpf_key": f"{thread}/{number}"}  # the key makes draws repeatable
            heard, before = Heard(), sum(len(turn.messages) for turn in turns)
            config = RunnableConfig(configurable=configurable, callbacks=[heard])
            messages = agent.invoke({"messages": [HumanMessage(QUESTION)]}, config)["messages"]
            turns.append(Turn(messages[before:], heard.names))
    return told


def show(messages: Sequence[BaseMessage]) -> None:
    """A turn, message by message."""
    for message in messages:
        if isinstance(message, AIMessage):
            calls = ", ".join(f"{call['name']} ({call['id']})" for call in message.tool_calls)
            name = message.response_metadata["mpf"]["perspective"]
            print(f"  model as {name}: " + (f"calls {calls}" if calls else message.text))
        elif isinstance(message, ToolMessage):
            print(f"    {message.tool_call_id}: {message.text}")


def main() -> None:
    """One run in full, then both scopes over several conversations."""
    by_turn = converse("turn")
    print(f"Asked: {QUESTION}")
    show(by_turn["ann"][0].messages)

    runs = [turn for turns in by_turn.values() for turn in turns]
    calls = [call for run in runs for each in run.messages if isinstance(each, AIMessage) for call in each.tool_calls]
    results = [each.tool_call_id for run in runs for each in run.messages if isinstance(each, ToolMessage)]
    one = sum(len(set(run.heard)) == 1 for run in runs)
    print(f"\n{len(runs)} such runs, {sum(len(run.heard) for run in runs)} model calls, those that failed included.")
    print(f"  under one perspective from the first call to the last: {one} of {len(runs)} runs")
    print(f"  answered under their own ids: {sum(call['id'] in results for call in calls)} of {len(calls)} tool calls")

    for title, told in (
        ('scope="turn": drawn anew for every message of the user', by_turn),
        ('scope="thread": drawn once, kept with the conversation', converse("thread")),
    ):
        print(f"\n{title}")
        for thread, turns in told.items():
            print(f"  {thread}: " + " ".join(f"{turn.heard[-1]:>10}" for turn in turns))
        print("  in all:", dict(Counter(turn.heard[-1] for turns in told.values() for turn in turns).most_common()))


if __name__ == "__main__":
    main()
