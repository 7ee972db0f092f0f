"""Prompts from files and seeds from text, as people give them to ``ediffi sample``."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

STDIN = "-"

MOST_SEEDS = 1_000_000
"""More seeds than this in one range are a slip of the keyboard."""


def check_text(name: str, text: str) -> str:
    """The text itself; ValueError if it is no valid Unicode, which no encoder reads.

    Args:
        name: what it is, for the message.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} {text!r} is not valid Unicode (character {error.start + 1}); write it in UTF-8"
        ) from None
    return text


def check_prompt(name: str, text: str) -> str:
    """The prompt itself; ValueError if it is empty, or no valid Unicode.

    Args:
        name: what it is, for the message.
    """
    if not text.strip():
        raise ValueError(f"{name} is empty; write what to draw")
    return check_text(name, text)


def read_prompts(file: str) -> list[str]:
    """Read prompts from a file, one a line; ``-`` is standard input.

    Blank lines are skipped, and so are lines that start with ``#``.

    Raises:
        ValueError: The file is missing, is not UTF-8 text, or has no prompt.
    """
    name = "standard input" if file == STDIN else file
    try:
        data = sys.stdin.buffer.read() if file == STDIN else Path(file).read_bytes()
    except FileNotFoundError:
        raise ValueError(f"there is no file {file}; --prompts needs one prompt a line") from None
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror or error})") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{name} is not UTF-8 text (line {line}); save it as UTF-8") from None
    if "\0" in text:
        raise ValueError(f"{name} is not a text file; --prompts needs one prompt a line")
    lines = [line.strip() for line in text.splitlines()]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise ValueError(f"{name} has no prompts; write one a line")
    return found


def parse_seeds(text: str) -> list[int]:
    """Seeds such as ``3,7,11``, ``0:8`` (0 to 7), or both: ``3,10:14``.

    Raises:
        ValueError: The text is something else, or a range is empty.
    """
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?::(\d+))?", part.strip(), flags=re.ASCII)
        if not match:
            raise ValueError(f"--seeds {text!r} are not seeds: write 3,7,11 or a range, as 0:8")
        first = int(match[1])
        end = int(match[2]) if match[2] else first + 1
        if end <= first:
            raise ValueError(
                f"--seeds {part.strip()} is an empty range; write FIRST:END with FIRST below END, "
                "which is not included"
            )
        if end - first > MOST_SEEDS or end > 2**63:
            raise ValueError(f"--seeds {part.strip()} are too many or too large; write fewer")
        found += range(first, end)
    return found


def assign_seeds(prompts: int, n: int | None, seeds: Sequence[int]) -> list[list[int]]:
    """Distribute a list of seeds over prompts.

    Args:
        prompts: number of prompts.
        n: pictures per prompt; None to take it from the number of seeds.
        seeds: one for each picture in order; or ``n``, with which every prompt is drawn.

    Returns:
        The seeds of each prompt's pictures.

    Raises:
        ValueError: The number of seeds fits neither.
    """
    if n is not None and len(seeds) == n:
        return [list(seeds)] * prompts
    each = n if n is not None else len(seeds) // prompts
    if not each or len(seeds) != prompts * each:
        wanted = f"{prompts * n} (or {n})" if n is not None else f"a multiple of {prompts}"
        what = f"{prompts} prompt{'s' * (prompts > 1)}" + (f" with -n {n}" if n is not None else "")
        raise ValueError(
            f"--seeds has {len(seeds)} seed{'s' * (len(seeds) > 1)} for {what}; give {wanted}"
        )
    return [list(seeds[i * each : (i + 1) * each]) for i in range(prompts)]
