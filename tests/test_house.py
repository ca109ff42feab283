"""What keeps the house readable: one direction of imports, no pickle, a frozen surface, short files."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdcli.config import leaves
from kdcli.report.figures import GENERAL
from kdcli.stages import STAGES
from kdcli.tasks import TASKS, figures

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "kdcli").rglob("*.py"))

# Rooms from the ground up; those of one rank do not import one another.
RANKS = (
    ("errors", "seeds"),
    ("reading",),
    ("console", "config", "artifacts", "hub", "losses", "words"),
    ("metrics", "sections"),
    ("data", "models", "report", "launch"),
    ("engine",),
    ("tasks",),
    ("synthesis", "methods"),
    ("compression",),
    ("runs",),
    ("studies",),
    ("stages", "classes"),
    ("commands",),
    ("cli",),
)
RANK = {room: rank for rank, rooms in enumerate(RANKS) for room in rooms}


def module_name(file: Path) -> str:
    """``kdcli.data.views`` for its file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def room(module: str) -> str:
    """The part of the house a module belongs to."""
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> Iterator[str]:
    """Full names of all that a file imports, wherever in it; ``from a import b`` gives a and a.b."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: relative import"
            assert node.module
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_file_has_a_place_in_the_house() -> None:
    rooms = {room(module_name(f)) for f in FILES} - {"", "__main__"}
    assert rooms <= set(RANK)
    assert len(FILES) > 30


def test_imports_point_one_way() -> None:
    wrong = []
    for file in FILES:
        own = room(module_name(file))
        if own in ("", "__main__"):
            continue
        for name in imports(file):
            other = room(name) if name.startswith("kdcli.") else ""
            if other in RANK and other != own and RANK[other] >= RANK[own]:
                wrong.append(f"{file.relative_to(ROOT)} imports {name}")
    assert wrong == []


def test_stages_never_import_one_another() -> None:
    modules = {module_name(f) for f in FILES if room(module_name(f)) == "stages"} - {"kdcli.stages"}
    assert {module for module, _ in STAGES.values()} == modules
    wrong = []
    for file in FILES:
        if room(module_name(file)) == "stages":
            found = modules.intersection(imports(file)) - {module_name(file)}
            wrong += [f"{file.name} imports {name}" for name in found]
    assert wrong == []


def test_only_the_engine_and_the_launcher_know_accelerate() -> None:
    users = {room(module_name(f)) for f in FILES if any(n.split(".")[0] == "accelerate" for n in imports(f))}
    assert "engine" in users
    assert users <= {"engine", "launch"}


def test_losses_import_torch_only() -> None:
    allowed = {"torch", "__future__", "math", "collections", "typing"}
    for file in FILES:
        if room(module_name(file)) == "losses":
            found = {n for n in imports(file) if n.split(".")[0] not in allowed}
            assert {n for n in found if not n.startswith("kdcli.losses")} == set(), file


@pytest.mark.parametrize(
    ("pattern", "allowed"),
    [
        (r"torch\.save\b", set()),
        (r"torch\.load\b", {"kdcli/models/legacy.py"}),
        (
            r"\b(import|from) (c?[Pp]ickle|dill|joblib|cloudpickle|shelve|marshal)\b",
            {"kdcli/models/legacy.py"},
        ),
        (r"allow_pickle\s*=\s*True", set()),
        (r"weights_only\s*=\s*False", set()),
        (r"\.(load|save)_state\(", set()),
        (r"trust_remote_code\s*=\s*True", set()),
        (r"safe_serialization\s*=\s*False", set()),
        (r"\byaml\.(unsafe_load|full_load|Loader|UnsafeLoader|FullLoader)\b", set()),
        (r"\b(eval|exec)\(", set()),
    ],
)
def test_nothing_reads_or_writes_code(pattern: str, allowed: set[str]) -> None:
    assert re.search(pattern, SAMPLES[pattern]), "the pattern itself"
    found = set()
    for file in FILES:
        text = re.sub(r"\.eval\(", ".EVAL(", file.read_text())  # a network's evaluation mode
        if re.search(pattern, text):
            found.add(file.relative_to(ROOT).as_posix())
    assert found <= allowed


SAMPLES = {
    r"torch\.save\b": "torch.save(x)",
    r"torch\.load\b": "torch.load(x)",
    r"\b(import|from) (c?[Pp]ickle|dill|joblib|cloudpickle|shelve|marshal)\b": "import pickle",
    r"allow_pickle\s*=\s*True": "np.load(x, allow_pickle=True)",
    r"weights_only\s*=\s*False": "weights_only=False",
    r"\.(load|save)_state\(": "accelerator.load_state(x)",
    r"trust_remote_code\s*=\s*True": "trust_remote_code=True",
    r"safe_serialization\s*=\s*False": "safe_serialization=False",
    r"\byaml\.(unsafe_load|full_load|Loader|UnsafeLoader|FullLoader)\b": "yaml.full_load(x)",
    r"\b(eval|exec)\(": "x = eval(text)",
}


def test_metrics_are_named_where_they_belong() -> None:
    """A task's metrics are literals in its folder and in ``metrics`` only: all others take them as data."""
    own = {figure.name for figure in figures()} - {figure.name for figure in GENERAL}
    wrong = []
    for file in (f for f in FILES if room(module_name(f)) not in ("tasks", "metrics")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and node.value in own:
                wrong.append(f"{file.relative_to(ROOT)}:{node.lineno} says {node.value}")
    assert wrong == []
    assert {"top1", "miou"} <= own


def test_the_one_torch_load_reads_weights_only() -> None:
    tree = ast.parse((ROOT / "kdcli" / "models" / "legacy.py").read_text())
    calls = [
        {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
    ]
    assert calls
    assert all(call.get("weights_only") == "True" for call in calls)


# Attributes of timm's networks: known where models are made, and nowhere else.
TIMM = {
    *("forward_features", "forward_head", "forward_intermediates", "feature_info", "num_features"),
    *("get_classifier", "reset_classifier", "no_weight_decay", "group_matcher", "set_input_size"),
    *("pretrained_cfg", "default_cfg", "patch_embed", "blocks", "cls_token", "num_prefix_tokens"),
    "output_fmt",
}
MODELS = {
    f"kdcli/models/{name}.py"
    for name in (
        *("timm", "taps", "build", "creation", "checkpoints", "checks", "surgery", "branches"),
        *("masked", "autoencoder", "distilled", "headed"),
    )
}


def test_only_models_know_what_is_inside_a_network_of_timm() -> None:
    def named(tree: ast.AST) -> set[str]:
        """Names read as attributes, or asked for by ``getattr`` and its like."""
        attributes = {n.attr for n in ast.walk(tree) if isinstance(n, ast.Attribute)}
        return attributes | {
            n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and n.value in TIMM
        }

    users, holders = {}, set()
    for file in FILES:
        path, found = file.relative_to(ROOT).as_posix(), named(ast.parse(file.read_text()))
        if found & TIMM:
            users[path] = found & TIMM
        if "body" in found and not path.startswith("kdcli/models/"):
            holders.add(path)
    assert "kdcli/models/timm.py" in users
    wrong = {p: n for p, n in users.items() if p not in MODELS and not p.startswith("kdcli/models/heads/")}
    assert (wrong, holders) == ({}, set())


# -- the surface ---------------------------------------------------------------------------------------------

RUN = "--out --overwrite --cache --seed -n,--num-processes --device --precision --workers --threads --track"
DATA = "--data --task --labels-per-class --class-balance --on-bad-image"
OPTIONS = {
    "probe": f"{RUN} {DATA} --views --teacher --weights --image-size --head --finetune --features --protocol "
    "--statistics --texts --epochs --batch-size",
    "synthesize": f"{RUN} --data --on-bad-image --weights --teacher --student --merge --mixer --sources "
    "--strengths --pad-tokens --guidance --steps --scheduler --resolution --per-image --count --shard "
    "--batch-size",
    "distill": f"{RUN} {DATA} --views --extra --extra-ratio --teacher --via --student "
    "--weights "
    "--from-scratch --image-size --method --recipe --add --alpha --temperature --opt --lr --weight-decay "
    "--epochs --max-steps --batch-size --auto-batch --search --study",
    "compress": f"{RUN} {DATA} --views --teacher --student --weights --image-size --method "
    "--target --export --quantize --recipe --opt --lr --weight-decay --epochs --max-steps --batch-size",
    "eval": f"{RUN} {DATA} --teacher --split --require --cost --batch-size --texts",
}
OPTIMISER = (
    "opt lr weight_decay decay_all momentum betas layer_decay schedule warmup warmup_from hold min_lr "
    "milestones drops decay_epochs decay_rate epochs stop_epoch max_steps batch_size accumulate auto_batch "
    "clip_grad ema label_smoothing mixup cutmix"
)
RUN_KEYS = (
    "out overwrite cache seed processes device precision workers worker_timeout deterministic threads track"
)
SOURCE_KEYS = "source train image_column on_bad_image max_bad_fraction max_pixels"
DATA_KEYS = (
    f"{SOURCE_KEYS} validation test validation_fraction duplicates split_seed group_by open_classes shots "
    "label_column label_columns task mask_column box_column box_format class_names camera_column "
    "per_identity void captions class_order labels_per_class labelled_fraction class_balance"
)
TEXT_KEYS = "file descriptions templates described tower scale"
VIEW_KEYS = (
    "count size scale ratio fit zoom_out iou_crop hflip vflip color_jitter auto_augment erase store "
    "interpolation"
)
KEYS = {
    "probe": {
        "": f"{RUN_KEYS} teacher weights image_size head finetune features protocol",
        "data": DATA_KEYS,
        "views": VIEW_KEYS,
        "optim": OPTIMISER,
        "grid": "lr weight_decay l2 solver epochs batch_size momentum patience",
        "texts": TEXT_KEYS,
        "statistics": "record taps min_count max_gigabytes",
    },
    "synthesize": {
        "": f"{RUN_KEYS} weights teacher student merge mixer sources alpha resolution per_image count shard "
        "batch_size commit_images",
        "data": f"{SOURCE_KEYS} min_side",
        "sampling": "strengths pad_tokens guidance steps scheduler",
        "inversion": "batch steps half_steps lr betas schedule warmup start jitter flip clip label "
        "statistics first_statistics tv_l2 tv_l1 l2 l2_over competition latent one_hot entropy activation "
        "base reduction min_count small_classes temperature",
    },
    "distill": {
        "": f"{RUN_KEYS} teacher teacher_mean teacher_temperature teacher_view teacher_errors via recipe "
        "terms student weights from_scratch image_size head drop_path evaluate_every evaluate_steps "
        "save_steps save_minutes log_every",
        "data": f"extra extra_ratio {DATA_KEYS}",
        "views": VIEW_KEYS,
        "method": "name alpha temperature",
        "texts": TEXT_KEYS,
        "optim": OPTIMISER,
        "search": "trials study space halving rungs",
        "pilot": "share most seeds ways",
    },
    "compress": {
        "": f"{RUN_KEYS} teacher teacher_mean teacher_temperature teacher_view teacher_errors recipe target "
        "threshold export quantize inside student weights from_scratch image_size head drop_path "
        "evaluate_every evaluate_steps save_steps save_minutes log_every",
        "data": f"extra extra_ratio {DATA_KEYS}",
        "views": VIEW_KEYS,
        "method": "name",
        "optim": OPTIMISER,
    },
    "eval": {
        "": f"{RUN_KEYS} models teacher split require cost batch_size window stride rerank repeats "
        "exit_slack effects_mix occlusion occlusion_grid cka",
        "data": DATA_KEYS,
        "texts": TEXT_KEYS,
    },
}


@pytest.mark.parametrize("name", STAGES)
def test_the_options_of_a_stage_are_frozen(name: str) -> None:
    """A new option needs a line here: the surface cannot grow unnoticed."""
    config = importlib.import_module(STAGES[name][0]).Config
    assert {e["flag"] for _, _, e in leaves(config) if e["flag"]} == set(OPTIONS[name].split())


@pytest.mark.parametrize("name", STAGES)
def test_the_keys_of_a_stage_are_frozen(name: str) -> None:
    config = importlib.import_module(STAGES[name][0]).Config
    known = {f"{group}.{key}".lstrip(".") for group, keys in KEYS[name].items() for key in keys.split()}
    assert {dotted for dotted, _, _ in leaves(config)} == known


@pytest.mark.parametrize("name", STAGES)
def test_every_field_says_what_it_is(name: str) -> None:
    config = importlib.import_module(STAGES[name][0]).Config
    silent = [dotted for dotted, field, _ in leaves(config) if len(field.description or "") < 5]
    assert silent == []


# -- tasks ---------------------------------------------------------------------------------------------------

TASK_NAMES = {*TASKS, "multi-label", "detection"}


def branches_by_task(tree: ast.Module, heads: set[str]) -> Iterator[ast.AST]:
    """Where a task's name is compared, matched, looked up or a key, or the class of a head is asked for."""

    def named(*nodes: ast.AST | None) -> bool:
        constants = [n for node in nodes if node for n in ast.walk(node) if isinstance(n, ast.Constant)]
        return not TASK_NAMES.isdisjoint(n.value for n in constants if isinstance(n.value, str))

    for node in ast.walk(tree):
        match node:
            case ast.Compare(left=left, comparators=others):
                found = named(left, *others)
            case ast.Dict(keys=keys):
                found = named(*keys)
            case ast.Subscript(slice=key) | ast.MatchValue(value=key):
                found = named(key)
            case ast.Call(func=ast.Attribute(attr="get" | "startswith" | "endswith"), args=arguments):
                found = named(*arguments)
            case ast.Call(func=ast.Name(id="isinstance" | "issubclass"), args=[_, kind]):
                names = {n.id for n in ast.walk(kind) if isinstance(n, ast.Name)}
                names |= {n.attr for n in ast.walk(kind) if isinstance(n, ast.Attribute)}
                found = not heads.isdisjoint(names)
            case _:
                continue
        if found:
            yield node


def test_only_tasks_ask_which_task_it_is() -> None:
    """A new task is one folder: nothing outside ``tasks`` goes by a task's name or by the class of a head."""
    rooms = {file: file.relative_to(ROOT).as_posix() for file in FILES}
    heads = {
        node.name
        for file, name in rooms.items()
        if name.startswith("kdcli/models/heads/")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert {"Head", "FeatureHead", "DenseHead", "DecodeHead"} <= heads
    found = {
        name: len([*branches_by_task(ast.parse(file.read_text()), heads)])
        for file, name in rooms.items()
        if not name.startswith(("kdcli/tasks/", "kdcli/models/heads/"))
    }
    assert {name: count for name, count in found.items() if count} == {}


@pytest.mark.parametrize(
    "code",
    [
        *("if task.name == 'segmentation': pass", "if 'classification' != name: pass"),
        *("if task in ('segmentation', 'other'): pass", "table = {'classification': 1}"),
        *("table['multi-label']", "table.get('segmentation')", "isinstance(x, (A, heads.DenseHead))"),
        "match name:\n    case 'segmentation' | 'detection': pass",
    ],
)
def test_a_branch_by_task_is_found(code: str) -> None:
    assert [*branches_by_task(ast.parse(code), {"DenseHead"})]


# -- files ---------------------------------------------------------------------------------------------------


def public(tree: ast.Module) -> Iterator[ast.AST]:
    """Public functions, classes and methods, and the module itself."""
    yield tree
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            for inner in node.body if isinstance(node, ast.ClassDef) else []:
                if isinstance(inner, ast.FunctionDef) and not inner.name.startswith("_"):
                    yield inner


def test_what_is_public_has_a_docstring() -> None:
    missing = [
        f"{file.relative_to(ROOT)}: {getattr(node, 'name', 'module')}"
        for file in FILES
        for node in public(ast.parse(file.read_text()))
        if not ast.get_docstring(node)  # type: ignore[arg-type]
    ]
    assert missing == []


def test_files_stay_readable() -> None:
    lines = {file.relative_to(ROOT).as_posix(): len(file.read_text().splitlines()) for file in FILES}
    assert {name: count for name, count in lines.items() if count > 450} == {}


def test_nobody_prints() -> None:
    """All news goes through the console; the launcher has its own door, to stderr, for it has no console."""
    wrong = []
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                wrong.append(file.relative_to(ROOT).as_posix())
    template = "kdcli/compression/templates/predict.py"  # runs without kdcli
    assert set(wrong) <= {"kdcli/cli.py", "kdcli/console.py", "kdcli/launch.py", template}


def test_no_work_is_left_in_notes() -> None:
    notes = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [f.name for f in FILES if notes.search(f.read_text())] == []


@pytest.mark.parametrize(
    "module",
    [
        *("kdcli.methods", "kdcli.words", "kdcli.stages", "kdcli.cli", "kdcli.artifacts.manifest"),
        *("kdcli.synthesis", "kdcli.synthesis.sampling", "kdcli.methods.datafree", "kdcli.tasks"),
        *(entry.reader.partition(":")[0] for entry in TASKS.values()),
    ],
)
def test_tables_and_words_import_without_torch(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], cwd=ROOT, text=True, capture_output=True, timeout=60)
    assert found.returncode == 0, found.stderr


def test_every_method_and_mixer_of_the_tables_exists() -> None:
    from kdcli.methods import METHODS
    from kdcli.synthesis import MIXERS

    targets = [(name, entry.target) for name, entry in (*METHODS.items(), *MIXERS.items())]
    targets += [(name, part) for name, entry in METHODS.items() for part in entry.parts]
    for name, target in targets:
        module, _, function = target.partition(":")
        tree = ast.parse((ROOT / Path(*module.split("."))).with_suffix(".py").read_text())
        assert function in {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}, name


def test_every_class_of_the_table_of_tasks_exists() -> None:
    for name, entry in TASKS.items():
        kinds = []
        for target in (entry.target, entry.reader):
            module, _, kind = target.partition(":")
            kinds.append(getattr(importlib.import_module(module), kind))
        assert kinds[1].task == name
        assert figures(name)
        assert entry.provides <= {"picture", "class", "pixel", "features", "object", "text"}
        assert set(entry.options) <= set(DATA_KEYS.split())
    assert kinds[1].claims(None, None)  # the last one takes what is left
