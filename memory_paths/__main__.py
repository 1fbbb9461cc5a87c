"""`python -m memory_paths`: builds what the configuration says, runs the evaluator, leaves a run folder.

The only `@hydra.main`. In a sweep a job that fails is named and the others finish; the exit status says so.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import hydra

from memory_paths.database import has_password, is_server, without_password, without_passwords

logger = logging.getLogger("memory_paths")


def run(cfg: Any, folder: Path) -> None:
    """One evaluation into `folder`; a finished one is left alone.

    Raises:
        ValueError: A launcher has started several processes, which would write the same files; or the ledger's address
            has a password, which is not to stand in files.
    """
    if (processes := int(os.environ.get("WORLD_SIZE") or 1)) > 1:
        raise ValueError(
            f"an evaluation runs in one process, this is one of {processes}; start it without torchrun or accelerate. "
            "How several learn as one in a program: see memory_paths/parametric/distributed.py"
        )
    if has_password(str(cfg.ledger or "")):
        raise ValueError(
            f"the address of the ledger, {without_password(cfg.ledger)}, has a password; give it in PGPASSWORD or"
            f" ~/.pgpass instead. Hydra has written what was given into {folder / '.hydra'}, a sweep also into its"
            " multirun.yaml: delete these files"
        )
    from memory_paths import build
    from memory_paths.evaluation.evaluator import Evaluator
    from memory_paths.evaluation.harness import Harness
    from memory_paths.evaluation.records import compact
    from memory_paths.evaluation.report import REPORT, UNTOLD, Report

    config = _plain(cfg)
    config.pop("sinks", None)  # a run is the same whoever is told of it
    untold = dict.fromkeys(UNTOLD)
    if (folder / REPORT).exists() and {**Report.read(folder).config, **untold} == {**config, **untold}:
        logger.info("%s is finished already", folder)
        return
    build.threads(cfg.threads)
    options = dict(config["evaluation"])
    wanted = options.pop("harness")
    build.check_options(Evaluator, options, "evaluation.")
    build.check_options(Evaluator, {"progress": config["progress"]})
    harness = Harness(**wanted, seed=cfg.seeds.order) if wanted["tasks"] or wanted["folder"] else None
    built = build.build_run(cfg)
    with built.agent as agent:
        evaluator = Evaluator(
            built.stream,
            folder=folder,
            seed=cfg.seeds.order,
            control=built.control,
            harness=harness,
            progress=cfg.progress,
            config=config,
            restore=build.restore,
            sinks=build.build_sinks(cfg, folder),
            **options,
        )
        evaluator.run(agent)
    compact(folder)


def _plain(cfg: Any) -> dict[str, Any]:
    from omegaconf.errors import InterpolationResolutionError

    from memory_paths import build

    try:
        return build.plain(cfg)
    except InterpolationResolutionError as error:
        if "MEMORY_PATHS_DATA" not in str(error):
            raise
        raise ValueError(
            "this needs the data of others: set MEMORY_PATHS_DATA to the folder that holds them, one folder for each,"
            " named as the files of conf/stream/ name it"
        ) from error


@hydra.main(config_path="pkg://memory_paths.conf", config_name="config", version_base="1.3")
def _task(cfg: Any) -> None:
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    settings = HydraConfig.get()
    folder = Path(settings.runtime.output_dir)
    failed = folder / "failed.json"
    failed.unlink(missing_ok=True)
    try:
        run(cfg, folder)
    except KeyboardInterrupt:
        swept = settings.mode == RunMode.MULTIRUN
        again = f"hydra.sweep.dir={settings.sweep.dir}" if swept else f"hydra.run.dir={folder}"
        logger.error("interrupted; the same command with %s goes on where it stopped", again)
        sys.exit(130)
    except Exception as raised:
        from memory_paths.build import failure

        overrides = [_without_password(override) for override in settings.overrides.task]
        described = {"error": failure(raised), "overrides": overrides}
        told = {**described, "traceback": without_passwords(traceback.format_exc())}
        failed.write_text(json.dumps(told, indent=1))
        if settings.mode != RunMode.MULTIRUN:
            sys.exit(f"failed: {described['error']} (traceback: {failed})")
        logger.error("job %s failed: %s", settings.job.num, described["error"])


def _without_password(override: str) -> str:
    name, _, value = override.partition("=")
    address = value.strip("'\"")  # which may have quotes within, too
    return f"{name}={without_password(address)}" if is_server(address) else without_passwords(override)


def main() -> None:
    """The command line."""
    from memory_paths import report

    _task()
    sys.exit(report.exit_status())


if __name__ == "__main__":
    main()
