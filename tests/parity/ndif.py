"""A stand-in for an NDIF server: models in a process of their own that cannot import anything of this project.

python ndif.py PORT_FILE HUB_ID=DIRECTORY …
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import struct
import sys
import threading
import traceback
from email.parser import BytesParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import nnsight
import torch
import zstandard
from nnsight.schema.request import RequestModel
from nnsight.schema.response import ResponseModel, Status
from nnsight.tracing.tracer import _saves, dec, inc
from transformers import AutoModelForCausalLM, AutoTokenizer

MODELS: dict[str, Any] = {}
LISTENERS: dict[str, Any] = {}  # what each session's answers are written to
ONE = threading.Lock()


class Absent(MetaPathFinder):
    """This project, on a machine that it was never installed on."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if fullname.partition(".")[0] in ("probes", "tv", "tests"):
            raise ModuleNotFoundError(f"No module named {fullname!r}", name=fullname)


def run(request: RequestModel, blob: bytes) -> bytes:
    """The values that the request's trace saved, as a server sends them."""
    name = json.loads(request.model_key.partition(":")[2])["repo_id"]
    model = MODELS[name]
    tracer = RequestModel.deserialize(blob, model._remoteable_persistent_objects(), request.compress)
    inc()
    try:
        tracer.execute(tracer.info.code)
        saved = {key: value for key, value in tracer.info.frame.f_locals.items() if id(value) in _saves()}
    finally:
        dec()
    buffer = io.BytesIO()
    torch.save(saved, buffer)
    return zstandard.ZstdCompressor().compress(buffer.getvalue()) if request.compress else buffer.getvalue()


class Server(BaseHTTPRequestHandler):
    """/subscribe gives a web socket its session; /request is answered through it."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        key = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
        self.end_headers()
        session = f"session-{len(LISTENERS)}"
        LISTENERS[session] = self.wfile
        write(session, json.dumps({"session_id": session}).encode(), text=True)
        self.rfile.read(1)  # until the client closes it
        self.close_connection = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
        parts = {
            part.get_param("name", header="content-disposition"): part.get_payload(decode=True)
            for part in BytesParser().parsebytes(head + body).get_payload()
        }
        request = RequestModel.model_validate_json(parts["data"])
        self.answer(ResponseModel(id="job", status=Status.RECEIVED))
        try:
            with ONE:
                response = ResponseModel(id="job", status=Status.COMPLETED, data=run(request, parts["blob"]))
        except Exception as error:
            traceback.print_exc()
            response = ResponseModel(id="job", status=Status.ERROR, description=f"{type(error).__name__}: {error}")
        write(request.session_id, response.pickle())

    def answer(self, response: ResponseModel) -> None:
        content = response.model_dump_json().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()

    def log_message(self, *_: Any) -> None:
        pass


def write(session: str, content: bytes, text: bool = False) -> None:
    """One web socket message."""
    LISTENERS[session].write(bytes([0x81 if text else 0x82, 127]) + struct.pack(">Q", len(content)) + content)
    LISTENERS[session].flush()


if __name__ == "__main__":
    sys.meta_path.insert(0, Absent())
    torch.set_num_threads(1)
    for pair in sys.argv[2:]:
        name, _, path = pair.partition("=")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager")
        tokenizer = AutoTokenizer.from_pretrained(path)
        MODELS[name] = nnsight.TransformersModel(model.eval(), tokenizer=tokenizer, task="text-generation")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    done = Path(sys.argv[1])
    done.with_suffix(".part").write_text(str(server.server_address[1]))
    done.with_suffix(".part").rename(done)
    server.serve_forever()
