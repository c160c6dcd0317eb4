"""Whether the Hugging Face hub can be reached, told at once: its client retries for minutes where there is no network."""

from __future__ import annotations

import socket
from queue import Empty, SimpleQueue
from threading import Thread
from urllib.parse import urlsplit
from urllib.request import getproxies


def reachable(timeout_s: float = 2.0) -> bool:
    """Tell within the time whether the hub's host takes connections; without asking where a proxy stands between."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    if url.scheme in getproxies() or "all" in getproxies():
        return True
    answers: SimpleQueue[bool] = SimpleQueue()
    address = (url.hostname or "huggingface.co", url.port or (80 if url.scheme == "http" else 443))
    # in a thread, since neither the name's resolution nor the sum over its addresses has a time limit of its own
    Thread(target=lambda: answers.put(_connects(address, timeout_s)), daemon=True).start()
    try:
        return answers.get(timeout=timeout_s)
    except Empty:
        return False


def _connects(address: tuple[str, int], timeout_s: float) -> bool:
    try:
        with socket.create_connection(address, timeout_s):
            return True
    except OSError:
        return False
