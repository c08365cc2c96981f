"""The command line of every project: `train`, `show`, `aot` and `sweep` of a config; commands.

Every field of the config is an option, with its docstring as help:
`python -m born_mlp.train configs/born_mlp/paper.py --help`. A command beside training is a function
of one dataclass of arguments (`command`).
"""

import argparse
import contextlib
import dataclasses
import importlib.util
import inspect
import logging
import os
import pathlib
import re
import shlex
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar, get_args, get_origin

import jax
import tyro
from etils import epath

from common import aot, distributed, runs, sweep
from common.config import expand_user, to_json
from common.experiment import Experiment
from common.perf import enable_compile_cache
from common.preempt import Preempted
from common.report import module_or_script
from common.show import describe

ArgumentsT = TypeVar("ArgumentsT")

COMMANDS = ("train", "show", "compare", "aot", "sweep")
USAGE = """usage: python -m PROJECT.train [train] CONFIG.py [--field value ...]
       python -m PROJECT.train show CONFIG.py [--field value ...]
       python -m PROJECT.train show RUN
       python -m PROJECT.train compare RUN RUN ...
       python -m PROJECT.train aot CONFIG.py --topology v5e:16x16 [--slices 1] [--field value ...]
       python -m PROJECT.train sweep CONFIG.py --grid FIELD=V1,V2,... [--field value ...]

train   run the experiment, or resume it from its work folder
show    print the resolved config, the parameters, shapes and shardings, without compute; of the
        work folder of a run: where its time went, over all restarts, and its loss over that time
compare set the metrics of runs beside each other, with a figure of their curves
aot     compile the train step for TPUs that are not there: memory, collectives, does it fit
sweep   run every combination of the grid's values, each in a work folder of its own; a value of
        several words is a tuple: --grid "task.hidden=8 8,16 16"

CONFIG.py defines `config()`; `CONFIG.py --help` lists its fields. RUN is a work folder."""


class Study(Protocol):
    """A config of several training runs, as the Born experiment is one."""

    workdir: str | None

    def experiments(self) -> Mapping[str, Experiment[Any]]:
        """Return the runs by name, for `show` and the shape checks."""
        ...


def main(run: Callable[[Any], Any], argv: Sequence[str] | None = None) -> None:
    """Run the command line of a project.

    Args:
      run: trains a config and returns its `Result`, or a mapping of numbers.
      argv: the arguments; those of the process by default.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    action = args.pop(0) if args and args[0] in COMMANDS else "train"
    with _together(args, many=action in ("train", "sweep")), _one_line_errors(run):
        if not args or args[0].startswith("-"):
            print(USAGE, file=sys.stdout if args in (["-h"], ["--help"]) else sys.stderr)
            sys.exit(0 if args in (["-h"], ["--help"]) else 2)
        if action == "compare" or (action == "show" and epath.Path(args[0]).is_dir()):
            print(runs.show(args[0]) if action == "show" else runs.compare(args))
            return
        path = pathlib.Path(args.pop(0))
        if action == "sweep":
            _sweep(run, path, args)
        elif action == "aot":
            _aot(path, args)
        else:
            config = resolve(path, args)
            if action == "show":
                _show(config)
            else:
                run(config)


def command(
    run: Callable[[ArgumentsT], Any],
    arguments: type[ArgumentsT],
    argv: Sequence[str] | None = None,
    *,
    processes: Literal["one", "many"] = "one",
) -> None:
    """Run a command of a project: a function of a dataclass, whose fields are the options.

    Args:
      run: does the work.
      arguments: type of what it takes; its docstring is the head of `--help`.
      argv: the arguments; those of the process by default.
      processes: "many" for one that divides its work among the processes of a cluster.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    with _together(args, many=processes == "many"), _one_line_errors(run):
        prog = shlex.join(["python", *module_or_script()])
        found = tyro.cli(arguments, args=args, prog=prog)
        _refuse_buckets(found)
        run(expand_user(found))


