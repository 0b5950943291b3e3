"""Random plans as data, made from the registry of ops: right ones, nearly right ones, and wild ones."""

from __future__ import annotations

import inspect
import types
from random import Random
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import brainsurgery_jax.ops  # noqa: F401  (says which ops there are)
from brainsurgery_jax.op import ASSERTS, OPS, Op, Role, element_role
from brainsurgery_jax.plan.source import dump_yaml

# What the plans read: tensors by path, as `tests.null.world.Headers` takes them.
FILES = {
    "m.safetensors": {
        **{f"h.{i}.{part}": "f32[8,4]" for i in range(4) for part in ("attn.weight", "mlp.w", "mlp.v")},
        **{f"h.{i}.bias": "bf16[4]" for i in range(4)},
        **{"wte.weight": "f16[16,8]", "ids": "i64[6]", "mask": "bool[4]", "scale": "f32[]", "none": "f32[0,4]"},
        **{"a" * 60: "f32[2]", "a.a.a.a.a.a.a.a.a.a.a.b": "f64[3,3]", "é (x) [0]": "f8_e4m3fn[4,4]", "..": "i8[4]"},
    },
    "n.safetensors": {"h.0.attn.weight": "f32[8,4]", "w": "f32[4,4]", "v": "c64[2,2]", "x" * 300: "u8[1]"},
    "folder": {"w": "f32[4,4]", "model.w": "bf16[4,4]"},
}

# Patterns that match, each with templates that fit it.
THEMES: list[tuple[Any, list[Any]]] = [
    (r"h\.(?P<i>\d+)\.mlp\.w", [r"h.\1.mlp.v", r"h.\g<i>.new", "h.${i+4}.mlp.w", "h.${3-i}.mlp.w", r"\g<0>", "one"]),
    (r"h\.(\d+)\.(.*)", [r"g.\1.\2", r"h.\1.x.\2", r"\2.\1", r"h.\1.mlp.v"]),
    (r"h\.0\.attn\.weight", ["h.1.attn.weight", "h.0.mlp.w", "new", "h.9.w"]),
    ("wte.weight", ["wte", "head.weight", "wte.weight"]),
    (".*bias", [r"\g<0>.x", "b"]),
    (["h", "$i", "mlp", "w"], [["h", "$i", "mlp", "v"], ["g", "$i"], ["h", "${i+4}", "mlp", "w"], ["one"]]),
    (["h", "*rest"], [["g", "*rest"], ["h", "*rest", "x"]]),
    (["*a", "~kind::w|v"], [["*a", "$kind", "x"], ["h", "9", "$kind"]]),
    ("ids", ["ids2", "mask"]),
    ("scale", ["s"]),
]
REGEXES = [
    r"h\.(\d+)\.(.*)", r"h\.(?P<i>\d+)\.mlp\.(?P<what>w|v)", ".*", "(.*)", "h.*weight", r".*\.(?!w).*", "(?i)H.*",
    "[ab", "(a+)+$", "(a|aa)+b", "(a*)*b", "(.*a){12}b", "a{1,99999999}", "(a{1,9999}){1,9999}b", "(?:a?){30}a{30}",
    "*.w", "+", "(((((.*)*)*)*)*)*x", r"(a)\1*b", r"(.+)+\1", "(?P<a>x)(?P<a>y)", "(?#", r"\p{L}", "[[:alpha:]]+",
    "a{,}", "a{2,1}", "(?<=a)b", "(?>a+)b", "a*+b", "a*a*a*b", "a?" * 10 + "a*a*a*b", r"\N{DASH}", "(?P<n>a)(?(n)b|c)",
    "\\", "x" * 5000, "(" * 120 + "a" + ")" * 120, "a|" * 500, "[a-\U0010ffff]*", "(?L)a", "(?a)é", "(?:a|bc){300000}",
    "(?:" * 90 + ")*" * 90, "(?:" * 250 + "a" + ")*" * 250, "((a{1000}){1000}){1000}", "a{" + "9" * 5000 + "}",
]  # fmt: skip
TEMPLATES = [
    r"g.\1.\2", r"\g<what>.${i}", "g.${i+1}", "${i-9}", r"\1" * 40, r"\g<0>" * 3, "${n-1-i}", "${", "${}", r"\9", r"\q",
    "${i+99999999999999999999}", "$1", "${vars.x}", "${env.HOME}", "h.${2-i}.w", "", "\\", "${i" + "+i" * 300 + "}",
    r"\g<" + "1" * 99 + ">", "${vars.x}${vars.y}",
]  # fmt: skip
TOKENS = [
    "h", "$i", "*xs", "*ys", "~[0-9]+", "~i::[0-9]+", "~x,y::(a)(b)", "~(a+)+$", "~x::(a|aa)+b", "~", "$", "*", "",
    "${i}", "${i+1}", "~x::", "~a{1,99999999}", "*xs", "w", "~x::(?P<q>a)", "$x y", "a.b", "$i$", "~x::(a)?",
]  # fmt: skip
SLICES = [
    "[0]", "[:, 1]", "[::2]", "[-1]", "[99]", "[", "[1:2:3:4]", "[:, :, :, :]", "[9999999999999999999999]", "[0:0]",
    "[::0]", "[...]", "[]", "[ 1 : 3 , ]", "[1_0]", "[" + "0," * 300 + "0]", "[::-1]", "[٣]", "[" + "9" * 5000 + "]",
]  # fmt: skip
NUMBERS: list[Any] = [
    0,
    1,
    -1,
    2,
    3,
    4,
    8,
    0.5,
    1e-6,
    1e308,
    -1e999,
    float("nan"),
    10**30,
    2**63,
    True,
    "1",
    "0x1",
    "x",
]
DTYPES = ["float32", "bf16", "int8", "bool", "complex64", "f8_e4m3fn", "float99", "", "FP16 ", "uint4"]
ALIASES = ["m", "n", "tmp", "", "x y", "."]
PATHS = ["m.safetensors", "n.safetensors", "folder", "out", "out/", "o.safetensors", "o.pt", "o.xyz", "", "~/x", "a::b"]
EXPRESSIONS = [
    "w + 1", "w @ w", "outer(r, r @ w)", "(" * 150 + "w" + ")" * 150, "w ** w ** w", "9**9**9", "-" * 500 + "w", "x.y",
    "__import__('os')", "w if w else w", "[w for w in w]", "lambda: w", "w[0]", "w[::-1]", "f'{w}'", "w := 1", "w +",
    "norm(w)", "1e999 * w", "w / 0", "w // 2", "w" + " + w" * 300, "softmax(w, 99)", "'a' * 10**9", "\x00", "é",
    "w\n+w", "w * " * 3000 + "w", "sum(w, axis=0)", "w.T", "where(w > 0, w, -w)", "(w" * 50, "9" * 5000, "1 << 999999",
]  # fmt: skip
WORDS = [
    "tree", "json", "full", "ij,jk->ik", "mean", "equal", "copy", "skip", "none", "2GB", "i", "0", "...", "i" * 999,
]  # fmt: skip
TEXTS = {"expr": EXPRESSIONS, "path": PATHS, "alias": ALIASES}
JUNK: list[Any] = [
    None, True, False, [], {}, "", " ", "x", 0, -1, 1.5, [[]], {"x": None}, ["", None], "\x00", "\ufeff", "\u2028", "é",
    "\U0001f600", "a" * 3000, {"": {}}, [1, [2, [3]]], "null", "${vars.x}", "${vars.}", "*a", "&a", "!x", "{", "2GB",
    "yes", {"name": "w"}, {"energy": 0.9}, "${vars.", "-", "?", "| x", "1e6", ["${vars.x}"], 10**400,
]  # fmt: skip


