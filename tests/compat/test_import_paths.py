"""The import paths of existing petals, and that nothing but names stands behind them."""

from __future__ import annotations

import ast
from importlib import import_module
from pathlib import Path

import pytest

from support.procs import ROOT

FOLDER = ROOT / "src" / "petal_app_manager"
NAMES = {
    "petal_app_manager": ["__version__", "Config"],
    "petal_app_manager.api.bucket_api": ["router", "_set_logger"],
    "petal_app_manager.config": ["Config"],
    "petal_app_manager.models": ["MQTTMessage"],
    "petal_app_manager.models.mavlink": [
        "RebootAutopilotResponse",
        "RebootStatusCode",
        "FormatStorageResponse",
        "FormatStorageStatusCode",
    ],
    "petal_app_manager.organization_manager": ["OrganizationManager", "get_organization_manager"],
    "petal_app_manager.plugins.base": ["Petal"],
    "petal_app_manager.plugins.decorators": ["http_action", "websocket_action", "mqtt_action"],
    "petal_app_manager.proxies": [
        "RedisProxy",
        "MQTTProxy",
        "MavLinkExternalProxy",
        "MavLinkFTPProxy",
        "LocalDBProxy",
        "CloudDBProxy",
        "S3BucketProxy",
    ],
    "petal_app_manager.proxies.base": ["BaseProxy"],
    "petal_app_manager.proxies.bucket": ["S3BucketProxy"],
    "petal_app_manager.proxies.cloud": ["CloudDBProxy"],
    "petal_app_manager.proxies.external": ["MavLinkExternalProxy", "MavLinkFTPProxy", "ExternalProxy"],
    "petal_app_manager.proxies.localdb": ["LocalDBProxy"],
    "petal_app_manager.proxies.mqtt": ["MQTTProxy"],
    "petal_app_manager.proxies.redis": ["RedisProxy", "MessagePriority", "MessageStatus", "CommunicationMessage"],
}


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in NAMES.items() for name in names])
def test_the_names_are_where_petals_look_for_them(module: str, name: str) -> None:
    """S-008, S-012, S-013, S-034, S-109, S-233, S-274, S-275, S-276."""
    assert getattr(import_module(module), name) is not None


@pytest.mark.parametrize("file", sorted(FOLDER.rglob("*.py")), ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_nothing_but_names_stands_there(file: Path) -> None:
    """Docstrings and imports: the code is in `petalbus`."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        assert isinstance(node, ast.ImportFrom | ast.Expr), f"{file}:{node.lineno}"


def test_the_configuration_that_petals_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-082: by the names and with the defaults of existing installations, as it is when it is read."""
    config = import_module("petal_app_manager").Config
    monkeypatch.delenv("PETAL_TS_CLIENT_PORT", raising=False)
    assert (config.TS_CLIENT_PORT, config.RebootConfig.ACK_TIMEOUT) == (3004, 3.0)
    assert config.PetalUserJourneyCoordinatorConfig.DEBUG_SQUARE_TEST is False
    monkeypatch.setenv("PETAL_TS_CLIENT_PORT", "3005")
    monkeypatch.setenv("PETAL_DEBUG_SQUARE_TEST", "true")
    monkeypatch.setenv("PETAL_REBOOT_HB_DROP_GAP", "2.5")
    assert config.TS_CLIENT_PORT == 3005
    assert config.PetalUserJourneyCoordinatorConfig.DEBUG_SQUARE_TEST is True
    assert config.RebootConfig.HEARTBEAT_DROP_GAP_S == 2.5
    monkeypatch.setenv("PETAL_TS_CLIENT_PORT", "many")
    with pytest.raises(ValueError, match="PETAL_TS_CLIENT_PORT"):
        _ = config.TS_CLIENT_PORT
    with pytest.raises(AttributeError, match="NO_SUCH"):
        _ = config.NO_SUCH
