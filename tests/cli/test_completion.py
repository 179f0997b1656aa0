"""Tab completion: what is offered, and that bash, zsh and fish put it on the line."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import tinyfusion
from tinyfusion.cli import TOOLS, main
from tinyfusion.completion.candidates import candidates
from tinyfusion.completion.shells import SCRIPTS, bash_replies, words_of
from tinyfusion.settings.commands import COMMANDS
from tinyfusion.settings.overview import choices

BREAKS = " \t\n\"'><=;|&(:"
"""bash's own ``COMP_WORDBREAKS``."""


def offered(*words: str) -> list[str]:
    return [candidate.text for candidate in candidates(words, TOOLS)]


def test_commands_and_tools() -> None:
    assert {*COMMANDS, *TOOLS} <= set(offered(""))
    assert offered("re") == ["recover", "report", "remap-lora"]
    assert offered("nothing", "") == []


def test_keys_of_a_command() -> None:
    assert offered("run", "pru") == ["pruner=", "pruner."]
    assert offered("run", "kee") == ["keep="]
    assert "keep=" not in offered("sample", "") and "n=" in offered("sample", "")
    assert offered("run", "experimen") == ["experiment="]
    assert "budget=" not in offered("run", "budget") == ["budget."]


@pytest.mark.parametrize("group", ["pruner", "recovery", "stages", "experiment", "backbone"])
def test_choices_of_a_group(group: str) -> None:
    assert offered("run", f"{group}=") == [f"{group}={name}" for name in choices(group)]


def test_the_last_of_several_values_is_completed() -> None:
    assert offered("run", "pruner=shortgpt,flu") == ["pruner=shortgpt,flux_lite"]
    assert offered("run", "logger=[csv,ten") == ["logger=[csv,tensorboard"]


def test_own_configurations_are_offered(tmp_path: Path) -> None:
    (tmp_path / "pruner").mkdir()
    (tmp_path / "pruner/mine.yaml").write_text("# Mine. And more.\n_target_: my.Pruner\nrate: 3\n")
    given = ("run", "--config-dir", str(tmp_path))
    (found,) = candidates([*given, "pruner=mi"], TOOLS)
    assert found == ("pruner=mine", "Mine", False)
    assert offered(*given, "pruner=mine", "pruner.") == ["pruner.rate="]


def test_dotted_keys_follow_what_is_chosen() -> None:
    assert "pruner.num_samples=" in offered("run", "pruner=shortgpt", "pruner.")
    assert "pruner.num_samples=" not in offered("run", "pruner.")
    assert "sampler.method=" in offered("run", "backbone=sit_digits", "sampler.")
    assert "sampler.method=" not in offered("run", "sampler.")
    assert "recovery.stages.share=" in offered("run", "stages=fade_out", "recovery.stages.")
    assert offered("run", "training.recovery.batch") == ["training.recovery.batch_size="]
    assert offered("run", "+training.recovery.batch") == ["+training.recovery.batch_size="]
    assert offered("sample", "guidance.sc") == ["guidance.scale="]
    assert offered("sample", "pruner.") == []


@pytest.mark.parametrize("command", COMMANDS)
def test_every_dotted_key_is_one_of_the_composed_configuration(command: str) -> None:
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tinyfusion.settings.overview import conf_folder

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = OmegaConf.to_container(compose(command))
    assert isinstance(cfg, dict)

    def leaves(node: dict, path: str = "") -> set[str]:
        found = set()
        for key, value in node.items():
            if not str(key).startswith("_"):
                inner = isinstance(value, dict) and bool(value)
                found |= leaves(value, f"{path}{key}.") if inner else {f"{path}{key}="}
        return found

    def reached(prefix: str) -> set[str]:
        found = set()
        for text in offered(command, prefix):
            found |= reached(text) if text.endswith(".") else {text}
        return found

    wanted = {key for key in leaves(cfg) if "." in key}
    assert wanted == {key for top in cfg for key in reached(f"{top}.")}


def test_words_and_truth_values() -> None:
    assert offered("run", "units=") == ["units=blocks", "units=branches"]
    assert offered("run", "trainer.compile=") == ["trainer.compile=true", "trainer.compile=false"]
    assert offered("run", "--cfg", "j") == ["job"]


