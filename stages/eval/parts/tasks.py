"""Tasks as lm-evaluation-harness describes them, read from a folder of yaml files that somebody else may have written.

lm-eval would run a task's functions, fetch its data and load metrics that are programs. Here a task is plain values:
it may hold the fields and name the files that this module knows, and all of them lie in its folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.lib.frame.errors import UserError
from stages.lib.frame.params import names

FORMATS = ("csv", "json", "parquet", "text")  # of data files
LOADING = ("data_files", "field", "delimiter")  # in dataset_kwargs
FIELDS = (
    *("task", "task_alias", "tag", "metadata", "output_type", "repeats", "num_fewshot"),
    *("dataset_path", "dataset_name", "dataset_kwargs"),
    *("training_split", "validation_split", "test_split", "fewshot_split", "fewshot_config"),
    *("doc_to_text", "doc_to_target", "doc_to_choice", "description", "gen_prefix"),
    *("target_delimiter", "fewshot_delimiter", "generation_kwargs", "filter_list", "metric_list"),
    *("should_decontaminate", "doc_to_decontamination_query"),
)

Config = dict[str, Any]


def read(folder: Path) -> list[Config]:
    """Every task of the folder with the paths of its data; a file without `task` is one that others include."""
    if not folder.is_dir():
        raise UserError(f"eval.harness.tasks.source is '{folder}', which is no folder")
    found: dict[str, Path] = {}
    configs = []
    for file in sorted(folder.rglob("*.yaml")):
        config = load(file, folder)
        if "task" not in config and "group" not in config:
            continue
        check(config, file)
        if twice := found.get(config["task"]):
            raise UserError(f"{file}: task '{config['task']}' is in {twice} too")
        found[config["task"]] = file
        configs.append(config | {"dataset_kwargs": with_paths(config, file, folder)})
    return configs


def load(file: Path, folder: Path, above: tuple[Path, ...] = ()) -> Config:
    """The file with what it includes, itself last; YAML as lm-eval reads it, but for its tags."""
    import yaml

    try:
        config = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.constructor.ConstructorError as error:
        raise UserError(f"{file}: a task may hold values and nothing that runs: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(config, dict):
        raise UserError(f"{file} must be a mapping, not {config!r}")
    merged: Config = {}
    for name in leaves(config.pop("include", [])):
        included = inside(name, "include", file, folder)
        if included in (*above, file.resolve()):
            raise UserError(f"{file}: include '{name}' leads back to itself")
        merged |= load(included, folder, (*above, file.resolve()))
    return merged | config


def check(config: Config, file: Path) -> None:
    if unknown := [key for key in config if key not in FIELDS]:
        raise UserError(f"{file}: {names(unknown)} can't stand in a task here; there are: {names(FIELDS)}, include")
    if not isinstance(config["task"], str):
        raise UserError(f"{file}: task is {config['task']!r}; it must be a name")
    if config.get("dataset_path") not in FORMATS:
        wrong = config.get("dataset_path")
        raise UserError(f"{file}: dataset_path is {wrong!r}; the formats of local data are: {names(FORMATS)}")
    metrics = config.get("metric_list", [])
    if not isinstance(metrics, list) or not all(isinstance(entry, dict) and "metric" in entry for entry in metrics):
        raise UserError(f"{file}: metric_list is {metrics!r}; it must be a list of mappings with `metric`")
    if fetched := [entry["metric"] for entry in metrics if "hf_evaluate" in entry]:
        raise UserError(f"{file}: metric {names(fetched)} has hf_evaluate, whose metrics are programs from the hub")


def with_paths(config: Config, file: Path, folder: Path) -> Config:
    """The task's dataset_kwargs with the full paths of its data files, which it names as seen from itself."""
    given = config.get("dataset_kwargs")
    if not isinstance(given, dict) or "data_files" not in given or set(given) - set(LOADING):
        raise UserError(f"{file}: dataset_kwargs is {given!r}; it must name data_files, and may {names(LOADING[1:])}")

    def full(value: Any) -> Any:
        if isinstance(value, dict):
            return {split: full(part) for split, part in value.items()}
        paths = [str(inside(name, "data_files", file, folder)) for name in leaves(value)]
        return paths if isinstance(value, list) else paths[0]

    return given | {"data_files": full(given["data_files"])}


def leaves(value: Any) -> Iterator[Any]:
    """One or several."""
    yield from value if isinstance(value, list) else [value]


def inside(name: Any, key: str, file: Path, folder: Path) -> Path:
    """The full path of a file that a task names: one of its folder, also where a link leads."""
    path = (file.parent / str(name)).resolve()
    if not path.is_file() or folder.resolve() not in path.parents:
        raise UserError(f"{file}: {key} is {name!r}, which is no file in {folder}")
    return path
