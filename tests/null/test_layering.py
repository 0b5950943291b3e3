"""Who may import whom: every import statement of the package, held against one table."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.util import resolve_name
from pathlib import Path

from tools.figures import circles, read_modules
from tools.figures import imports as graph_of

ROOT = Path(__file__).parents[2]

# Row: what its modules may import of ours, beside their own row. The longest row that fits a module counts; `ops.*` are
# the members of `ops`, which must not import each other. `__init__` is the public API, what the package itself offers.
MAY_IMPORT = {
    "errors": "",
    "dtypes": "",
    "regular_files": "",
    "version": "",
    "documents": "errors",
    "rendering": "errors documents nametree store.sizes",
    "_lazy": "",
    "json_text": "",
    "nametree": "",
    "index": "errors dtypes select",
    "store": "json_text wording errors dtypes regular_files index.boxes",
    "numerics": "reduction errors dtypes _lazy index.boxes keys protocol",
    "numerics.spectrum": "dtypes _lazy op numerics",
    "numerics.rollups": "wording nametree numerics",
    "expression": "reduction errors dtypes _lazy index.boxes index.parts op protocol numerics",
    "select": "errors dtypes",
    "reduction": "_lazy",
    "protocol": "reduction _lazy errors documents dtypes select",
    "summaries": "_lazy reduction numerics.moments",
    "keys": "_lazy dtypes select",
    "kernel": "errors dtypes keys index protocol",
    "form": "keys protocol",
    "op": "errors form keys kernel select protocol",
    "plugins": "errors regular_files op protocol ops",
    "ops": "wording errors dtypes select index _lazy op protocol",
    # A layout becomes what the ops of other families do, and its file is YAML as a plan is.
    "packaged": "",
    "layout": "json_text errors families packaged reading regular_files plan.source",
    # What a plan changes in a config.json, and what names and shapes say of one: neither knows arrays or files.
    "config_patch": "errors",
    "families": "errors wording dtypes config_patch layout.expressions select",
    "vocabulary": "errors wording json_text",
    # An op on structure becomes steps: it knows the families and how plans are written, no arrays and no other op.
    "structure": "errors wording json_text dtypes codes config_patch families layout.expressions op keys protocol "
    "select vocabulary",
    "ops.structure": "keys op protocol structure ops._chosen ops._models",
    "ops.experts": "keys op protocol structure ops._chosen ops._models",
    "ops.interpretability": "keys op protocol structure ops._models",
    "ops._models": "keys protocol ops._chosen",
    "ops._chosen": "errors dtypes select _lazy op protocol numerics ops.sets",
    "ops.layout": "op protocol keys ops._layouts",
    "ops._layouts": "documents codes "
    "errors dtypes prefixes _lazy op protocol layout ops._constants numerics.rounding ops.elementwise "
    "ops.shape",
    # A method gives an expression: it knows arrays, kernels and a few that move elements, and no plan or engine.
    "merging": "wording reduction errors dtypes _lazy index select keys kernel op protocol numerics ops._constants "
    "ops.shape ops.sets ops._quantization vocabulary",
    "forward": "errors dtypes families _lazy index.parts reduction op protocol numerics.math ops.shape",
    "ops.logits": "errors _lazy keys op protocol forward",
    # An adapter is factors of changes: what it takes of other rooms are kernels, and what names say of a config.
    "adapters": "wording errors dtypes _lazy keys kernel op protocol select numerics families merging.tensors "
    "ops.elementwise ops.lowrank ops.sets ops.shape ops._stacked ops._quantization",
    "ops.adapters": "errors dtypes keys op protocol select ops.lowrank adapters",
    "codes": "dtypes",
    "ops._codes": "json_text errors dtypes codes index.parts _lazy op numerics",
    "ops._quantization": "errors select protocol codes",
    "ops.quantize": "errors dtypes select keys op protocol codes ops._codes ops._packing ops._compressed "
    "ops._quantization ops.reduce ops.shape",
    "ops._compressed": "errors dtypes index.parts select _lazy op protocol numerics ops.sets",
    "ops._packing": "errors dtypes index.parts _lazy op protocol numerics",
    # A closed-form edit is a kernel of given tensors: it knows arrays, and no plan or engine.
    "editing": "errors dtypes _lazy index op numerics",
    "ops.editing": "errors _lazy keys op protocol select editing ops.shape",
    "ops.merge": "keys op protocol select merging",
    "ops._matches": "errors dtypes config_patch select protocol expression ops._formulas ops.shape",
    "ops.compute": "errors dtypes select op protocol numerics expression ops._constants ops._formulas ops._matches",
    "ops._drawn": "errors dtypes _lazy op protocol expression ops.compute ops.shape",
    "ops.elementwise": "errors dtypes _lazy op protocol numerics ops._drawn",
    "ops.equations": "errors select _lazy op protocol numerics expression ops._constants ops._matches ops._verdicts "
    "ops.compute ops.value_asserts",
    "ops.difference": "errors keys op protocol select numerics ops._differences ops._verdicts",
    "ops._stacked": "errors protocol ops.shape",
    "ops.lowrank": "errors dtypes _lazy op protocol keys numerics ops._factorize ops._stacked",
    "ops.reduce": "errors dtypes select index _lazy op protocol keys numerics ops.shape",
    "ops.products": "errors dtypes _lazy op protocol keys numerics",
    "ops.choose": "errors dtypes _lazy op numerics ops.shape",
    "ops.resize": "errors dtypes _lazy op protocol keys numerics ops.shape",
    "ops.side_files": "errors wording keys op protocol config_patch families ops._verdicts",
    "ops.sets": "errors dtypes select index _lazy op protocol keys ops.shape",
    "ops.*": "documents wording reduction errors dtypes config_patch index select _lazy nametree keys op protocol "
    "numerics expression ops._constants ops._formulas ops._verdicts summaries",
    "plan": "errors dtypes packaged reading regular_files select op protocol plugins store.address store.formats "
    "config_patch",
    "plan.written": "errors regular_files plan.source store.atomic store.failures",
    "graph": "errors codes dtypes select index _lazy op protocol",
    "lower": "json_text documents wording "
    "errors dtypes codes index select op protocol plan graph store.address store.base store.completeness store.detect "
    "store.folder store.formats store.key_paths store.key_tree store.nesting store.peft store.replacing "
    "store.safetensors.header store.selection store.sidecars store.weight_names config_patch families",
    # What a run does is decided from the program alone; IMPURE below says what that must not touch.
    "engine.plan": "errors dtypes index protocol graph lower.program store.balance store.base store.sizes "
    "store.io.boxes op",
    "engine.events": "documents errors engine.plan.schedule",
    "engine.compute": "reduction errors dtypes index _lazy numerics.lookup numerics.ordinary op protocol graph store "
    "engine.plan engine.events",
    "engine": "",
    "engine.run": "documents errors dtypes index _lazy op protocol graph store lower.program lower.fold engine",
    "engine.run.nonfinite": "errors dtypes _lazy graph lower.program numerics.finite numerics.rounding select.natural "
    "wording engine.run.hosts",
    "results": "documents errors lower plan.model rendering.notebook wording engine.plan.work store.base",
    "preview": "errors lower op plan.model select",
    "session": "listening preview errors dtypes index _lazy nametree version select op protocol ops plan graph lower "
    "store engine api world run_options",
    "prefixes": "",
    "pace": "store.sizes",
    "reading": "",
    # A trial is a run whose output lies aside.
    "trial": "api plan.model run_options world",
    "tensors": "errors dtypes nametree rendering.notebook select store",
    "checkpoint": "documents tensors interop",
    "interop": "errors dtypes _lazy nametree store tensors world apply.names apply.filling apply.key_trees api "
    "prefixes",
    "world": "errors regular_files graph store",
    "listening": "documents errors engine.events",
    "run_options": "errors lower.program protocol engine.run.budget engine.run.joining engine.compute.devices "
    "engine.events store.io.files",
    "apply": "documents rendering "
    "errors dtypes index _lazy select op protocol ops plan graph lower store engine world nametree prefixes",
    "api": "listening results documents rendering wording "
    "errors dtypes index _lazy select op protocol ops plan graph lower store engine session world run_options "
    "apply provenance plugins",
    # Completion asks the registry what may stand where, and the two languages how it is written there.
    "completion": "errors dtypes op select plan.pages plan.oly_words plan.schema plan.scalars plan.source session "
    "api world",
    "cli": "documents rendering reports wording desk "
    "pace errors dtypes version nametree op plugins session api checkpoint world run_options plan.resolved plan.schema "
    "plan.source plan.written "
    "engine.compute.devices engine.run.joining engine.events store.failures store.sizes protocol",
    "wording": "",
    "desk": "documents wording errors op plugins plan.pages plan.source plan.written plan.typed session completion "
    "engine.events",
    # A report is a document of values: whoever draws it knows no run and no checkpoint.
    "reports": "",
    "reports.work": "documents wording api engine.plan.work engine.plan.schedule",
    "reports.hosts": "documents errors wording api engine.plan store.sizes",
    "reports.codes": "documents packaged",
    "cli.codes": "errors rendering reports.codes cli.show",
    "cli.commands.explain": "reports.codes cli",
    "reports.ops": "documents wording op protocol plan.pages",
    "reports.recipes": "documents plan.declarations plan.recipes",
    "reports.inspection": "documents wording dtypes checkpoint looking store.key_tree store.sizes",
    "reports.difference": "documents wording dtypes numerics comparison",
    "reports.explanation": "documents wording api op protocol store.sizes",
    "cli.prompt": "desk rendering documents engine.events wording "
    "errors version op plugins plan.pages plan.source plan.typed store.address preview session api world completion "
    "cli",
    "cli.recipes": "rendering errors reports.recipes plan.recipes plan.searching cli.show",
    "cli.ops": "rendering reports.ops errors plugins ops plan.pages plan.schema packaged cli.show",
    "comparison": "json_text reduction errors dtypes _lazy nametree numerics protocol checkpoint graph.expr engine "
    "looking.spectra rendering.notebook regular_files store.base store.failures store.io.files store.key_tree "
    "store.sidecars",
    "provenance": "documents errors wording dtypes index.boxes json_text regular_files version reduction "
    "numerics.digest op "
    "plan.model plan.resolved plan.source graph.expr lower engine store world api run_options",
    "cli.provenance": "wording api rendering provenance run_options cli.plans cli.show cli.sizes",
    "looking": "provenance.digests "
    "reduction summaries rendering.notebook errors dtypes _lazy nametree op numerics protocol checkpoint "
    "graph.expr engine store.base",
    # An audit runs plans that it changed, through the API, in a world of its own.
    "auditing": "json_text errors dtypes nametree regular_files api checkpoint world run_options lower graph.expr "
    "plan.source looking.fingerprint store",
    "reports.audit": "documents wording auditing",
    "cli.audit": "api auditing reports.audit rendering.data cli.show",
    # A picture is drawn of what was measured: nothing but the command line and reports in HTML ask for one.
    "plots": "wording errors dtypes _lazy nametree checkpoint comparison numerics looking store.atomic "
    "store.failures store.sizes engine.events",
    "cli.plotting": "plots cli.show",
    "cli.report": "plots cli.show cli.sizes",
    "cli.sizes": "store.sizes",
    "cli.spectrum": "looking plots rendering cli.plotting cli.show cli.sizes",
    "cli.inspect_": "looking plots rendering reports.inspection errors checkpoint cli.plotting cli.show",
    "cli.diff": "rendering reports.difference errors checkpoint comparison plots cli.plotting cli.show cli.sizes",
    "comparison.logits": "json_text reduction errors dtypes _lazy op protocol forward engine graph.expr store.base "
    "world",
    "cli.logits": "documents rendering comparison.logits cli.show cli.sizes",
    "conversion": "json_text errors dtypes codes layout api world run_options store.address store.atomic store.detect "
    "store.io.files store.formats store.folder store.peft",
    "cli.importing": "rendering documents plan.source plan.written errors importers cli.show",
    "cli.shells": "op plugins ops dtypes plan.overrides plan.recipes plan.source layout store.address store.formats "
    "store.detect",
    "importers": "json_text codes wording "
    "errors dtypes regular_files version protocol merging ops plan.scalars plan.source plan.overrides plan.build "
    "plan.parse store.detect vocabulary",
    "cli.convert": "wording api rendering errors layout conversion world run_options cli.show cli.sizes cli.progress "
    "cli.stopping",
    # A browser is a front end like the command line, and serves it: all that it does goes through the API.
    "web": "errors wording rendering version dtypes op api checkpoint comparison numerics.moments numerics.rollups "
    "looking plots completion trial session _lazy reading world pace run_options provenance.lock "
    "nametree lower plan.oly plan.typed plan.source "
    "plan.declarations plan.pages plan.schema plan.recipes "
    "keys select regular_files store.address store.atomic store.base store.detect "
    "store.failures store.replacing store.sidecars store.sizes engine.events",
    "cli.web": "errors web cli.show cli.sizes",
    "converters": "__init__",
    "__init__": "errors version op plugins protocol session api auditing checkpoint comparison conversion interop "
    "forward looking numerics.moments plots provenance",
    "__main__": "cli",
}

# To import one of these is to load JAX, and `--help`, `inspect` and plans that only rename must not wait for it.
LOADS_JAX = "jax jaxlib flax orbax"
# What plans the work of a run, and what it calls in the engine, has nothing to do with these.
FILES = "os io asyncio brainsurgery_jax.store.io.positioned"
IMPURE = f"numpy jax brainsurgery_jax._lazy threading concurrent contextvars {FILES}"
MAY_LOAD_JAX = "_lazy engine store.orbax.encode"


def test_every_module_imports_only_what_its_row_of_the_table_allows():
    wrong = [
        f"{place}: {module} may not import {target}; its row '{row}' allows: {MAY_IMPORT[row] or 'nothing of ours'}"
        for module, row in rows().items()
        for place, target in our_imports(module)
        if not within(target, f"{row} {MAY_IMPORT[row]}")
    ]
    assert not wrong, "\n".join(["move the code, or amend MAY_IMPORT if the design has changed:", *wrong])


def test_no_import_statement_outside_the_engine_loads_jax():
    wrong = [
        f"{place}: {module} imports {name}; take it from brainsurgery_jax._lazy"
        for module in modules()
        if not within(module, MAY_LOAD_JAX)
        for place, name in imports(module)
        if within(name, LOADS_JAX)
    ]
    assert not wrong, "\n".join(wrong)


def test_nothing_outside_the_command_line_prints():
    wrong = [
        f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
        for module, path in modules().items()
        if not within(module, "__main__ cli converters")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _prints(node)
    ]
    assert not wrong, "\n".join(["give a report, an event or a message to the caller; cli/ prints:", *wrong])


def _prints(node: ast.AST) -> bool:
    match node:
        case ast.Call(func=ast.Name("print")) | ast.Attribute(value=ast.Name("sys"), attr="stdout" | "stderr"):
            return True
        case ast.ImportFrom(module="sys", names=names):
            return any(alias.name in ("stdout", "stderr") for alias in names)
    return False


def test_the_work_of_a_run_is_planned_without_arrays_threads_and_open_files():
    reached, wrong = set[str](), list[str]()
    stack = [module for module in modules() if within(module, "engine.plan")]
    while stack:
        if (module := stack.pop()) in reached:
            continue
        reached.add(module)
        wrong += [f"{place}: {name}" for place, name in imports(module) if within(name, IMPURE)]
        stack += [
            m for _, target in our_imports(module) if (m := module_of(target)) is not None and within(m, "engine")
        ]
    assert not wrong, "\n".join(["engine.plan may not depend on:", *wrong])
    assert len(reached) > 10


def module_of(target: str) -> str | None:
    """The module that a name is imported from."""
    return next((m for m in (target, target.rpartition(".")[0]) if m in modules()), None)


def test_no_modules_import_one_another_not_even_lazily_or_for_types():
    assert circles(graph_of(read_modules(ROOT / "brainsurgery_jax"))) == []


def within(name: str, packages: str) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages.split())


@cache
def modules() -> dict[str, Path]:
    """Every module by its dotted name under `brainsurgery_jax`; a package goes by its own name."""
    ours = {path.relative_to(ROOT / "brainsurgery_jax"): path for path in (ROOT / "brainsurgery_jax").rglob("*.py")}
    ours |= {path.relative_to(ROOT): path for path in (ROOT / "converters").rglob("*.py")}
    return {".".join(name.with_suffix("").parts).removesuffix(".__init__"): path for name, path in sorted(ours.items())}


def rows() -> dict[str, str]:
    """The row of the table that each module comes under."""
    found = {module: next((row for row in fitting(module) if row in MAY_IMPORT), None) for module in modules()}
    missing = [module for module, row in found.items() if row is None]
    assert not missing, f"no row in MAY_IMPORT for {missing}: say what they may import"
    return {module: row for module, row in found.items() if row is not None}


def fitting(module: str) -> Iterator[str]:
    yield module
    while "." in module:
        module = module.rpartition(".")[0]
        yield from (f"{module}.*", module)


def our_imports(module: str) -> Iterator[tuple[str, str]]:
    heads = {name.partition(".")[0] for name in [*modules(), *MAY_IMPORT]}
    for place, name in imports(module):
        if within(name, "brainsurgery_jax"):
            inner = name.removeprefix("brainsurgery_jax").removeprefix(".")
            yield place, inner if inner.partition(".")[0] in heads else "__init__"


def imports(module: str) -> Iterator[tuple[str, str]]:
    """Place and full name of all that a module imports, also inside functions and under TYPE_CHECKING."""
    path = modules()[module]
    name = f"brainsurgery_jax.{module}".removesuffix(".__init__")
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            yield from ((f"{path.relative_to(ROOT)}:{node.lineno}", f"{base}.{alias.name}") for alias in node.names)
