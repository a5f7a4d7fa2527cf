from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

from mlic.cli.main import cli, main
from mlic.errors import ClusterError, DataError, PartialError, RunError

Run = Callable[..., subprocess.CompletedProcess[str]]


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys\nfrom click.testing import CliRunner\nfrom mlic.cli.main import cli\n"
        "for name in ['', *cli.commands]:\n"
        "    assert CliRunner().invoke(cli, [*([name] if name else []), '--help']).exit_code == 0\n"
        "print([m for m in ('torch', 'ray', 'pandas', 'numpy', 'pyarrow', 'PIL', 'yaml') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_setting_has_help() -> None:
    for command in cli.commands.values():
        assert command.help, command.name
        for parameter in command.params:
            assert parameter.param_type_name == "argument" or parameter.help, (command.name, parameter.name)


@pytest.mark.parametrize(
    ("arguments", "code", "error", "hint"),
    [
        (["train", "nowhere"], 3, "nowhere does not exist.", "mlic pack IMAGES"),
        (["train"], 3, "shards does not exist.", "mlic pack IMAGES --labels LABELS writes ./shards."),
        (["tune", "--num-samples", "50"], 3, "shards does not exist.", "mlic pack IMAGES --labels LABELS"),
        (["doctor"], 3, "shards does not exist.", "mlic pack IMAGES --labels LABELS"),
        (["explore"], 3, "shards does not exist.", "mlic pack IMAGES --labels LABELS"),
        (["predict", "runs/x"], 2, "there is no command 'predict'.", "did you mean mlic batch-predict?"),
        (["train", "--learning_rate", "1"], 2, "No such option '--learning_rate'.", "did you mean --lr?"),
        (["train", "--momentum", "0.5"], 2, "No such option '--momentum'.", "did you mean --set momentum=VALUE?"),
        (["train", "--set", "learning_rate=1"], 2, "unknown setting 'learning_rate'.", "did you mean lr?"),
        (["pack", "p", "--unlabeled", "keep"], 2, "No such option '--unlabeled'.", "did you mean --unlabelled?"),
        (["tune", "--set", "space.learning_rate={choice: [1]}"], 2, "no setting 'learning_rate'", "settings.md"),
        (["train", "--set", "lr=1", "--set", "lr.x=2"], 2, "lr is 1, which has no parts.", "set lr once."),
        (["train", ".", "--config", "b-finale"], 2, "no configuration file b-finale.", "did you mean b-final?"),
        (["train", ".", "--config", "x/b-finale"], 2, "no configuration file x/b-finale.", "check its path."),
        (["train", ".", "--set", "epoch=3"], 2, "unknown setting 'epoch'.", "did you mean epochs?"),
        (["train", ".", "--arch", "resnet51"], 3, "holds no index.json", "mlic pack"),
        (["train", "--epochs", "many", "."], 2, "'many' is not a valid integer", "--help"),
        (["trian"], 2, "there is no command 'trian'.", "did you mean mlic train?"),
        (["pack", "nowhere", "--labels", "x"], 3, "nowhere does not exist.", "check the path."),
        (["tune", "nowhere"], 3, "nowhere does not exist.", "mlic pack"),
        (["batch-predict", "nowhere", ".", "--out", "p.tsv"], 3, "nowhere does not exist.", "finished run"),
        (["evaluate", "p.tsv", "--labels", "."], 3, "p.tsv do not exist.", "mlic batch-predict"),
        (["slurm"], 2, "stage", ""),
        (["slurm", "train", "--nodes", "0"], 2, "nodes", ""),
    ],
)
def test_mistakes(mlic: Run, arguments: list[str], code: int, error: str, hint: str) -> None:
    done = mlic(*arguments)
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    *story, first, second = done.stderr.strip().splitlines()
    assert first.startswith("Error: "), done.stderr
    assert first.endswith((".", "?"))
    assert error in first
    assert second.startswith("Hint: ")
    assert hint in second
    assert not any("Traceback" in line for line in story)


def test_errors_as_json(mlic: Run) -> None:
    done = mlic("train", "nowhere", "--json")
    assert done.returncode == 3
    report = json.loads(done.stdout)
    assert report["exit_code"] == 3
    assert "does not exist" in report["error"]


def test_a_recipe_names_its_run(tmp_path: Path, mlic: Run) -> None:
    (tmp_path / "mine.yaml").write_text("shards: nowhere\nepoch: 3\n")
    done = mlic("train", "--config", "mine.yaml")
    assert (done.returncode, "unknown setting 'epoch'" in done.stderr) == (2, True)


def test_completion_is_there() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mlic"],
        capture_output=True,
        text=True,
        check=False,
        env={"_MLIC_COMPLETE": "bash_source", "PATH": "/usr/bin:/bin"},
    )
    assert "_MLIC_COMPLETE=bash_complete" in done.stdout


