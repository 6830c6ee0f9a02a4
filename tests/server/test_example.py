"""The shipped arrangement: what the other tests cannot try without containers."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

EXAMPLE = Path(__file__).parents[2] / "examples" / "server"


@pytest.fixture
def services():
    return yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["services"]


def test_the_database_cannot_be_reached_past_the_proxy(services):
    """Only the proxy has a port; the database's network leads nowhere."""
    networks = yaml.safe_load((EXAMPLE / "compose.yaml").read_text())["networks"]
    assert "ports" not in services["chroma"]
    assert services["chroma"]["networks"] == ["inside"]
    assert networks["inside"] == {"internal": True}
    assert services["proxy"]["ports"]


def test_nothing_starts_without_a_token(services):
    """An empty token would let everybody in, so compose refuses to start without one."""
    assert services["proxy"]["environment"]["CHROMA_AUTH_TOKEN"].startswith("${CHROMA_AUTH_TOKEN:?")


def test_the_data_outlives_the_containers(services):
    """The database's directory is a named volume, and both services are watched."""
    assert services["chroma"]["volumes"] == ["chroma-data:/data"]
    assert all("healthcheck" in service for service in services.values())


def test_the_template_gets_all_its_values(services):
    """Whatever the template wants is in the proxy's environment, and the template is where nginx's image looks."""
    template = EXAMPLE / "nginx" / "chroma.conf.template"
    wanted = {part.partition("}")[0] for part in template.read_text().split("${CHROMA_")[1:]}
    given = {name.removeprefix("CHROMA_") for name in services["proxy"]["environment"]}
    assert wanted == given
    assert f"./nginx/{template.name}:/etc/nginx/templates/{template.name}:ro" in services["proxy"]["volumes"]


@pytest.mark.parametrize("name", ["chroma.internal", "10.0.0.7", "::1"])
def test_certificates_for_names_and_addresses(tmp_path, name):
    """The script makes a certificate that is valid for the name or address it was asked for, with a key nobody else reads."""
    folder = tmp_path / "certificates"
    subprocess.run(
        ["sh", str(EXAMPLE / "make-certificates.sh"), name, str(folder)], check=True, capture_output=True
    )
    kind = ["-checkhost", name] if "." in name and name[0].isalpha() else ["-checkip", name]
    shown = subprocess.run(
        ["openssl", "x509", "-in", str(folder / "server.pem"), "-noout", *kind],
        check=True,
        capture_output=True,
        text=True,
    )
    assert "does match" in shown.stdout
    subprocess.run(
        ["openssl", "verify", "-CAfile", str(folder / "ca.pem"), str(folder / "server.pem")],
        check=True,
        capture_output=True,
    )
    assert (folder / "server.key").stat().st_mode & 0o077 == 0