class Maker:
    """Makes values; `wild` is how likely each is to be replaced by something that hardly fits."""

    def __init__(self, random: Random, wild: float):
        self.random, self.wild = random, wild
        self.theme, self.aliases = THEMES[0], ["m"]

    def plan(self, depth: int = 0) -> dict[str, Any]:
        """The data of a plan."""
        random = self.random
        made: dict[str, Any] = {"inputs": self.inputs()}
        self.aliases = [entry.partition("::")[0] for entry in made["inputs"] or ["m"] if isinstance(entry, str)] or [
            "m"
        ]
        made["transforms"] = [self.step(depth) for _ in range(random.choice((1, 1, 2, 3, 6)))]
        if random.random() < 0.7:
            made["output"] = self.output()
        if random.random() < 0.1:
            made["vars"] = {"x": self.junk() if self.off() else random.choice((1, "w", "m"))}
            made["transforms"].append({"delete": {"target": "${vars.x}", "if_missing": "skip"}})
        if self.off():
            made[random.choice(("outputs", "seed", "version", "transfroms", "inputs", ""))] = self.junk()
        return made

    def off(self) -> bool:
        return self.random.random() < self.wild

    def junk(self) -> Any:
        return self.random.choice(JUNK)

    def inputs(self) -> Any:
        if self.off():
            return self.random.choice(([], None, ["x::y"], "m.safetensors", [self.junk()], ["a", "b"], ["f::folder"]))
        return self.random.choice(
            (["m::m.safetensors"], ["m::m.safetensors"], ["m::m.safetensors", "n::n.safetensors"])
        )

    def output(self) -> Any:
        random = self.random
        made: dict[str, Any] = {"path": random.choice(PATHS if self.off() else ("out", "o.safetensors"))}
        for key in ("alias", "format", "shard", "overwrite", "metadata", "options", "config", "sidecars", "junk"):
            if random.random() < self.wild / 2:
                fitting = (random.choice(ALIASES), "safetensors", "torch", "orbax", "1B", "0", {"a": "b"}, True)
                made[key] = self.junk() if self.off() else random.choice(fitting)
        return made if random.random() < 0.6 else self.junk() if self.off() else made["path"]

    def step(self, depth: int) -> Any:
        """A step of an op that there is, or of none."""
        if self.random.random() < self.wild / 4:
            return self.junk()
        self.theme = self.random.choice(THEMES)
        op = self.random.choice(list(OPS.values()))
        made = {op.name: self.payload(op, depth)}
        return made | {self.random.choice(list(OPS)): self.junk()} if self.random.random() < self.wild / 8 else made

    def payload(self, op: Op, depth: int) -> Any:
        """Most keys of the op, each with a value that fits more often than not."""
        random = self.random
        if self.off():
            return random.choice((self.reference("pattern"), self.junk()))
        made: dict[str, Any] = {}
        for field in op.fields():
            if random.random() < (0.97 if field.default is inspect.Parameter.empty else 0.3):
                fitting = TEXTS.get(field.key) if field.annotation is str else None
                value = random.choice(fitting) if fitting else self.value(field.role, field.annotation, depth)
                made[field.key] = self.junk() if self.off() else value
        if random.random() < 0.1:
            made["if_missing"] = "skip"
        if self.off():
            made[random.choice(("if_missing", "over", "dest", "x", "Target", "1"))] = self.junk()
        return made

    def value(self, role: Role | None, annotation: Any, depth: int) -> Any:
        """What may stand under a key."""
        kind = role.kind if role else ""
        match kind:
            case "pattern" | "template" | "name":
                return self.reference(kind)
            case "operands":
                names = self.random.sample(["w", "r", "x", "norm", "_", "x y", ""], self.random.choice((1, 2)))
                return {name: self.reference("template" if at else "pattern") for at, name in enumerate(names)}
            case "assert":
                return self.assertion(depth)
            case "asserts":
                return [self.assertion(depth) for _ in range(2)]
            case "number":
                return self.number()
            case "dtype":
                return self.random.choice(DTYPES)
            case "steps" | "plan" | "plan-text" | "plan-file" | "recipe":
                return self.nested(kind, depth)
        if (inner := element_role(annotation)) is not None:
            return [self.value(inner, None, depth) for _ in range(self.random.choice((1, 2, 2, 3)))]
        return self.annotated(annotation)

    def annotated(self, annotation: Any) -> Any:
        """A value of a type, as far as it is a plain one."""
        random, origin = self.random, get_origin(annotation)
        if origin is Literal:
            return random.choice(get_args(annotation))
        if origin in (Union, types.UnionType):
            return self.annotated(random.choice(get_args(annotation)))
        if origin is Annotated:
            return self.annotated(get_args(annotation)[0])
        if origin in (tuple, list) or (origin is not None and "Sequence" in str(origin)):
            inner = next((a for a in get_args(annotation) if a is not Ellipsis), str)
            return [self.annotated(inner) for _ in range(random.randrange(4))]
        if annotation is bool:
            return random.choice((True, False))
        if annotation is int:
            return random.choice((10**9, 10**30, -(10**9), 2**63)) if self.off() else random.choice((0, 1, 2, -1, 4, 8))
        if annotation is float:
            return self.number()
        return random.choice((*WORDS, *ALIASES)) if annotation is str else self.junk()

    def number(self) -> Any:
        return self.random.choice(NUMBERS if self.off() else NUMBERS[:9])

    def nested(self, kind: str, depth: int) -> Any:
        if depth > 2 or kind == "plan-file":
            return self.random.choice(PATHS)
        if kind == "recipe":
            name = self.random.choice(("merge-ties", "lora_fold", "bulk-regex", "nothing"))
            return self.random.choice((name, {name: {"out": "out/", "model": self.junk()}}))
        inner = self.plan(depth + 1) if kind != "steps" else [self.step(depth + 1) for _ in range(2)]
        return dump_yaml(inner) if kind == "plan-text" else inner

    def assertion(self, depth: int) -> Any:
        op = self.random.choice(list(ASSERTS.values()))
        return {"exists": self.reference("pattern")} if depth > 3 else {op.name: self.payload(op, depth + 1)}

    def reference(self, kind: str) -> Any:
        """A reference of any form: text with alias, name and slice, tokens, a mapping."""
        random, (pattern, templates) = self.random, self.theme
        name = pattern if kind == "pattern" else random.choice(templates)
        if kind == "name":
            name = random.choice(("new", "h.0.mlp.w", "wte.weight", "one"))
        if self.off():
            name = random.choice((random.choice(REGEXES), random.choice(TEMPLATES), random.choices(TOKENS, k=3)))
        cut = random.choice(SLICES) if random.random() < (0.2 if self.wild else 0.05) else None
        alias = random.choice(ALIASES) if self.off() else random.choice(self.aliases)
        if len(self.aliases) == 1 and random.random() < 0.2:
            alias = ""
        if random.random() < 0.1 or (isinstance(name, list) and len(self.aliases) > 1 and not self.off()):
            return {"name": name, **({"alias": alias} if alias else {}), **({"slice": cut} if cut else {})}
        if isinstance(name, list):
            return name
        return (alias + "::" if alias else "") + name + (f"::{cut}" if cut else "")
