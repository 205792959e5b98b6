"""``lb completion``: the script that lets a shell complete commands, options and task names.

The scripts ask lb itself, in click's protocol: the words typed so far arrive in the environment,
the answers are lines.  Started as ``python lb.py`` the script also defines ``lb`` as a shell
function, because shells complete a command's name, not two words.
"""

from __future__ import annotations

import os
import shlex
import sys

import click

from .exit_codes import ExitCode
from .options import program_name

_BASH = """\
_lb_completion() {
    local kind value
    COMPREPLY=()
    while IFS=',' read -r kind value; do
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done < <(COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD _LB_COMPLETE=bash_complete \\
        @COMMAND@ 2>/dev/null)
}
complete -o nosort -F _lb_completion lb
"""

_ZSH = """\
_lb_completion() {
    local kind value text
    local -a answer described plain
    answer=("${(@f)$(COMP_WORDS="${words[*]}" COMP_CWORD=$((CURRENT - 1)) \\
        _LB_COMPLETE=zsh_complete @COMMAND@ 2>/dev/null)}")
    for kind value text in "${answer[@]}"; do
        case $kind in
            dir) _path_files -/ ;;
            file) _path_files -f ;;
            plain)
                if [[ $text == _ ]]; then plain+=("$value")
                else described+=("$value:$text"); fi ;;
        esac
    done
    (( $#described )) && _describe -V unsorted described -U
    (( $#plain )) && compadd -U -V unsorted -a plain
}
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }
compdef _lb_completion lb
"""

_FISH = """\
function _lb_completion
    for line in (env COMP_WORDS=(commandline -cp) COMP_CWORD=(commandline -t) \\
            _LB_COMPLETE=fish_complete @COMMAND@ 2>/dev/null)
        set -l parts (string split -m 1 , -- $line)
        switch $parts[1]
            case dir
                __fish_complete_directories $parts[2]
            case file
                __fish_complete_path $parts[2]
            case plain
                echo $parts[2]
        end
    end
end
complete --no-files --command lb --arguments '(_lb_completion)'
"""

_SCRIPTS = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
_FUNCTIONS = {
    "bash": 'lb() { @COMMAND@ "$@"; }\n',
    "zsh": 'lb() { @COMMAND@ "$@"; }\n',
    "fish": "function lb\n    @COMMAND@ $argv\nend\n",
}
_INSTALL = {
    "bash": """eval "$(@PROGRAM@ completion bash)"   in ~/.bashrc""",
    "zsh": """eval "$(@PROGRAM@ completion zsh)"   in ~/.zshrc""",
    "fish": """@PROGRAM@ completion fish | source   in ~/.config/fish/config.fish""",
}


@click.command(
    "completion",
    epilog="""\b
Examples:
  eval "$(lb completion bash)"        in ~/.bashrc
  eval "$(lb completion zsh)"         in ~/.zshrc
  lb completion fish | source         in ~/.config/fish/config.fish

\b
From a clone, with its full path; the script then defines `lb` as well:
  eval "$(python ~/src/lb/lb.py completion bash)"

\b
Exit codes: 0; 2 unknown shell.""",
)
@click.argument("shell", type=click.Choice(list(_SCRIPTS)), metavar="SHELL")
def completion(shell: str) -> int:
    """Print a completion script for a shell: bash 4.4 or later, zsh or fish.

    It completes commands, options, files and the names of the tasks of the running system.
    """
    click.echo(completion_script(shell), nl=False)
    if sys.stdout.isatty():
        hint = _INSTALL[shell].replace("@PROGRAM@", program_name())
        click.echo(f"lb: to install it, put this line into your shell:\n    {hint}", err=True)
    return ExitCode.OK


def completion_script(shell: str) -> str:
    """The script for ``bash``, ``zsh`` or ``fish``, for the way this program was started."""
    words, is_command = _command_words()
    command = shlex.join(words)
    script = f"# completion of lb for {shell}\n{_SCRIPTS[shell]}"
    if not is_command:
        script += _FUNCTIONS[shell]
    return script.replace("@COMMAND@", command)


def _command_words() -> tuple[list[str], bool]:
    """How to start lb from any folder, and whether that is the command ``lb`` itself."""
    script = sys.argv[0]
    if program_name() == "lb":
        return ["lb"], True
    if os.path.basename(script) == "__main__.py":
        return [sys.executable, "-m", "lbcore"], False
    return [sys.executable, os.path.abspath(script)], False
