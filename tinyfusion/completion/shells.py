"""The code that shells run for completion, and what it is answered.

Each shell calls ``tinyfusion completion SHELL --words ...`` with the command line up to the cursor
and gets one candidate a line. bash wants text as it is to stand on the line, quoted, and only what
follows the last character that it divides words at; zsh and fish quote by themselves.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from tinyfusion.completion.candidates import Candidate, candidates
from tinyfusion.errors import InputError

SCRIPTS = {
    "bash": r"""
_tinyfusion() {
    local reply
    COMPREPLY=()
    while IFS= read -r reply; do
        COMPREPLY+=("$reply")
    done < <("${1/#\~/$HOME}" completion bash --words \
        "${COMP_LINE:0:COMP_POINT}" "$COMP_WORDBREAKS" 2>/dev/null)
}
complete -o nospace -F _tinyfusion tinyfusion
""",
    "zsh": r"""
if ! (( $+functions[compdef] )); then
    autoload -Uz compinit && compinit
fi
_tinyfusion() {
    local reply
    local -a whole whole_said parts parts_said
    for reply in ${(f)"$("${words[1]/#\~/$HOME}" completion zsh --words \
        "${(@Q)words[2,CURRENT-1]}" "${(Q)PREFIX}" 2>/dev/null)"}; do
        local text=${reply%%$'\t'*} said=${reply/$'\t'/  -- }
        if [[ $text == *[=./] ]]; then
            parts+=("$text") parts_said+=("$said")
        else
            whole+=("$text") whole_said+=("$said")
        fi
    done
    (( $#parts )) && compadd -S '' -l -d parts_said -a parts
    (( $#whole )) && compadd -l -d whole_said -a whole
}
compdef _tinyfusion tinyfusion
""",
    "fish": r"""
function __tinyfusion_complete
    set -l words (commandline -opc)
    $words[1] completion fish --words $words[2..-1] (commandline -ct) 2>/dev/null
end
complete -c tinyfusion -f -a '(__tinyfusion_complete)'
""",
}
"""What ``eval`` or ``source`` is given, by shell."""

USAGE = """\
usage: tinyfusion completion bash|zsh|fish

Prints what makes the shell complete commands, keys, choices and files. Put one line into its
start-up file:
  bash   eval "$(tinyfusion completion bash)"         in ~/.bashrc
  zsh    eval "$(tinyfusion completion zsh)"          in ~/.zshrc
  fish   tinyfusion completion fish | source          in ~/.config/fish/config.fish
"""

_PLAIN = re.compile(r"[\w@%+=:,./\[\]{}~-]", re.ASCII)
"""Characters that bash leaves as they are where a word is completed."""


def main(arguments: Sequence[str], tools: Mapping[str, str]) -> int:
    """Print a shell's code, or with ``--words`` what it asks for.

    Args:
        arguments: those after ``tinyfusion completion``.
        tools: name and summary of the commands that take files and options.

    Returns:
        Exit status 0.

    Raises:
        InputError: a shell that is not known.
    """
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    shell, *rest = arguments
    if shell not in SCRIPTS:
        raise InputError(f"completion {shell!r} is not known; valid: {', '.join(SCRIPTS)}")
    if not rest:
        print(SCRIPTS[shell].strip())
    elif rest[0] != "--words" or len(rest) < 2:
        raise InputError(f"unexpected argument {rest[0]!r}; see 'tinyfusion completion --help'")
    elif shell == "bash":
        for reply in bash_replies(rest[1], rest[2] if len(rest) > 2 else "", tools):
            print(reply)
    else:
        # fish gives the word at the cursor as it is typed.
        words = [*rest[1:-1], words_of(rest[-1])[0][-1] if shell == "fish" else rest[-1]]
        for found in candidates(words, tools):
            print(f"{found.text}\t{found.says}" if found.says else found.text)
    return 0


def bash_replies(line: str, breaks: str, tools: Mapping[str, str]) -> list[str]:
    """What bash is to put in place of the part of a word that it is completing.

    Args:
        line: the command line up to the cursor, the program's name included.
        breaks: characters at which bash divides words (``COMP_WORDBREAKS``).
        tools: see `main`.
    """
    words, quote, start = words_of(line, breaks)
    found = candidates(words[1:], tools)
    if quote:  # bash completes what stands in the open quotes
        return [candidate.text[start:] for candidate in found]
    return [_in_bash(candidate, start) for candidate in found]


def _in_bash(candidate: Candidate, start: int) -> str:
    text = candidate.text[start:]
    escaped = "".join(c if _PLAIN.match(c) or not c.isascii() else f"\\{c}" for c in text)
    return escaped if candidate.goes_on else f"{escaped} "


def words_of(line: str, breaks: str = "") -> tuple[list[str], str, int]:
    """Words of an unfinished command line, as shells read them.

    Args:
        line: what stands before the cursor.
        breaks: characters at which a shell completes words in parts, where they are not quoted.

    Returns:
        The words without their quoting, the last one that at the cursor (it may be empty); the
        quotation mark that is still open there, or nothing; and where in the last word the part
        begins that is completed.
    """
    words, quote, start = [""], "", 0
    signs = iter(line)
    for sign in signs:
        if sign == "\\" and quote != "'":
            words[-1] += next(signs, "")
        elif quote and sign != quote:
            words[-1] += sign
        elif quote:
            quote, start = "", 0
        elif sign in "'\"":
            quote, start = sign, len(words[-1])
        elif sign.isspace():
            words += [""] if words[-1] else []
            start = 0
        else:
            words[-1] += sign
            if sign in "=:" and sign in breaks:
                start = len(words[-1])
    return words, quote, start