def _refuse_buckets(arguments: Any, prefix: str = "--") -> None:
    """Raise ValueError where a path on a disk (`pathlib.Path`) is the address of a bucket."""
    for field in dataclasses.fields(arguments):
        value = getattr(arguments, field.name)
        option = f"{prefix}{field.name.replace('_', '-')}"
        if dataclasses.is_dataclass(value):
            _refuse_buckets(value, f"{option}.")
        # pathlib has dropped one of two slashes.
        elif isinstance(value, pathlib.Path) and re.match(r"[a-z]\w+:/", str(value)):
            raise ValueError(
                f"{option} {value}: a bucket's address, and this command reads and writes files on "
                "disks only; give it a local path, and copy the file"
            )


def _together(args: Sequence[str], *, many: bool) -> contextlib.AbstractContextManager[None]:
    """Join the other processes of a cluster, for what many do together and not to show the help."""
    if many and not {"-h", "--help"} & set(args):
        return distributed.joined()
    return contextlib.nullcontext()


@contextlib.contextmanager
def _one_line_errors(run: Callable[..., Any]) -> Iterator[None]:
    """Set up a process, and end it with one line where one of our own checks fails.

    The status is 2 for a setting or input that does not fit (ValueError), which no restart mends,
    and 1 for other failures.
    """
    _open_standard_streams()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("absl").setLevel(logging.ERROR)
    enable_compile_cache()
    try:
        yield
    except Preempted as stopped:
        _say(str(stopped))
        raise
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if not _is_own_check(error, run):
            raise
        _say(f"error: {error}")
        sys.exit(2 if isinstance(error, ValueError) else 1)


def _say(text: str) -> None:
    """Write to standard error, unless it is closed or nobody reads it: the status says it, too."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def _open_standard_streams() -> None:
    """Open those that were closed at the start: else a log would be number 2, and C++ write to it.

    A file gets the lowest number that is free.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _is_own_check(error: BaseException, run: Callable[..., Any]) -> bool:
    """Whether the error was raised by a check of the core or the project: its message says all.

    So does that of the system about a file. Anything else, such as a mistake in a user's task,
    keeps its traceback.
    """
    if isinstance(error, OSError) and error.filename is not None:
        return True
    raised_in = pathlib.Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    packages = [_package(file) for file in (__file__, inspect.getfile(run))]
    return any(raised_in.is_relative_to(package) for package in packages)


def _package(file: str) -> pathlib.Path:
    """Return the folder of the outermost package that a file is in; its own where it is in none."""
    folder = pathlib.Path(file).parent
    while (folder.parent / "__init__.py").exists():
        folder = folder.parent
    return folder


def load_config(path: pathlib.Path) -> Any:
    """Import a config file and call its `config()`.

    Raises:
      ValueError: if there is no such file (with the files that are there), it is wrong Python, or
        has no `config`.
    """
    if not path.is_file():
        near = sorted(str(p) for p in path.parent.glob("*.py") if p.name != "__init__.py")
        raise ValueError(
            f"no config file {path}" + (f"; there are: {', '.join(near)}" if near else "")
        )
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its functions are known by name
    folder = str(path.parent.absolute())
    if folder not in sys.path:  # last: a file beside it must not hide an installed module
        sys.path.append(folder)
    try:
        spec.loader.exec_module(module)
        if callable(getattr(module, "config", None)):
            return module.config()
    except OSError:
        raise
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1]
        if isinstance(error, SyntaxError):
            where = f"{error.filename}, line {error.lineno}"
        elif pathlib.Path(line.filename) == pathlib.Path(spec.origin or path):
            where = f"{path}, line {line.lineno}"
        else:  # somewhere deeper, where only the traceback shows the way
            raise
        raise ValueError(f"{where}: {type(error).__name__}: {error}") from error
    raise ValueError(f"{path} must define a function config() that returns the experiment")


