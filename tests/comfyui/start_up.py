"""Runs in ComfyUI's Python: python start_up.py COMFYUI TRITON

Loads the pack as ComfyUI does at its start, with a Triton that cannot be imported (in the folder TRITON), and prints
what that cost: {"cpu_seconds": ..., "nodes": ..., "imported": [modules besides the pack's own], "pack": [...]}.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time


def main() -> None:
    comfyui, triton = sys.argv[1:]
    sys.path[:0] = [comfyui, triton]
    sys.argv = ["main.py", "--cpu"]
    import comfy.options

    comfy.options.enable_args_parsing()
    # What the host has imported itself before it comes to custom nodes.
    import comfy.samplers
    import comfy.sd
    import comfy_api.latest  # noqa: F401
    import folder_paths  # noqa: F401
    import host
    import PIL.ImageDraw
    import PIL.ImageFont  # noqa: F401

    # A pass of the garbage collector over the host's objects (0.2 s) may fall into our time or not: leave those out.
    gc.freeze()
    before, began = set(sys.modules), time.process_time()
    module = host.load_pack()

    async def nodes() -> list[str]:
        extension = await module.comfy_entrypoint()
        return [node.GET_SCHEMA().node_id for node in await extension.get_node_list()]

    found = asyncio.run(nodes())
    cost = time.process_time() - began
    new = set(sys.modules) - before
    own = sorted(name for name in new if name.split(".")[0] == host.PACK)
    print(json.dumps({"cpu_seconds": cost, "nodes": found, "imported": sorted(new - set(own)), "pack": own}))


if __name__ == "__main__":
    main()
