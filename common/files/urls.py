"""URLs of storage as users give them: they are said again in hints, and Ray and the list of
processes show them to everybody, so nothing secret may be in one.

Free of third parties, so that the command line can use it before it imports anything.
"""

from common.files.paths import URL

S3 = (
    *("region", "scheme", "endpoint_override", "allow_bucket_creation", "allow_bucket_deletion"),
    *("allow_delayed_open", "tls_ca_file_path", "tls_verify_certificates", "smart_defaults"),
)
GCS = ("scheme", "endpoint_override", "retry_limit_seconds", "project_id")
AZURE = (
    *("blob_storage_authority", "dfs_storage_authority", "enable_tls", "credential_kind"),
    *("tenant_id", "client_id", "background_writes"),
)
HDFS = ("user", "replication", "buffer_size", "default_block_size")
OPTIONS = {
    **{"s3": S3, "gs": GCS, "gcs": GCS, "abfs": AZURE, "abfss": AZURE},
    **{"hdfs": HDFS, "viewfs": HDFS},
}
"""What Arrow takes behind the `?` of a URL and everybody may know, by scheme."""
WHERE_KEYS_BELONG = (
    "keys belong where the storage's library looks for them, as AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY in the environment"
)


def secret_in(text: str) -> str | None:
    """Why a word with URLs in it must not be said again, as the rest of a sentence; None where it
    may."""
    for found in URL.finditer(text):
        url = text[found.start() :]
        if _has_key(url):
            return (
                "a key or a password is in the URL, where everybody on this machine can read it "
                f"in the list of processes; leave it out: {WHERE_KEYS_BELONG}"
            )
        known = OPTIONS.get(_scheme(url))
        if known is not None and not {*_options(url)} <= {*known}:
            return (
                f"behind the ? of the URL is another option than {', '.join(known)}; leave it "
                f"out: {WHERE_KEYS_BELONG}"
            )
    return None


def shown(url: str) -> str:
    """What may be said of any URL: without keys, and without options where they are not known."""
    place, _, query = url.partition("?")
    scheme, _, rest = place.partition("://")
    host, slash, path = rest.partition("/")
    if _has_key(url):
        return f"{scheme}://" + (
            f"{host.rpartition('@')[2]}{slash}{path}" if "@" in host else "..."
        )
    known = OPTIONS.get(scheme.lower(), ())
    return f"{place}?{query}" if query and {*_options(url)} <= {*known} else place


def without_end(url: str) -> str:
    """Without slashes that end its path: one run has one URL."""
    place, mark, query = url.partition("?")
    return place.rstrip("/") + mark + query if place.strip("/").count("/") > 1 else url


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _options(url: str) -> list[str]:
    return [option.partition("=")[0] for option in url.partition("?")[2].split("&") if option]


def _has_key(url: str) -> bool:
    """A slash or a question mark in a key that is not escaped ends the host as well."""
    host = url.partition("://")[2].partition("?")[0].partition("/")[0]
    if _scheme(url) == "s3":
        return "@" in host or ":" in host
    user, _, machine = host.rpartition("@")
    port = machine.rpartition("]")[2].partition(":")[2]
    return ":" in user or not (port.isdecimal() or not port)
