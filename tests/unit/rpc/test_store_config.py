"""How services are told where the model store is."""

from pathlib import Path

import pytest

from andon.rpc.config import load_config
from services.canary.config import CanaryConfig
from services.reward.config import RewardConfig


def test_a_folder_or_a_bucket(tmp_path: Path) -> None:
    assert RewardConfig().store == "andon-home/store"
    assert RewardConfig(store=tmp_path).open_store().root == tmp_path
    config = RewardConfig(store="s3://models/a/b/", store_cache=tmp_path)
    assert config.store == "s3://models/a/b"
    assert CanaryConfig(store="s3://models").store == "s3://models"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--store", "s3:/models"], "store: 's3:/models' is no place"),
        (["--store", "https://models"], "write a folder or s3://bucket/prefix"),
        (["--store", ""], "store: the name of the store's folder is empty"),
        (["--store", "here", "--store-cache", "/cache"], "store_cache would be ignored"),
    ],
)
def test_what_is_no_store_is_said_at_the_start(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        load_config(RewardConfig, service="reward", argv=arguments, environment={})
    assert says in capsys.readouterr().err
