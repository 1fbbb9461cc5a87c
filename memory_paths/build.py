"""From configuration to objects: the only file that instantiates, and the only one that touches Hydra's global state.

`load(*overrides)` is for applications; it works inside somebody else's Hydra app. No other part knows what a cfg is.
"""

from __future__ import annotations

import contextlib
import inspect
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from memory_paths.agent import Agent
from memory_paths.database import without_password, without_passwords
from memory_paths.evaluation.plan import Control
from memory_paths.files import read_json
from memory_paths.ledger import Ledger
from memory_paths.types import Stream

_HYDRA = threading.Lock()

_KINDS = {
    "bool": ("true or false", (bool,)),
    "int": ("a whole number", (int,)),
    "float": ("a number", (float, int)),
    "str": ("text", (str,)),
    "Path": ("a path", (Path,)),
    "None": ("null", (type(None),)),
}


@dataclass(frozen=True)
class Run:
    """What one evaluation needs."""

    agent: Agent
    stream: Stream
    control: Control


def compose(*overrides: str) -> Any:
    """The configuration that these overrides give, as `python -m memory_paths` would see it.

    Raises:
        hydra.errors.ConfigCompositionException: An option or a choice that does not exist; the message lists those
        that do.
    """
    from hydra import compose as hydra_compose

    with _own_hydra():
        return hydra_compose(config_name="config", overrides=list(overrides))


def load(*overrides: str) -> Agent:
    """An agent, ready to learn and answer: `load("path=rag", "lm.name=...")`. Use it in a `with` block or close it."""
    return build_agent(compose(*overrides))


def build_agent(cfg: Any) -> Agent:
    """The agent that a configuration describes.

    Raises:
        ValueError: Two paths of one agent have one name, the model and a path do not go together, or an option is of
            another name or kind than its class takes.
    """
    from hydra.utils import instantiate

    described = plain(cfg)
    lm_options = dict(described["lm"])
    _check_configured(lm_options.pop("background", None), "lm.background")  # which the paths are given, not the model
    _check_configured(lm_options, "lm")
    for group in ("path", "more_paths", "router", "quarantine"):
        _check_configured(described.get(group), group)
    check_options(Agent, {name: cfg[name] for name in ("namespace", "max_new_tokens")})
    lm = instantiate(lm_options, _convert_="all")
    with contextlib.ExitStack() as opened:  # what is open is closed again where the rest cannot be built
        ledger = Ledger(cfg.ledger) if cfg.ledger else Ledger()
        opened.callback(ledger.close)
        paths: dict[str, Any] = {}
        for chosen in (cfg.path.memory, *(cfg.more_paths or {}).values()):
            path = instantiate(chosen, lm=lm, ledger=ledger, _convert_="all")
            opened.callback(path.close)
            if path.name in paths:
                raise ValueError(f"two paths are named {path.name!r}; give one of them another name")
            paths[path.name] = path
        agent = Agent(
            lm,
            paths,
            ledger,
            router=instantiate(cfg.router, _convert_="all"),
            namespace=cfg.namespace,
            max_new_tokens=cfg.max_new_tokens,
            # An agent that an older release saved has neither.
            quarantine=instantiate(cfg.quarantine, ledger=ledger, _convert_="all") if "quarantine" in cfg else None,
            ttl=described.get("ttl"),
            config=described,
        )
        opened.pop_all()
    return agent


def plain(cfg: Any) -> dict[str, Any]:
    """A configuration as dicts and lists, interpolations resolved, without a password in the ledger's address."""
    from omegaconf import OmegaConf

    described = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    if described.get("ledger"):
        described["ledger"] = without_password(str(described["ledger"]))
    return described


def build_stream(cfg: Any) -> Stream:
    """What a configuration teaches and asks.

    Raises:
        ValueError: All at once and one alone were asked for, or an experience that there is not; or an option is of
            another name or kind than the stream takes.
    """
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    _check_configured(OmegaConf.to_container(cfg.stream, resolve=True), "stream")
    stream = cast(Stream, instantiate(cfg.stream, _convert_="all"))
    if cfg.joint and cfg.alone is not None:
        raise ValueError(f"joint=true teaches everything at once, alone={cfg.alone} one experience: choose one of them")
    if cfg.alone is not None:
        return stream.one(cfg.alone)
    return stream.together() if cfg.joint else stream


def build_run(cfg: Any) -> Run:
    """Agent and stream of one evaluation.

    Raises:
        ValueError: A seed that is no whole number, or what `build_stream` refuses.
    """
    for name, seed in cfg.seeds.items():
        if type(seed) is not int:
            raise ValueError(f"seeds.{name}, which is seed unless it is given, must be a whole number, got {seed!r}")
    return Run(
        stream=build_stream(cfg),  # first, for it opens nothing that would have to be closed
        agent=build_agent(cfg),
        control=cfg.path.get("control", ""),
    )


def build_sinks(cfg: Any, folder: Path) -> dict[str, Any]:
    """What else is told the figures of a run, by name.

    Raises:
        hydra.errors.InstantiationException: One needs a package that is not installed; the message names it.
    """
    from hydra.utils import instantiate

    return {name: instantiate(sink, folder=str(folder)) for name, sink in (cfg.get("sinks") or {}).items()}