def test_files_where_a_key_holds_a_path(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/decision.json").touch()
    (tmp_path / "digital.pt").touch()
    assert offered("run", "decision=r") == ["decision=runs/"]
    assert offered("run", "decision=runs/") == ["decision=runs/decision.json"]
    assert offered("run", "checkpoint=digi") == ["checkpoint=digits", "checkpoint=digital.pt"]
    assert offered("inspect", "dig") == ["digital.pt"]
    assert offered("run", "--config-dir", "") == ["runs/"]
    assert offered("run", "decision=missing/") == []


def test_options_of_tools() -> None:
    assert offered("convert", "--ove") == ["--overwrite"]
    assert offered("convert", "--to", "") == ["ours", "public", "diffusers"]


def test_words_of_unfinished_lines() -> None:
    assert words_of("tf run a") == (["tf", "run", "a"], "", 0)
    assert words_of("tf  run ") == (["tf", "run", ""], "", 0)
    assert words_of("tf 'a b' c\\ d") == (["tf", "a b", "c d"], "", 0)
    assert words_of("tf a='b c") == (["tf", "a=b c"], "'", 2)
    assert words_of("tf a=b:c", "=:") == (["tf", "a=b:c"], "", 4)
    assert words_of("tf 'a=b'c", "=:") == (["tf", "a=bc"], "", 0)


def test_replies_to_bash_follow_its_word_breaks(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my model").touch()
    assert bash_replies("tinyfusion run pruner=short", BREAKS, TOOLS) == ["shortgpt "]
    assert bash_replies("tinyfusion run pruner=short", " ", TOOLS) == ["pruner=shortgpt "]
    assert bash_replies("tinyfusion run checkpoint=my", BREAKS, TOOLS) == [r"my\ model "]
    assert bash_replies("tinyfusion run 'checkpoint=my", BREAKS, TOOLS) == ["checkpoint=my model"]
    assert bash_replies("tinyfusion run checkpoint='my", BREAKS, TOOLS) == ["my model"]


def test_a_shell_that_is_not_known_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "tcsh"]) == 2
    assert "valid: bash, zsh, fish" in capsys.readouterr().err
    assert main(["completion"]) == 0
    help_text = capsys.readouterr().out
    assert all(f"completion {shell}" in help_text for shell in SCRIPTS)


def test_nothing_heavy_is_imported_for_a_tab() -> None:
    code = (
        "import sys; from tinyfusion.cli import main\n"
        "main(['completion', 'fish', '--words', 'run', 'training.recovery.'])\n"
        "main(['completion', 'fish', '--words', 'convert', '--'])\n"
        "print('MODULES', *sys.modules)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    said, _, loaded = run.stdout.partition("MODULES")
    assert "training.recovery.steps=\tdefault 600" in said and "--overwrite" in said
    assert not {"torch", "hydra", "omegaconf", "numpy", "lightning"} & set(loaded.split())


# -- real shells --------------------------------------------------------------------------------


def environment(folder: Path | None = None) -> dict[str, str]:
    path = os.environ["PATH"] if folder is None else f"{folder}{os.pathsep}{os.environ['PATH']}"
    home = "/nonexistent" if folder is None else str(folder)
    root = str(Path(tinyfusion.__file__).parents[1])
    return {"PATH": path, "HOME": home, "PYTHONPATH": root, "TERM": "dumb", "LC_ALL": "C.UTF-8"}


START = {
    "bash": (["--noprofile", "--norc", "-i"], 'eval "$(tinyfusion completion bash)"'),
    "zsh": (["-f", "-i"], 'eval "$(tinyfusion completion zsh)"'),
    "fish": (["--no-config", "-i"], "tinyfusion completion fish | source"),
}


@pytest.fixture
def typed(tmp_path: Path) -> Callable[[str, str], list[str]]:
    """``typed("bash", "tinyfusion run pruner=short\\t")``: the arguments on return."""
    pexpect = pytest.importorskip("pexpect")
    program, line = tmp_path / "tinyfusion", tmp_path / "line"
    program.write_text(
        f"""#!/bin/sh
[ "$1" = completion ] && exec {sys.executable} -m tinyfusion "$@"
printf '%s\\n' "$@" > '{line}'
echo arguments written
"""
    )
    program.chmod(0o755)
    (tmp_path / "my model").mkdir()
    (tmp_path / "my model" / "decision.json").touch()

    def run(shell: str, keys: str) -> list[str]:
        if shutil.which(shell) is None:
            pytest.skip(f"{shell} is not installed")
        options, load = START[shell]
        child = pexpect.spawn(
            shell, options, env=environment(tmp_path), cwd=tmp_path, encoding="utf-8",
            dimensions=(40, 200), timeout=60,
        )  # fmt: skip
        child.sendline(f"{load}; echo rea''dy")
        child.expect_exact("ready\r\n")
        child.send(f"{keys}\r")
        child.expect_exact("arguments written")
        child.close(force=True)
        return line.read_text().splitlines()

    return run


@pytest.mark.parametrize("shell", SCRIPTS)
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ("tinyfusion remap\t", ["remap-lora"]),
        ("tinyfusion run pruner=short\tseed=1", ["run", "pruner=shortgpt", "seed=1"]),
        (
            "tinyfusion run training.recov\tlearning_rate_\t3",
            ["run", "training.recovery.learning_rate_end=3"],
        ),
        (
            "tinyfusion run decision=my\tdec\t",
            ["run", "decision=my model/decision.json"],
        ),
        ("tinyfusion run 'decision=my\tdec\t", ["run", "decision=my model/decision.json"]),
        ("tinyfusion convert --to diff\t", ["convert", "--to", "diffusers"]),
    ],
)
def test_a_shell_completes(
    shell: str, keys: str, words: list[str], typed: Callable[[str, str], list[str]]
) -> None:
    assert typed(shell, keys) == words
