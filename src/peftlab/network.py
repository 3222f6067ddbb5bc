"""Whether the Hugging Face hub can be reached, probed quickly and not too often.

The libraries themselves retry for a minute before they report that there is no network. This module
probes the hub for at most `PROBE_S` seconds; without an answer only cached files are used.

Every room may import this file; it imports `errors` alone.
"""

from __future__ import annotations

import math
import threading
import time

from peftlab.errors import one_line

PROBE_S = 2.0  # a user without a network has the answer after 5 s, of which imports take 3
VALID_S = 30.0

_known: dict[str, tuple[float, str | None]] = {}  # by path: when it was asked, and the answer


def reachable() -> bool:
    """Whether the hub answers; never probed in offline mode."""
    return hub_problem() is None


def hub_problem(path: str = "") -> str | None:
    """Why the hub does not answer for `path`, a file there or by default its root; None if it does.

    That a file is missing, or not for this user, is an answer too. Takes at most PROBE_S seconds;
    for VALID_S seconds the answer is known then: a notebook may outlive a network's failure.
    Respects HF_ENDPOINT, proxies and certificates as huggingface_hub does, and HF_HUB_OFFLINE.
    """
    asked_at, problem = _known.get(path, (-math.inf, None))
    if time.monotonic() - asked_at > VALID_S:
        problem = _probe(path)
        _known[path] = time.monotonic(), problem
    return problem


def _probe(path: str) -> str | None:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answers: list[str | None] = []
    # a thread, because no socket timeout covers the look-up of the host name
    url = f"{constants.ENDPOINT}/{path}"
    probe = threading.Thread(target=lambda: answers.append(_ask(url)), daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return answers[0] if answers else f"{url} did not answer within {PROBE_S} s"


def describe_error(error: Exception) -> str:
    """An error of huggingface_hub or of its transport, which share no base class, in one line."""
    return one_line(f"{type(error).__name__}: {error}").rstrip(".")


def _ask(url: str) -> str | None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(url, timeout=PROBE_S, follow_redirects=False).status_code
    except Exception as error:  # whatever a transport, a proxy or a resolver may raise
        return f"{url} can't be reached ({error or type(error).__name__})"
    return f"{url} answers with status {status}" if status >= 500 else None