def check_options(target: Any, given: Mapping[str, Any], where: str = "") -> None:
    """Refuse options of the wrong kind before anything is built; `where` is said before their names.

    Only parameters that are annotated as numbers, text, truth values and null are looked at, in modules that postpone
    the evaluation of annotations, as all of this package do; what else is wrong the target says itself.

    Raises:
        ValueError: A number where text is wanted, and the like.
    """
    parameters = inspect.signature(target).parameters
    for name, value in given.items():
        kinds = str(parameters[name].annotation).split(" | ") if name in parameters else []
        if not kinds or not set(kinds) <= set(_KINDS) or isinstance(value, Mapping):
            continue
        if type(value) not in [allowed for kind in kinds for allowed in _KINDS[kind][1]]:
            wanted = " or ".join(_KINDS[kind][0] for kind in kinds)
            raise ValueError(f"{where}{name} must be {wanted}, got {value!r}")


def _check_names(target: Any, given: Mapping[str, Any], where: str) -> None:
    parameters = inspect.signature(target).parameters
    known = [name for name, one in parameters.items() if one.kind is not inspect.Parameter.VAR_KEYWORD]
    if len(known) < len(parameters):  # it takes any
        return
    for name in given:
        if name not in known and not name.startswith("_"):
            takes = ", ".join(sorted(set(known) - {"lm", "ledger"}))
            raise ValueError(f"{where} has no option {name!r}; {target.__name__} takes {takes}")


def _check_configured(node: Any, where: str) -> None:
    """Names and kinds of the options of whatever of ours a configuration names; what others wrote checks its own."""
    from hydra.utils import get_object

    parts = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    for name, value in parts:
        _check_configured(value, f"{where}.{name}")
    target = str(node.get("_target_", "")) if isinstance(node, Mapping) else ""
    if target.startswith("memory_paths."):
        _check_names(get_object(target), node, where)
        check_options(get_object(target), node, f"{where}.")


def load_saved(folder: Path) -> Agent:
    """See `Agent.load`."""
    from omegaconf import OmegaConf

    described = _described(folder)
    if described["config"] is None:
        raise ValueError(
            f"the agent in {folder} was assembled by hand; assemble it again and call build.restore(agent, folder)"
        )
    # A copy must not open the files that the original may still be using.
    config = OmegaConf.create({**described["config"], "ledger": None})
    for path in (config.path.memory, *(config.more_paths or {}).values()):
        if path.get("folder") is not None:
            path.folder = None
    agent = build_agent(config)
    try:
        restore(agent, folder)
    except BaseException:
        agent.close()
        raise
    return agent


def restore(agent: Agent, folder: Path) -> None:
    """Put what was saved in `folder` into an agent that was built the same way."""
    described = _described(folder)
    if described["namespace"] != agent.namespace:
        raise ValueError(
            f"{folder} holds namespace {described['namespace']!r}, the agent is bound to {agent.namespace!r}"
        )
    agent.ledger.restore(folder / "ledger.sqlite")
    for name, path in agent.paths.items():
        path.load(folder / "paths" / name)


def _described(folder: Path) -> Mapping[str, Any]:
    from memory_paths.agent import STATE_VERSION

    file = folder / "agent.json"
    if not file.is_file():
        raise FileNotFoundError(f"no saved agent in {folder}: agent.json is missing")
    described = read_json(file)
    if described.get("version") != STATE_VERSION:
        raise ValueError(
            f"{folder} holds format version {described.get('version')}; this release reads {STATE_VERSION}"
        )
    return described


@contextlib.contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra's global state is set aside and put back, so that a host's Hydra app does not notice."""
    from hydra import initialize_config_module
    from hydra.core.global_hydra import GlobalHydra
    from hydra.version import VersionBase

    with _HYDRA:
        state, base = GlobalHydra.instance(), VersionBase.instance()
        hosts, version = state.hydra, base.version_base
        state.hydra = None
        try:
            with initialize_config_module(config_module="memory_paths.conf", version_base="1.3"):
                yield
        finally:
            # Leaving the block above puts a copy in the singleton's place, made while it was set aside.
            state.hydra = hosts
            GlobalHydra.set_instance(state)
            VersionBase.set_instance(base)
            base.version_base = version


def failure(raised: BaseException) -> str:
    """What went wrong in one line, without passwords; of a constructor's error what that said, since what Hydra says of
    it is longer and no clearer."""
    from hydra.errors import InstantiationException

    error = raised.__cause__ if isinstance(raised, InstantiationException) and raised.__cause__ else raised
    return without_passwords(f"{type(error).__name__}: {' '.join(str(error).split())}")


def threads(count: int | None) -> None:
    """Limit torch to `count` threads, for jobs that run side by side; None leaves it as it is."""
    if count is not None:
        if type(count) is not int or count < 1:
            raise ValueError(f"threads must be a whole number of at least 1, or null, got {count!r}")
        import torch

        torch.set_num_threads(count)


__all__: Sequence[str] = [
    "Run",
    "build_agent",
    "build_run",
    "build_sinks",
    "build_stream",
    "check_options",
    "compose",
    "load",
    "load_saved",
    "restore",
    "threads",
]
