"""Text from outside (files, servers, records, hardware names), made safe to print. No torch."""

from __future__ import annotations

import re

# control characters but tab and newline, separators and direction marks that hide text, what XML forbids
UNPRINTABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)
# lengths are bounded, so that long text takes linear time
USER_IN_ADDRESS = re.compile(r"\b(\w{1,20}://)[^/@\s]{1,1000}@")
SECRET = "token|key|secret|password|passwd|pwd|sig|signature|auth|access|credential"
SECRET_IN_ADDRESS = re.compile(rf"(?i)([?&;][\w.%-]{{0,40}}(?:{SECRET})[\w.%-]{{0,40}}=)[^&;\s'\"]+")


def printable(text: str) -> str:
    """The text with each character that controls a terminal, hides text or is no valid XML replaced by
    U+FFFD; newlines and tabs stay."""
    return UNPRINTABLE.sub("\ufffd", text)


def one_line(text: str) -> str:
    """The printable text on one line."""
    return text if text.isprintable() else re.sub(r"[\n\t]+", " ", printable(text))


def without_secrets(text: str) -> str:
    """The text with user names, passwords and tokens of addresses replaced by ***."""
    return SECRET_IN_ADDRESS.sub(r"\1***", USER_IN_ADDRESS.sub(r"\1***@", text))
