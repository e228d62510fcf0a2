"""The command line: what it shows of itself, and with which code it ends."""

import subprocess
import sys

import pytest

from gmmt_fusion import __version__
from gmmt_fusion.cli import COMMANDS, main, make_parser
from gmmt_fusion.evaluation.trackers import load_tracker


def shown(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 0
    return capsys.readouterr().out


def test_help_names_every_command_and_the_exit_codes(capsys):
    text = shown(["--help"], capsys)
    assert all(name in text for name in (*COMMANDS, "exit codes", "130"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    text = shown([command, "--help"], capsys)
    assert f"gmmt-fusion {command}" in text and "--" in text


def test_version(capsys):
    assert __version__ in shown(["--version"], capsys)


def test_help_does_not_wait_for_torch():
    code = "import sys; from gmmt_fusion.cli import main\ntry: main(['--help'])\n"
    code += "except SystemExit: print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False False"


@pytest.mark.parametrize(
    ("raised", "code"),
    [(None, 0), (ValueError("bad"), 2), (OSError("gone"), 2), (KeyboardInterrupt(), 130)],
)
def test_exit_codes(raised, code, monkeypatch, capsys):
    def run(options):
        if raised is not None:
            raise raised

    def make(words):
        parser = make_parser(())
        parser.set_defaults(run=run)
        return parser

    monkeypatch.setattr("gmmt_fusion.cli.make_parser", make)
    assert main(["track"]) == code
    text = capsys.readouterr().err
    assert text.count("\n") == (code != 0)


def test_a_command_without_its_arguments_is_code_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["track"])
    assert end.value.code == 2 and "--tracker" in capsys.readouterr().err


def test_a_device_that_is_not_there_is_refused_before_the_tracker_is_built():
    with pytest.raises(ValueError, match=r"'tpu'.*expected cpu"):
        load_tracker("no_such_module:build", device="tpu")


def test_shells_complete_commands_and_options():
    shtab = pytest.importorskip("shtab")
    script = shtab.complete(make_parser(), "bash")
    assert all(word in script for word in (*COMMANDS, "--benchmark", "--fusion"))
