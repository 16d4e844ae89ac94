"""The catalogue of problem codes: every code of the package, and what it means."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_NOT_READ: Final = {
    "missing": "does not exist, or is a link that leads nowhere",
    "permission": "may not be read by this process",
    "not_regular": "is a directory, a pipe, a socket or a device",
    "too_large": "is larger than it may be",
    "unreadable": "cannot be read for another reason of the system",
}

#: Every code, and what it means. A code never changes its meaning, and none is taken away within
#: a major version.
CODES: Final[Mapping[str, str]] = MappingProxyType(
    {
        # The registry
        "registry.missing": "the directory does not exist",
        "registry.not_a_directory": "a file is where the directory should be",
        "registry.permission": "the directory may not be read by this process",
        "registry.unreadable": "the directory cannot be read for another reason of the system",
        "registry.empty": "no file of a database is left in the directory; no database is removed",
        "registry.replaced": "the directory is on another device, and a database file or _defaults.yaml is missing; none is removed",
        "registry.moving": "the directory is replaced again and again while it is read",
        "registry.unlinked": "the directory was replaced or deleted where it is mounted from",
        "registry.no_such_database": "a requested name has no file",
        "registry.max_connections": "max_connections is smaller than what the pools keep open",
        "config.file_name": "a file name is not a valid name of a database",
        "config.declared_twice": "two files declare the same database",
        # The file
        **{f"config.{code}": f"a database file {what}" for code, what in _NOT_READ.items()},
        "config.moving": "the directory of the file is replaced again and again while it is read",
        "config.empty": "a file is empty",
        "config.encoding": "a file, or a value in a dictionary, is not UTF-8",
        "config.nul": "a file or a value contains a NUL character",
        "config.control_character": "a file contains a control character",
        "config.syntax": "a file is not valid YAML",
        "config.multi_document": "a file holds several YAML documents",
        "config.shape": "the top of a file is not a mapping",
        "config.tag": "a file has a YAML tag; tags are not allowed",
        "config.alias": "a YAML alias is used without its anchor, or inside of it",
        "config.merge": "a YAML merge key has no mapping",
        "config.too_deep": "a file is nested deeper than 20 levels",
        "config.too_many_nodes": "a file holds more than 2,000 values, with aliases expanded",
        # Keys and values
        "config.key": "a key is not text",
        "config.duplicate_key": "a key appears twice in one mapping",
        "config.unknown_key": "a key does not exist, or not in this section",
        "config.required": "a required key is missing or empty",
        "config.type": "a value has the wrong type",
        "config.range": "a number is too small or too large",
        "config.choice": "a value is not one of the choices of its key",
        "config.duration": "a duration is malformed or out of range",
        "config.url": "a URL is given where a name is expected",
        "config.malformed_url": "a url is neither a URI nor a connection string that libpq accepts",
        "config.white_space": "white space or a control character is around a host, port, user or dbname",
        "config.host": "a host has a port in it, or is no name and no address",
        "config.ports": "hosts and ports differ in number",
        "config.hosts": "hosts and addresses differ in number",
        "config.sizes": "min_size is larger than max_size",
        "config.setting_name": "a name is not a valid name of a session setting",
        "config.setting_twice": "a setting is given twice",
        "config.pgbouncer": "a setting does not work behind PgBouncer",
        "environment.unreadable": "a .env file cannot be read, or is not UTF-8 text",
        "environment.syntax": "a line of a .env file cannot be read as a variable",
        "environment.intrudes": "an environment variable would change the connection",
        # References and secret files
        "reference.malformed": "a reference is malformed",
        "reference.unset": "an environment variable is not set",
        "reference.sensitive_default": "a sensitive key has a default",
        "reference.encoding": "an environment variable is not UTF-8",
        "reference.unresolved": "a reference is used where references are not resolved",
        "reference.on_demand": "from_command or from_resolver is used for another value than user and password",
        "reference.no_resolver": "neither the registry nor an installed package has the resolver",
        "reference.no_file": "a rotation is rehearsed with new files, and the database has no from_file",
        **{f"secret.{code}": f"a secret file {what}" for code, what in _NOT_READ.items()},
        "secret.moving": "the directory of secret files is replaced again and again while it is read",
        "secret.empty": "a secret file is empty",
        "secret.nul": "a secret file contains a NUL character",
        "secret.json": "a secret file with a json_key is not a JSON object",
        "secret.json_key": "the JSON document has no such member, or it is neither text nor a number",
        "secret.bom": "a secret file starts with a byte order mark",
        "secret.encoding": "a secret file is not UTF-8",
        # Other files that connection settings name
        **{f"file.{code}": f"a TLS or password file {what}" for code, what in _NOT_READ.items()},
        "file.not_a_path": "the contents of a file are given instead of its path",
        "file.no_certificate": "a file that should hold certificates holds none",
        "file.shared": "a private key or password file is open to others, so libpq will not use it",
        "file.unlinked": "a database file, secret file or TLS file was replaced or deleted where it is mounted from",
        "file.untrusted": "other accounts can change a file, or a directory or link on the way to it",
        # The server, asked by a reload, `pgmonkey check --online` or `pgmonkey test`
        "probe.auth": "the server refused the login",
        "probe.hba": "no line of the server's pg_hba.conf accepts the connection",
        "probe.no_database": "the database does not exist, or the role may not connect to it",
        "probe.setting": "the server refused a session setting",
        "probe.configure": "a function given to `registry.configure` failed with the new connection",
        "probe.tls": "the TLS handshake failed",
        "probe.dns": "the name of the host could not be resolved",
        "probe.refused": "no server accepts connections at this address",
        "probe.timeout": "the server did not answer in time",
        "probe.credentials": "the command or resolver returned no credentials",
        "probe.too_many_connections": "the server, the database or the role has no connection left",
        "probe.other": "the connection failed for another reason",
        "probe.max_size": "max_size is larger than what the server, the role or the database allows",
        # Accepted, and probably not what was meant
        "warning.byte_order_mark": "a file starts with a byte order mark, which is ignored",
        "warning.variable": "a value is `$NAME`, without the braces of a reference",
        "warning.password": "a password starts or ends with characters that are probably not a part of it",
        "warning.cut": "PostgreSQL cuts the value",
        "warning.upgrade": "a value means something else than in pgmonkey 4.0 (`check --from-4.0`)",
    }
)
