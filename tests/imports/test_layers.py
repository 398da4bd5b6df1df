"""Imports point downwards only: the folder tree is the architecture, checked file by file."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
ROOTS = {
    "kvrouter": CHECKOUT / "kvrouter",
    "kvrouter_publishers": CHECKOUT / "publishers" / "kvrouter_publishers",
    "kvrouter_subscribers": CHECKOUT / "subscribers" / "kvrouter_subscribers",
}

# The longest matching prefix names a module's layer; a layer may import itself and the layers listed for it.
FOUNDATION = {"kvrouter", "kvrouter.errors", "kvrouter.events"}
CORE = "kvrouter.native_core"
PURE = FOUNDATION | {CORE, "kvrouter.blocks", "kvrouter.index", "kvrouter.ingest", "kvrouter.routing"}
MAY_IMPORT: dict[str, set[str]] = {
    "kvrouter.errors": set(),
    "kvrouter.events": {"kvrouter.errors"},
    CORE: {"kvrouter", "kvrouter._native"},
    "kvrouter.nats_client": {"kvrouter.errors"},
    "kvrouter.redis_client": {"kvrouter.errors"},
    "kvrouter.blocks": {"kvrouter.errors", CORE},
    "kvrouter.settings_field": set(),
    "kvrouter.settings_gateway": {"kvrouter.settings_field"},
    "kvrouter.settings": {"kvrouter.errors", "kvrouter.settings_field", "kvrouter.settings_gateway"},
    "kvrouter.settings_sources": {"kvrouter.errors", "kvrouter.settings"},
    "kvrouter.settings_reference": {"kvrouter.errors", "kvrouter.settings", "kvrouter.settings_sources"},
    "kvrouter.index": {"kvrouter.errors", "kvrouter.events", "kvrouter.blocks", CORE},
    "kvrouter.ingest": {"kvrouter.errors", "kvrouter.events", "kvrouter.blocks", "kvrouter.index", CORE},
    "kvrouter.routing": FOUNDATION - {"kvrouter"} | {"kvrouter.blocks", "kvrouter.index", "kvrouter.ingest", CORE},
    "kvrouter.store": {"kvrouter.errors", "kvrouter.redis_client"},
    "kvrouter.transport": {
        "kvrouter.discovery",
        "kvrouter.errors",
        "kvrouter.events",
        "kvrouter.nats_client",
        "kvrouter.store",
    },
    "kvrouter.discovery": {"kvrouter.errors", "kvrouter.store"},
    "kvrouter.gateway": {
        "kvrouter",
        "kvrouter.errors",
        "kvrouter.events",
        "kvrouter.nats_client",
        "kvrouter.settings",
        "kvrouter.settings_gateway",
        "kvrouter.settings_sources",
        "kvrouter.store",
        "kvrouter.service",
        "kvrouter.transport",
    },
    "kvrouter.relay": PURE | {"kvrouter_publishers"},
    "kvrouter.events_cli": {
        "kvrouter.asking",
        "kvrouter.errors",
        "kvrouter.events",
        "kvrouter.relay",
        "kvrouter_subscribers",
    },
    "kvrouter.reporting": {"kvrouter", "kvrouter.errors", "kvrouter.events", "kvrouter.service", "kvrouter.transport"},
    "kvrouter_publishers": {"kvrouter.errors", "kvrouter.events", "kvrouter.redis_client"},
    "kvrouter_subscribers": {"kvrouter.errors", "kvrouter.events", "kvrouter.redis_client", CORE},
    "kvrouter.service": PURE
    | {"kvrouter.settings", "kvrouter.settings_sources", "kvrouter.store", "kvrouter_subscribers"}
    | {"kvrouter.discovery", "kvrouter.transport"}
    | {"kvrouter.service.proxy", "kvrouter.service.prompts"},
    "kvrouter.service.proxy": {"kvrouter", "kvrouter.errors", CORE},
    "kvrouter.service.prompts": {"kvrouter.errors", "kvrouter.blocks", CORE},
}
# The pure core has no sockets, clocks, logging or settings.
IMPURE = {"asyncio", "http", "logging", "select", "socket", "ssl", "threading", "time", "zmq"}
PURE_LAYERS = (
    "kvrouter.errors",
    "kvrouter.events",
    "kvrouter.blocks",
    "kvrouter.index",
    "kvrouter.ingest",
    "kvrouter.routing",
)


def modules() -> Iterator[tuple[str, Path]]:
    """Every module of the three source roots, by dotted name."""
    for name, root in ROOTS.items():
        for path in sorted(root.rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            dotted = ".".join((name, *parts))
            yield dotted.removesuffix(".__init__"), path


def imports(module: str, path: Path) -> Iterator[str]:
    """Every module named by an import statement of `module`, at whatever depth it stands."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            home = ".".join(package.split(".")[: len(package.split(".")) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (home, node.module) if part)
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def layer_of(module: str) -> str:
    """The layer of `module`: the longest listed prefix, else the package or first-level name."""
    matches = [layer for layer in MAY_IMPORT if module == layer or module.startswith(f"{layer}.")]
    return max(matches, key=len) if matches else ".".join(module.split(".")[:2])


def upward_imports(module: str, path: Path) -> list[str]:
    """The imports of `module` that its layer forbids."""
    layer = layer_of(module)
    allowed = MAY_IMPORT.get(layer)
    if allowed is None:
        return []
    wrong = []
    for name in imports(module, path):
        if name.partition(".")[0] not in ROOTS:
            continue
        target = layer_of(name)
        is_version = target == "kvrouter.__version__" and "kvrouter" in allowed
        if target != layer and target not in allowed and not is_version:
            wrong.append(name)
    return wrong


@pytest.mark.parametrize(("module", "path"), [pytest.param(m, p, id=m) for m, p in modules()])
def test_a_module_imports_downwards_only(module: str, path: Path) -> None:
    """A-505: a lower layer that knows a higher one could not be used, read or tested without it."""
    assert upward_imports(module, path) == []


@pytest.mark.parametrize(
    ("module", "path"), [pytest.param(m, p, id=m) for m, p in modules() if layer_of(m) in PURE_LAYERS]
)
def test_the_pure_core_has_no_clock_and_no_socket(module: str, path: Path) -> None:
    """Time is an argument there, so that every behaviour can be replayed."""
    tops = {name.partition(".")[0] for name in imports(module, path)}

    assert tops & IMPURE == set()


def test_an_upward_import_would_be_noticed(tmp_path: Path) -> None:
    """The checker itself sees imports inside functions and under type-checking guards."""
    module = tmp_path / "bad.py"
    module.write_text("def f():\n    from kvrouter.routing import Router\n    return Router\n", encoding="utf-8")

    assert upward_imports("kvrouter.index.bad", module) == ["kvrouter.routing.Router"]
