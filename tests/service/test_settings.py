"""Settings come from the environment and say in one line what is wrong."""

import pytest

from models.device import DEVICES, shipped_bundle
from service.settings import Settings, SettingsError, read_settings


def test_defaults_are_the_documented_ones():
    settings = Settings()
    assert (settings.host, settings.port, settings.device) == ("127.0.0.1", 8000, "auto")
    assert settings.max_text_chars == 1_000_000
    assert settings.max_body_bytes == 8 * 1024 * 1024
    assert settings.max_batch_items == 256


@pytest.mark.parametrize("device", DEVICES)
def test_the_bundle_follows_the_device_unless_it_is_named(device, tmp_path):
    assert read_settings(device=device).bundle == shipped_bundle(device)
    assert read_settings(device=device, bundle=tmp_path).bundle == tmp_path


def test_every_setting_is_described():
    assert all(field.description for field in Settings.model_fields.values())


def test_environment_and_flags(monkeypatch):
    monkeypatch.setenv("L2E_PORT", "9001")
    monkeypatch.setenv("L2E_MAX_BATCH_ITEMS", "3")
    settings = read_settings(port=9002, host=None)
    assert (settings.port, settings.max_batch_items, settings.host) == (9002, 3, "127.0.0.1")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PORT", "http"),
        ("PORT", "70000"),
        ("DEVICE", "tpu"),
        ("THREADS", "0"),
        ("REQUEST_TIMEOUT", "inf"),
        ("MAX_WAITING", "-1"),
    ],
)
def test_bad_setting_is_named_in_one_line(monkeypatch, name, value):
    monkeypatch.setenv(f"L2E_{name}", value)
    with pytest.raises(SettingsError, match=f"L2E_{name}") as caught:
        read_settings()
    assert "\n" not in str(caught.value)
    assert "BUNDLE" not in str(caught.value)  # whose default follows the device


def test_unknown_flag_is_refused():
    with pytest.raises(SettingsError, match="L2E_PROT"):
        read_settings(prot=1)