def test_slurm_prints_the_script(mlic: Run) -> None:
    done = mlic("slurm", "tune", "--nodes", "3", "--json")
    assert "#SBATCH --nodes=3" in json.loads(done.stdout)["script"]
    assert Path(mlic("slurm", "--launcher").stdout.strip()).name == "with-ray.sh"


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (DataError("d.", "h."), 3),
        (ClusterError("c.", "h."), 4),
        (RunError("r.", "h."), 5),
        (PartialError("p.", "h."), 6),
        (KeyboardInterrupt(), 6),
        (ZeroDivisionError("a bug"), 1),
    ],
)
def test_every_exit_code(
    raised: BaseException, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mlic.evaluate import evaluate

    def stage(_: object) -> None:
        raise raised

    monkeypatch.setattr(evaluate, "evaluate", stage)
    monkeypatch.setattr("os._exit", sys.exit)  # this process continues
    with pytest.raises(SystemExit) as stopped:
        main(["evaluate", "p.tsv"])
    assert stopped.value.code == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Error: " in err
    assert "Hint: " in err
    assert ("Traceback" in err) == (code == 1)


def test_what_passes_is_shown_in_place_on_a_terminal() -> None:
    """Several lines are taken back before others come, and none of them is wider or higher than the terminal."""
    import fcntl
    import pty
    import struct
    import termios

    program = """
import logging
from mlic.cli import console
console.set_up_logging(0)
log = logging.getLogger('mlic.x')
log.info('a story')
log.info('%s', 'one\\ntwo\\n' + 3 * 'three ', extra={'transient': True})
log.info('%s', '\\n'.join(str(i) for i in range(9)), extra={'transient': True})
log.info('the end')
"""
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 5, 12, 0, 0))
    subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, stderr=terminal, check=True)
    os.close(terminal)
    seen = os.read(controller, 65536).decode().replace("\r\n", "\n")
    os.close(controller)
    back = "\r\x1b[2K" + "\x1b[1A\x1b[2K"
    again = "\x1b[1A\x1b[2K"
    assert seen == f"a story\none\ntwo\nthree three{back}{again}5\n6\n7\n8{back}{again}{again}the end\n"


@pytest.mark.parametrize("group", [[], ["cluster"]])
def test_a_group_without_a_command_shows_what_there_is(mlic: Run, group: list[str]) -> None:
    done = mlic(*group)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("Usage: mlic")
    assert ("Commands:" if group else "Data:") in done.stderr


def test_where_shards_are_missing_it_says_what_there_is_and_how_to_pack_it(mlic: Run, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "annotations").mkdir()
    (tmp_path / "photos" / "im1.jpg").touch()
    (tmp_path / "annotations" / "dog.txt").write_text("1\n")
    for arguments in (["tune", "--num-samples", "50"], ["train"], ["explore"], ["doctor"], ["train", "photos"]):
        done = mlic(*arguments)
        assert done.returncode == 3, done.stderr
        assert "photos/ holds images and annotations/ holds label files" in done.stderr
        assert "Hint: mlic pack photos/ --labels annotations/ writes ./shards." in done.stderr


def test_commands_are_listed_in_the_order_of_the_work_with_whole_descriptions() -> None:
    text = CliRunner().invoke(cli, ["--help"], terminal_width=80).output
    commands = re.findall(r"^  ([a-z][a-z-]+)  +(\S.*)$", text, re.MULTILINE)
    names = [name for name, _ in commands]
    assert set(names) == set(cli.commands)
    work = ["pack", "train", "tune", "batch-predict", "evaluate"]
    assert [name for name in names if name in work] == work
    assert all(len(line) <= 80 for line in text.splitlines())
    assert not any(what.endswith("...") for _, what in commands)
    assert [line for line in text.splitlines() if line.endswith(":") and line[0] != " "] == [
        "Options:",
        "Data:",
        "Models:",
        "Predictions and numbers:",
        "Elsewhere:",
        "Examples:",
    ]


@pytest.mark.parametrize("command", ["train", "tune"])
def test_options_stand_in_groups_the_everyday_ones_first(command: str) -> None:
    text = CliRunner().invoke(cli, [command, "-h"], terminal_width=80).output
    groups = re.findall(r"^([A-Z][a-z]+):$", text, re.MULTILINE)
    own = ["Search"] if command == "tune" else []
    assert groups == [*own, "Data", "Model", "Optimisation", "Resources", "Run"]
    options = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    assert options.index("--epochs") < options.index("--objective")
    assert options.index("--arch") < options.index("--weights")
    assert options.index("--workers") > options.index("--lr")


def test_an_interrupt_while_the_program_loads_is_no_traceback(tmp_path: Path) -> None:
    """Ctrl-C in the first tenths of a second, while Python imports."""
    (tmp_path / "pydantic.py").write_text("raise KeyboardInterrupt\n")
    done = subprocess.run(
        [sys.executable, "-m", "mlic", "train"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}:{Path(__file__).parents[2]}"},
    )
    assert done.returncode == 6
    assert done.stderr == "Error: stopped.\nHint: run the same command again to resume.\n"
