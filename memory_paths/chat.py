"""`python -m memory_paths.chat path=rag`: teach by hand, ask, see where the answer came from. A thin loop over
`Agent`."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator

from memory_paths.agent import Agent

HELP = """A sentence teaches, a question (ending in ?) asks. Also: /items  /forget ID  /held  /release ID  /discard ID
/save FOLDER  /help  /quit"""


def respond(agent: Agent, line: str) -> str:
    """What the chat says to one line.

    Raises:
        EOFError: The line asks to leave.
    """
    command, _, argument = line.strip().partition(" ")
    if not command:
        return ""
    if line.strip() in ("help", "quit", "exit"):
        return respond(agent, {"exit": "/quit"}.get(line.strip(), f"/{line.strip()}"))
    if command == "/quit":
        raise EOFError
    if command == "/help":
        return HELP
    if command == "/items":
        return "\n".join(f"{item.id}  {item.text}" for item in agent.items()) or "nothing learnt yet"
    if command == "/forget":
        if argument not in {item.id for item in agent.items()}:
            return f"no item {argument!r}; /items lists them"
        agent.forget([argument])
        return f"forgot {argument}"
    if command == "/held":
        held = [f"{one.item.id}  {one.item.text}  ({'; '.join(one.reasons)})" for one in agent.quarantined()]
        return "\n".join(held) or "nothing is kept apart"
    if command == "/release":
        return f"learnt as {', '.join(agent.release([argument]).ids)}"
    if command == "/discard":
        return f"discarded {argument}" if agent.discard([argument]) else f"no item {argument!r}; /held lists them"
    if command == "/save":
        if not argument:
            return "say where: /save FOLDER"
        agent.save(argument)
        return f"saved to {argument}"
    if command.startswith("/"):
        return f"no command {command}. {HELP}"
    if line.rstrip().endswith("?"):
        return str(agent.explain(agent.answer([line.strip()])[0]))
    receipt = agent.learn(line.strip())
    if not receipt.ids:
        return f"path {agent.path_name!r} keeps nothing"
    if not receipt.details:
        return f"known already, as {receipt.ids[0]}"
    return f"learnt as {receipt.ids[0]} by path {next(iter(receipt.details))!r}"


def chat(agent: Agent, lines: Iterable[str]) -> Iterator[str]:
    """One response for each line, until the lines or the patience end. An error is a response, not an end."""
    yield HELP
    for line in lines:
        try:
            yield respond(agent, line)
        except EOFError:
            return
        except Exception as error:
            yield f"{type(error).__name__}: {error}"


def main() -> None:
    """The command line: overrides as for `python -m memory_paths`."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from memory_paths.build import failure, load
    from memory_paths.ledger import LedgerError

    def prompted() -> Iterator[str]:
        while True:
            try:
                yield input("> " if sys.stdin.isatty() else "")
            except (EOFError, KeyboardInterrupt):
                return

    if {"-h", "--help"} & set(sys.argv[1:]):
        print(f"python -m memory_paths.chat [OPTION=VALUE ...], options as for python -m memory_paths\n{HELP}")
        return
    try:
        agent = load(*sys.argv[1:])
    except (HydraException, OmegaConfBaseException, LedgerError, ImportError, ValueError, OSError) as raised:
        sys.exit(f"failed: {failure(raised)}")
    with agent:
        for response in chat(agent, prompted()):
            print(response)


if __name__ == "__main__":
    main()
