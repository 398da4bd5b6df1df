"""Writes docs/settings.md from the schema: `python -m kvrouter.settings_reference > docs/settings.md`.

A test compares the file with this output, so the page cannot drift from the code.
"""

import sys

from kvrouter.settings import section_classes
from kvrouter.settings_sources import Setting, all_settings

__all__ = ["reference"]

_HEAD = """\
# Settings

Written from the code by `python -m kvrouter.settings_reference`; a test keeps it true.

Sources, strongest first: flags, variables, the TOML file (`--config FILE` or `KVROUTER_CONFIG`), the defaults.
An unknown key, a misspelt `KVROUTER_` variable, a missing file or a value out of bounds ends `kvrouter serve` with
exit code 2 and one line that names it. In variables, lists are separated by commas or white space. Variables that
Kubernetes injects for a service named `kvrouter` (`KVROUTER_PORT=tcp://…`, `KVROUTER_SERVICE_HOST` …) are ignored.

What a change needs stands in a column of its own: what is `live` can be changed while the router runs, over the
store, the admin API or the file ([how](operations.md#changing-settings-while-it-runs)); the rest takes a `restart`.

Workers stand outside the sections: `--worker` (repeatable), `KVROUTER_WORKERS` (separated by white space) or
`[[workers]]` tables with the keys `url`, `id`, `events`, `replay`, `ranks`, `model`, `block_size`, `topic`, `api_key`,
and those of [placement](placement.md): `labels`, `taints`, `zone`, `role`, `engine`, `bootstrap_port`.

```toml
[server]
port = 8080

[routing]
policy = "kv"

[[workers]]
url = "http://10.0.0.11:8000"
events = "tcp://10.0.0.11:5557"
replay = "tcp://10.0.0.11:5657"
```
"""

_TABLE_HEAD = "| key | flag | variable | default | change | meaning |\n|---|---|---|---|---|---|\n"


def reference() -> str:
    """Return the whole page as Markdown."""
    parts = [_HEAD]
    settings = list(all_settings())
    for section, schema in section_classes().items():
        parts.append(f"\n## {section}\n\n{schema.__doc__}\n\n{_TABLE_HEAD}")
        parts.extend(_row(setting) for setting in settings if setting.section == section)
    return "".join(parts)


def _row(setting: Setting) -> str:
    variables = ", ".join(f"`{variable}`" for variable in setting.variables)
    default = (
        "none"
        if setting.default in ((), None)
        else f"`{str(setting.default).lower() if setting.kind is bool else setting.default}`"
    )
    change = "live" if setting.live else "restart"
    meaning = setting.help
    if setting.choices:
        meaning += ": " + ", ".join(f"`{choice}`" for choice in setting.choices)
        meaning += f", {setting.or_else}" if setting.or_else else ""
    if setting.at_least is not None:
        meaning += f" ({_number(setting.at_least)} to {_number(setting.at_most)})"
    return f"| `{setting.key}` | `{setting.flag}` | {variables} | {default} | {change} | {meaning} |\n"


def _number(value: float | None) -> str:
    return "no limit" if value is None else f"{value:,.10g}".replace(",", " ")


if __name__ == "__main__":
    sys.stdout.write(reference())
