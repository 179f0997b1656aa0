"""What `tinyfusion study` refuses from the command line, before anything is made."""

from __future__ import annotations

import pytest

from tinyfusion.cli import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table99"], "unknown study 'table99'; valid: branches, "),
        (["table4", "scale=large"], "scale=large is not one of study table4; valid: digits"),
        (["table4", "seeds=a"], "seeds=a: give whole numbers"),
        (["table4", "seeds=1,1"], "gives a seed twice"),
        (["table4", "traning.x=1"], "unknown key 'traning'"),
        (["table4", "--fast"], "'--fast' is neither an option nor key=value"),
        (["table4", "scale=imagenet"], "checkpoint= must be given for study table4"),
        (["table4", "scale=imagenet", "data.root=x", "checkpoint="], "checkpoint= must be given"),
        (["table2", "scale=imagenet"], "mar= must be given for study table2"),
        (["table4", "--config-dir", "nowhere"], "nowhere is no folder"),
        (["table4", "seeds=0", "--root", "/dev/null/x"], "--root: /dev/null/x: Not a directory"),
    ],
)
def test_bad_input(tmp_path, monkeypatch, capsys, arguments: list[str], message: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["study", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
