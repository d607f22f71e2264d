"""A process whose files may not grow: usage fill_disk.py LEDGER MAX_BYTES. Prints requests made and the error."""

import resource
import signal
import sys

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda

from mpf_chains.errors import LedgerError
from mpf_chains.runtime import Call, Executor, Ledger

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
requests: list[object] = []


def answer(messages: list[object]) -> str:
    requests.append(messages)
    return "answer " * 100


try:
    executor = Executor(RunnableLambda(answer), model_id="m", ledger=Ledger(sys.argv[1]), progress=False)
    executor.run([Call((HumanMessage(str(index)),)) for index in range(2000)])
except LedgerError as error:
    sys.stdout.write(f"{len(requests)} {error}\n")