def resolve(path: pathlib.Path, overrides: Sequence[str]) -> Any:
    """Load a config and apply typed overrides such as `["--optim.learning_rate", "3e-4"]`.

    A config without a work folder gets `runs/PROJECT/NAME`, after the folder and name of its file.
    """
    config = _override(load_config(path), overrides, path)
    if config.workdir is None:
        config = dataclasses.replace(
            config, workdir=os.path.join("runs", path.parent.name, path.stem)
        )
    return config


def _override(config: Any, args: Sequence[str], path: pathlib.Path, *markers: Any) -> Any:
    kind: Any = type(config)
    if isinstance(config, Experiment):
        kind = Experiment[type(config.task)]  # type: ignore[misc]
    config = tyro.cli(
        kind,
        default=config,
        args=list(args),
        prog=f"... {path}",
        # A field that may be one of several dataclasses stays what the config file made it.
        config=(tyro.conf.AvoidSubcommands, *markers),
        registry=_registry,
    )
    return expand_user(config)


_registry = tyro.constructors.ConstructorRegistry()


@_registry.primitive_rule
def _name_or_function(
    info: tyro.constructors.PrimitiveTypeInfo,
) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    """Read a field that takes a name or a function by its name; functions are for config files.

    Without this rule tyro takes neither.
    """
    kinds = get_args(info.type)
    if not any(get_origin(kind) is Callable for kind in kinds):
        return None
    names = [n for kind in kinds if get_origin(kind) is Literal for n in get_args(kind)]
    if type(None) in kinds:
        names.append("None")
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="{" + ",".join(names) + "}",
        instance_from_str=lambda given: None if given == ["None"] else given[0],
        is_instance=lambda value: value is None or callable(value) or value in names,
        str_from_instance=lambda value: [
            getattr(value, "__qualname__", repr(value)) if callable(value) else str(value)
        ],
        choices=tuple(names),
    )


def experiments(config: Any) -> Mapping[str, Experiment[Any]]:
    """Return the training runs of a config by name."""
    return {"": config} if isinstance(config, Experiment) else config.experiments()


def _show(config: Any) -> None:
    print(to_json(config))
    seen: set[str] = set()
    for name, experiment in experiments(config).items():
        text = describe(experiment)
        if text in seen:  # the runs of a study often share one model
            print(f"\n{name}: as above")
        else:
            print(f"\n{name}\n{text}" if name else f"\n{text}")
        seen.add(text)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Topology:
    """The devices to compile for."""

    topology: str
    """Chip and shape of a slice: v5e:16x16, v5p:4x4x8, v6e:8x8, or simulated ones, cpu:8."""
    slices: int = 1
    """Number of slices; replicas are split over them."""


def _aot(path: pathlib.Path, args: list[str]) -> None:
    # Another program's platforms and cache are of no use here.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)
    target, overrides = tyro.cli(
        Topology, args=args, prog=f"... aot {path}", return_unknown_args=True
    )
    devices = aot.find_devices(target.topology, target.slices)
    for name, experiment in experiments(resolve(path, overrides)).items():
        found = aot.compile_step(experiment, devices)
        print(f"{name}\n" * bool(name) + aot.describe(found), flush=True)


def _sweep(run: Callable[[Any], Any], path: pathlib.Path, args: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--grid", action="append", default=[])
    found, rest = parser.parse_known_args(args)
    if not found.grid:
        raise ValueError("sweep needs at least one --grid FIELD=V1,V2,...")
    base = resolve(path, rest)
    points = []
    # Resolve all first: a bad value must not surface after hours of training.
    for settings in sweep.grid_points(found.grid):
        # With values for flags, so that they can be swept, too.
        arguments = sweep.overrides(settings)
        config = _override(base, arguments, path, tyro.conf.FlagConversionOff)
        config = dataclasses.replace(
            config, workdir=f"{base.workdir}/{sweep.folder_name(settings)}"
        )
        points.append(sweep.Point(settings=settings, config=config))
    sweep.sweep(run, points, base.workdir)
