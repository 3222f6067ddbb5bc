"""Whether the Hugging Face hub can be reached, asked once and quickly.

The libraries' own way of finding out that there is no network takes a minute of retries; this
asks once, for at most `PROBE_S` seconds, and then what is cached has to do.

Every room may import this file; it imports `errors` alone.
"""

from __future__ import annotations

import functools
import threading

from peftlab.errors import one_line

PROBE_S = 2.0  # of the 5 s after which a user without a network has the answer; imports take 3


def reachable() -> bool:
    """Whether the hub answers. Asked at most once a process, and never in offline mode."""
    return problem() is None


@functools.cache
def problem(path: str = "") -> str | None:
    """Why the hub does not serve `path` (of a file there; its root if empty); None if it does.

    A file that is not there, or not for this user, is an answer too. Takes at most PROBE_S seconds.
    Respects HF_ENDPOINT, proxies and certificates as huggingface_hub does, and HF_HUB_OFFLINE.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    answer: list[str | None] = []
    # a thread, because no timeout of a socket covers looking up the name
    url = f"{constants.ENDPOINT}/{path}"
    probe = threading.Thread(target=lambda: answer.append(_ask(url)), daemon=True)
    probe.start()
    probe.join(PROBE_S)
    return answer[0] if answer else f"{url} did not answer within {PROBE_S} s"


def told(error: Exception) -> str:
    """What the hub's library or its transport says, which share no base class, in one line."""
    return one_line(f"{type(error).__name__}: {error}").rstrip(".")


def _ask(url: str) -> str | None:
    from huggingface_hub import get_session

    try:
        status = get_session().head(url, timeout=PROBE_S, follow_redirects=False).status_code
    except Exception as error:  # whatever a transport, a proxy or a resolver may raise
        return f"{url} can't be reached ({error or type(error).__name__})"
    return f"{url} answers with status {status}" if status >= 500 else None
