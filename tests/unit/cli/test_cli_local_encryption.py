"""A supervisor and its services are all encrypted, or none."""

import json
from collections.abc import Mapping
from pathlib import Path

import pytest

from andon.cli.local_encryption import check_encryption
from andon.errors import FailedPreconditionError

CA = {"ANDON_TLS_CA": "/ca"}


@pytest.fixture
def policy_file(tmp_path: Path) -> Mapping[str, Path]:
    path = tmp_path / "policy.json"
    path.write_text(json.dumps({"tls_certificate": "/c", "tls_key": "/k"}))
    return {"policy": path}


def test_what_fits_is_no_error(policy_file):
    check_encryption(["policy", "reward"], config_files={}, environment={})
    both = {**CA, "ANDON_REWARD_TLS_CERTIFICATE": "/c"}
    check_encryption(["policy", "reward"], config_files=policy_file, environment=both)


def test_a_plain_service_among_encrypting_callers_is_named(policy_file):
    with pytest.raises(FailedPreconditionError, match="but reward here speaks plain text") as raised:
        check_encryption(["policy", "reward"], config_files=policy_file, environment=CA)
    assert raised.value.reason == "ENCRYPTION_DIFFERS"


def test_an_encrypting_service_among_plain_callers_is_named(policy_file):
    with pytest.raises(FailedPreconditionError, match="policy has a tls_certificate"):
        check_encryption(["policy", "reward"], config_files=policy_file, environment={})
