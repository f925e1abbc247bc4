"""What of a URL may be said again."""

import pytest

from common.files.urls import secret_in, shown, without_end


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("s3://AKIA:hidden@bucket/runs/one?region=x", "s3://bucket/runs/one"),
        ("s3://hidden@bucket/runs/one", "s3://bucket/runs/one"),
        ("s3://AKIA:hid/den@bucket/runs/one", "s3://..."),  # as keys look that nobody escaped
        ("s3://AKIA:hid?den@bucket/runs/one", "s3://..."),
        ("s3://AKIA:hidden", "s3://..."),
        ("s3://bucket/one?token=hidden&region=x", "s3://bucket/one"),
        ("s3://bucket/one?hidden", "s3://bucket/one"),
        ("abfs://box:hidden@me.blob.core.windows.net/one", "abfs://me.blob.core.windows.net/one"),
        ("abfs://box/one?sig=hidden", "abfs://box/one"),
        ("https://me:hidden@host:80/x", "https://host:80/x"),
    ],
)
def test_keys_and_options_that_may_be_keys_are_not_said(url, said):
    assert shown(url) == said
    for word in (url, f"--out={url}", f"teacher.weights={url}"):
        why = secret_in(word)
        assert why is not None
        assert "hid" not in why


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b:c/one?endpoint_override=127.0.0.1:5000&scheme=http",
        "gs://anonymous@bucket/one",
        "abfs://box@me.dfs.core.windows.net/one?enable_tls=false",
        "hdfs://me@host:8020/one?replication=2",
        "hdfs://[::1]:8020/one",
        "file:///mnt/my runs/one",
    ],
)
def test_what_names_a_place_is_said_whole(url):
    assert secret_in(url) is None
    assert shown(url) == url


def test_one_run_has_one_url():
    assert without_end("s3://bucket/one//?region=x") == "s3://bucket/one?region=x"
    assert without_end("s3://bucket/") == "s3://bucket"
    assert without_end("file:///") == "file:///"
