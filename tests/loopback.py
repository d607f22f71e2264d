"""A real HTTP server on loopback that speaks the chat completions of OpenAI, for tests of what goes over the wire."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[[dict[str, Any], Any], tuple[int, dict[str, Any]]]


@contextmanager
def serving(answer: Answer) -> Iterator[str]:
    """Serve until the block ends.

    Args:
        answer: Takes the request's JSON and its headers; returns the status, and the assistant's message or the error.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, message = answer(asked, self.headers)
            common = {"id": "1", "created": 0, "model": asked["model"]}
            usage = {"prompt_tokens": 2, "completion_tokens": 1, "total_tokens": 3}
            if status != 200:
                self.send(status, "application/json", json.dumps({"error": message}))
            elif asked.get("stream"):
                chunk = {**common, "object": "chat.completion.chunk"}
                delta = {
                    **message,
                    "tool_calls": [{"index": i, **c} for i, c in enumerate(message.get("tool_calls", []))],
                }
                pieces = [
                    {**chunk, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]},
                    {**chunk, "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                    {**chunk, "choices": [], "usage": usage},
                ]
                lines = [f"data: {json.dumps(piece)}\n\n" for piece in pieces]
                self.send(200, "text/event-stream", "".join([*lines, "data: [DONE]\n\n"]))
            else:
                choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
                body = {**common, "object": "chat.completion", "choices": [choice], "usage": usage}
                self.send(200, "application/json", json.dumps(body))

        def send(self, status, kind, text):
            data = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Connection", "close")  # clients that live on would keep sockets open
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1"
    finally:
        server.shutdown()
        server.server_close()
