"""Run a workflow on a server as a browser does: over HTTP, listening on the websocket."""

from __future__ import annotations

import json
import struct
import urllib.request
from typing import Any

import websocket

from tools.comfyui.server import ComfyUIServer

TEXT_EVENT = 3


def follow(server: ComfyUIServer, prompt: dict[str, Any]) -> tuple[dict[str, list[str]], list[str]]:
    """Run a workflow and listen: texts shown under each node, and the kinds of the messages up to the last."""
    told: dict[str, list[str]] = {}
    kinds: list[str] = []
    channel = websocket.create_connection(server.url.replace("http", "ws") + "/ws?clientId=test", timeout=180)
    try:
        body = json.dumps({"prompt": prompt, "client_id": "test"}).encode()
        request = urllib.request.Request(server.url + "/prompt", body, {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert json.load(answer)["node_errors"] == {}
        while not kinds or kinds[-1] not in ("execution_success", "execution_error"):
            message = channel.recv()
            if isinstance(message, str):
                kinds.append(json.loads(message)["type"])
            elif struct.unpack(">I", message[:4])[0] == TEXT_EVENT:
                length = struct.unpack(">I", message[4:8])[0]
                told.setdefault(message[8 : 8 + length].decode(), []).append(message[8 + length :].decode())
    finally:
        channel.close()
    return told, kinds
