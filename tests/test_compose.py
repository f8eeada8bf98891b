"""The settings that matter in compose.yaml; `make lint` holds it against the official schema."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
COMPOSE = ROOT / "compose.yaml"


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return loaded


@pytest.fixture(scope="module")
def services(compose: dict[str, Any]) -> Any:
    return compose["services"]


def test_old_compose_and_scaling_can_use_it(
    compose: dict[str, Any], services: dict[str, Any]
) -> None:
    assert compose.keys() == {"services", "volumes"}
    assert services.keys() == {"redis", "worker", "producer"}
    for service in services.values():
        assert "container_name" not in service
        assert "ports" not in service


def test_redis_keeps_its_data(compose: dict[str, Any], services: dict[str, Any]) -> None:
    redis = services["redis"]
    assert redis["image"] == "redis:7-alpine"
    assert "--appendonly yes" in redis["command"]
    assert redis["volumes"] == ["redis-data:/data"]
    assert "redis-data" in compose["volumes"]
    assert "redis-cli ping" in redis["healthcheck"]["test"][1]


def test_each_waits_for_what_it_needs(services: dict[str, Any]) -> None:
    healthy = {"condition": "service_healthy"}
    assert services["worker"]["depends_on"] == {"redis": healthy}
    assert services["producer"]["depends_on"] == {"redis": healthy, "worker": healthy}
    for name in ("redis", "worker"):
        assert services[name]["healthcheck"]["test"]
    for name in ("worker", "producer"):
        assert services[name]["environment"] == {
            "FARPOOL_URL": "redis://redis:6379/0",
            "FARPOOL_SECRET": "${FARPOOL_SECRET:-}",
        }


def test_workers_come_back_and_the_producer_does_not(services: dict[str, Any]) -> None:
    assert services["worker"]["restart"] == services["redis"]["restart"] == "unless-stopped"
    assert services["producer"]["restart"] == "no"


def test_nothing_runs_as_root(services: dict[str, Any]) -> None:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    assert lines.index("USER farpool") < lines.index('ENTRYPOINT ["farpool"]')
    assert not any("user" in service for service in services.values())
