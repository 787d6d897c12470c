"""The images, the composition and the gateway's file say what the house has agreed on."""

import subprocess
import sysconfig
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = Path(sysconfig.get_path("scripts"))
DOCKERFILES = sorted((ROOT / "docker").glob("**/*Dockerfile"))
COMPOSE = ROOT / "docker-compose.yml"
YAML_RULES = (
    "{extends: default, rules: {line-length: {max: 120}, document-start: disable, "
    "comments: {min-spaces-from-content: 1}}}"
)


@pytest.fixture(scope="module")
def services() -> dict[str, dict]:
    composed = yaml.safe_load(COMPOSE.read_text())
    return composed["services"]


def _run(*command: object) -> str:
    """Runs a checker of this environment; its complaints are the failure's message."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(dockerfile):
    assert _run(SCRIPTS / "hadolint", "--failure-threshold", "style", dockerfile) == ""


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.name)
def test_an_image_takes_its_base_as_an_argument_and_ends_as_a_numbered_user(dockerfile):
    lines = dockerfile.read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM ")]
    users = [line.split()[1] for line in lines if line.startswith("USER ")]
    assert set(bases) == {"${BASE_IMAGE}"}
    assert users[-1].split(":")[0].isdecimal()
    assert int(users[-1].split(":")[0]) > 0


def test_there_is_a_dockerfile_for_the_cpu():
    assert ROOT / "docker" / "cpu.Dockerfile" in DOCKERFILES


def test_the_composition_fits_the_compose_specification():
    _run(SCRIPTS / "check-jsonschema", "--builtin-schema", "vendor.compose-spec", COMPOSE)


def test_the_composition_is_tidy_yaml():
    assert _run(SCRIPTS / "yamllint", "--strict", "-d", YAML_RULES, COMPOSE) == ""


@pytest.mark.parametrize("name", ["service", "gateway"])
def test_a_container_is_hardened_and_bounded(services, name):
    container = services[name]
    assert container["read_only"] is True
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert {"tmpfs", "mem_limit", "pids_limit", "stop_grace_period", "healthcheck"} <= set(
        container
    )


def test_only_the_gateway_is_published_and_it_waits_for_the_service(services):
    assert [name for name, container in services.items() if "ports" in container] == ["gateway"]
    assert services["gateway"]["depends_on"] == {"service": {"condition": "service_healthy"}}


def test_the_files_that_the_composition_names_exist(services):
    build = services["service"]["build"]
    assert (ROOT / build["context"] / build["dockerfile"]).is_file()
    mounted = [volume.split(":")[0] for volume in services["gateway"]["volumes"]]
    assert mounted
    assert all((ROOT / source).is_file() for source in mounted)


def test_docker_waits_longer_for_the_service_than_the_service_drains(services):
    from service.settings import Settings

    drains = Settings.model_fields["drain_delay"].default
    drains += Settings.model_fields["drain_timeout"].default
    assert float(services["service"]["stop_grace_period"].removesuffix("s")) > drains


def test_the_gateway_has_the_limits_of_the_service():
    from service.settings import Settings

    directives = [line.split("#")[0].strip(" ;") for line in _gateway_lines()]
    limit = Settings.model_fields["max_body_bytes"].default // 2**20
    assert f"client_max_body_size {limit}m" in directives
    waits = [line.split()[1] for line in directives if line.startswith("proxy_read_timeout ")]
    longest = Settings.model_fields["request_timeout"].default
    assert all(float(wait.removesuffix("s")) > longest for wait in waits)


def _gateway_lines() -> list[str]:
    return (ROOT / "docker" / "gateway" / "nginx.conf").read_text().splitlines()


def test_the_build_context_holds_only_what_the_image_needs():
    rules = (ROOT / ".dockerignore").read_text().splitlines()
    rules = [rule for rule in rules if rule and not rule.startswith("#")]
    assert rules[0] == "*"
    admitted = [rule[1:] for rule in rules if rule.startswith("!")]
    missing = [name for name in admitted if not (ROOT / name).exists()]
    assert missing == []
