"""A step `lora_extract` at work: what a fine-tuned model differs by from its base, as an adapter that PEFT loads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from brainsurgery_jax.adapters.architecture import Architecture, read_architecture
from brainsurgery_jax.adapters.changes import ModelPair, WeightChange, change_of
from brainsurgery_jax.adapters.heads import tied_bias
from brainsurgery_jax.adapters.kernels import differing
from brainsurgery_jax.adapters.ranks import Extent, RankChoice
from brainsurgery_jax.adapters.reading import read_modules
from brainsurgery_jax.adapters.renaming import is_renamed_otherwise
from brainsurgery_jax.adapters.settings import ADAPTER_CONFIG, OF_FLOATS, read_settings
from brainsurgery_jax.adapters.stacked import is_stack, join_factors, nest
from brainsurgery_jax.dtypes import FLOAT32, DType
from brainsurgery_jax.errors import Refusal
from brainsurgery_jax.families.adapters import HEAD, patterns_of, value_for, words_of
from brainsurgery_jax.merging.tensors import common_work, in_dtype
from brainsurgery_jax.numerics.math import fold_seed
from brainsurgery_jax.ops._quantization import refuse_quantized
from brainsurgery_jax.ops.lowrank import MethodKeys, factors, numbers_of
from brainsurgery_jax.ops.shape import with_shape
from brainsurgery_jax.protocol import AddAlias, Bind, Edit, SetConfig, TensorExpr, View
from brainsurgery_jax.select import Ref
from brainsurgery_jax.wording import few


@dataclass
class AdapterParts:
    """What belongs into an adapter: tensors by name, ranks by module or parameter of stacked experts, and names by
    kind: `stacks` of these parameters, `whole` of modules."""

    tensors: dict[str, TensorExpr] = field(default_factory=dict)
    ranks: dict[str, int] = field(default_factory=dict)
    stacks: list[str] = field(default_factory=list)
    whole: list[str] = field(default_factory=list)
    biased: bool = False


def _parameters(low: Mapping[str, WeightChange], beside: WeightChange) -> list[str]:
    """The parameters of a module that are factorized."""
    return [change.pair.parameter for change in low.values() if change.pair.module == beside.pair.module]


def _complete(
    name: str, there: Mapping[str, TensorExpr], beside: str | None, others: dict[str, TensorExpr]
) -> None:  # fmt: skip
    """Give a model a bias that it has under another name, if the other model has it under its own."""
    if name in there and beside is not None:
        others[name] = others[beside]


@dataclass(frozen=True)
class ExtractStep:
    """What a step says."""

    view: View
    base: str
    tuned: str
    to: str
    extent: Extent
    how: MethodKeys
    of: Ref | None = None
    dtype: DType = FLOAT32

    def edits(self) -> Iterator[Edit]:
        """What the step does. Raises Refusal."""
        earlier = self.earlier
        refuse_quantized(self.view, self._looked_at(), "tuned", OF_FLOATS, " Or look at floats alone: `of: PATTERN`.")
        self._refuse_no_module()
        changed = [pair for pair in self._pairs() if self._differs(pair)]
        changes = {p.name: change_of(self.view, p, self.model) for p in changed if self._is_factorable(p)}
        ranks = self.choice.ranks(changes)
        found = self._collect(changed, changes, ranks)
        self._note_names()
        if not found.ranks:
            raise self._nothing(changed, changes)
        found.ranks = {**earlier.ranks, **found.ranks}
        found.whole = [*dict.fromkeys((*earlier.whole, *found.whole))]
        found.biased |= earlier.biased
        if self.to not in self.view.aliases():
            yield AddAlias(self.to, like=self.base)
        for name, expr in found.tensors.items():
            yield Bind(self.to, name, expr)
        yield SetConfig(self.to, self._config(found), ADAPTER_CONFIG)

    def _note_names(self) -> None:
        """Say that PEFT may know modules by other names."""
        if is_renamed_otherwise(self.model.kind):
            message = (
                f"transformers gives modules of '{self.model.kind}' other names than the checkpoint has, and which is "
                "not known here: see that PEFT finds every module of the adapter"
            )
            self.view.note("adapter-extract", message, "base")

    @cached_property
    def earlier(self) -> AdapterParts:
        """What earlier steps have put into the adapter. Raises Refusal for an alias that holds something else."""
        found = AdapterParts()
        if self.to not in self.view.aliases() or not (names := self.view.names(self.to)):
            return found
        settings = read_settings(self.view, self.to, {}, "to")
        if self.to in (self.base, self.tuned) or not settings.own or settings.config.get("target_parameters"):
            raise self._taken()
        for module, own in read_modules(self.to, names, "to").items():
            if own.factors is not None:
                found.ranks[module] = self.view.fetch(self.to, own.factors[0], "to").aval.shape[0]
            outer = self.model.whole_of(f"{module}.weight")
            if outer is not None or own.whole.keys() - {"bias"}:
                found.whole.append(outer or module)
                continue
            found.biased |= own.whole.keys() == {"bias"} or "bias" in own.parts
        alpha, pattern = settings.config.get("lora_alpha"), settings.pattern("alpha_pattern")
        if any(value_for(module, pattern, alpha or 0) != rank for module, rank in found.ranks.items()):
            raise self._taken()
        return found

    def _taken(self) -> Refusal:
        """That an alias holds what would be in the adapter as well."""
        return Refusal("alias-exists", f"there is an alias '{self.to}' already", key="to",
                       hint="Give another name to the adapter.")  # fmt: skip

    def _looked_at(self) -> dict[str, list[str]]:
        """The names that are looked at, by alias: all, or those of `of`, which is about either model."""
        both = {alias: list(self.view.names(alias, key)) for alias, key in ((self.base, "base"), (self.tuned, "tuned"))}
        if self.of is None:
            return both
        if self.of.alias not in both:
            message = f"'{self.of}' is about '{self.of.alias}', and the models are '{self.base}' and '{self.tuned}'"
            raise Refusal("alias-unknown", message, key="of", hint=f"Name the base: `of: '{self.base}::PATTERN'`.")
        if not (matched := set(self.view.match(self.of, "of"))):
            refuse_quantized(self.view, both, "of", OF_FLOATS)  # whose codes have other names than the floats
            raise self.view.nothing(self.of, "of")
        return {alias: [name for name in names if name in matched] for alias, names in both.items()}

    @property
    def choice(self) -> RankChoice:
        """How ranks are chosen."""
        return RankChoice(self.view, self.extent)

    # --- the two models

    @cached_property
    def model(self) -> Architecture:
        """The base, by what its config says and the shapes that it has."""
        return read_architecture(self.view, self.base)

    @cached_property
    def is_tied(self) -> bool:
        """Whether the head of the base is its table of tokens."""
        return bool(self.model.tied)

    def _pairs(self) -> list[ModelPair]:
        """The tensors of both models by name, in the order of the base. A head that is not stored is the table."""
        names = set(self.view.names(self.base) if self.of is None else self.view.match(self.of, "of"))
        ours, theirs = self._tensors(self.base), dict(self._theirs)
        for table, head in self.model.tables:
            if head is None:
                continue
            shared, own = f"{table}.weight", f"{head}.weight"
            if head in self.model.tied and shared in names:
                names.add(own)
                ours[own], theirs[own] = ours[shared], theirs.get(own, theirs.get(shared, ours[shared]))
            elif own in ours and shared in theirs:
                theirs.setdefault(own, theirs[shared])
            _complete(f"{head}.bias", ours, tied_bias(head, theirs), theirs)
            _complete(f"{head}.bias", theirs, tied_bias(head, ours), ours)
        if self.of is None:
            names |= theirs.keys()
        order = {name: at for at, name in enumerate((*ours, *theirs))}
        return [self._pair(name, ours.get(name), theirs.get(name)) for name in sorted(names, key=order.__getitem__)]

    @cached_property
    def _theirs(self) -> dict[str, TensorExpr]:
        """The tensors of the tuned model: modules that are saved as a whole each look there."""
        return self._tensors(self.tuned)

    def _tensors(self, alias: str) -> dict[str, TensorExpr]:
        return {name: self.view.fetch(alias, name, "base") for name in self.view.names(alias)}

    def _pair(self, name: str, base: TensorExpr | None, tuned: TensorExpr | None) -> ModelPair:
        """A tensor of both models. Raises Refusal where PEFT cannot make the one of the other."""
        if base is None or tuned is None:
            there, gone = (self.base, self.tuned) if tuned is None else (self.tuned, self.base)
            hint = "Name the tensors that are meant: `of: PATTERN`. An adapter changes tensors that are there."
            raise Refusal("unmatched", f"'{name}' is in '{there}' and not in '{gone}'", key="tuned", hint=hint)
        pair = ModelPair(name, base, tuned)
        resized = len(base.aval.shape) == 2 and base.aval.shape[1:] == tuned.aval.shape[1:]
        if not pair.is_alike and not (resized and self._is_vocabulary(pair.module)):
            hint = "Only vocabularies may differ in size. Name the tensors that are meant: `of: PATTERN`."
            message = f"'{name}' is {base.aval} in '{self.base}' and {tuned.aval} in '{self.tuned}'"
            raise Refusal("shapes-differ", message, key="tuned", hint=hint)
        return pair

    def _is_vocabulary(self, module: str) -> bool:
        return any(module in (table, head) for table, head in self.model.tables)

    def _refuse_no_module(self) -> None:
        """Refuse a name of modules to be kept whole that none has."""
        modules = {name.rpartition(".")[0] for name in self.model.shapes}
        for word in self.extent.whole:
            if not any(f".{module}".endswith(f".{word}") for module in modules):
                last = sorted({module.rpartition(".")[2] for module in modules if module})
                hint = f"Name the last parts of modules: {few(last)}."
                raise Refusal(
                    "adapter-extract", f"no module of '{self.base}' is called '{word}'", key="whole", hint=hint
                )

    # --- what differs

    def _differs(self, pair: ModelPair) -> bool:
        """Whether a tensor of the tuned model is another one. Only data can tell."""
        if not pair.is_alike:
            return True
        if pair.base is pair.tuned or not pair.base.aval.size:
            return False
        x, y = self._in_one_dtype(pair.base, pair.tuned)
        return bool(self.view.number(self.view.apply(differing, x, y), 1))

    def _in_one_dtype(self, *xs: TensorExpr) -> list[TensorExpr]:
        if len({x.aval.dtype for x in xs}) == 1:
            return list(xs)
        work = common_work([x.aval.dtype for x in xs])
        return [self.view.apply(in_dtype, x, dtype=work) for x in xs]

    def _is_factorable(self, pair: ModelPair) -> bool:
        """Whether PEFT adds a product of factors to a tensor. Not to a table that is the head as well: merging would
        add twice."""
        shared = self.is_tied and self._is_vocabulary(pair.module)
        aval = pair.tuned.aval
        fits = len(aval.shape) == 2 or self.model.is_convolution(pair.module, aval.shape)
        known = pair.parameter == "weight" and self.model.is_factorable(pair.module)
        known = known or is_stack(self.model.config, pair.name, aval.shape)
        kept = (
            shared
            or self.model.whole_of(pair.name) is not None
            or self.model.shares_otherwise(pair.module)
            or self.extent.keeps_whole(pair.module)
        )
        return known and aval.dtype.is_float and fits and pair.is_alike and not kept

    # --- what the adapter holds

    def _collect(
        self, changed: Sequence[ModelPair], changes: Mapping[str, WeightChange], ranks: Mapping[str, int]
    ) -> AdapterParts:  # fmt: skip
        found, left_out = AdapterParts(), {name for name, rank in ranks.items() if not rank}
        low = {n: c for n, c in changes.items() if ranks[n] and self.choice.is_low(c, ranks[n])}
        whole = {
            pair.module: pair.name for pair in reversed(changed)
            if pair.name not in low and pair.name not in left_out and pair.parameter != "bias"
            and self.model.whole_of(pair.name) is None
        }  # fmt: skip
        low = {name: change for name, change in low.items() if change.pair.module not in whole}
        stacks = {change.pair.module: nest(_parameters(low, change)) for change in low.values() if change.is_stacked}
        for name, change in low.items():
            nested = stacks[change.pair.module][change.pair.parameter] if change.is_stacked else ""
            self._factorize(found, change, ranks[name], nested)
        for module, name in reversed(whole.items()):
            self._save_whole(found, module, name)
        self._save_classifier(found)
        for pair in changed:
            if pair.parameter == "bias" and pair.module not in whole and self.model.whole_of(pair.name) is None:
                adapted = ".base_layer" if self.model.module_of(pair.module) in found.ranks else ""
                found.tensors[f"{HEAD}{self.model.module_of(pair.module)}{adapted}.bias"] = pair.tuned
                found.biased = True
        return found

    def _factorize(self, found: AdapterParts, change: WeightChange, rank: int, nested: str) -> None:
        """`nested`: what stands before the names of the factors, where a module has several parameters adapted."""
        module = self.model.module_of(change.pair.module)
        numbers = numbers_of(self.how, fold_seed(self.view.seed, change.pair.name))
        made = [self.view.apply_all(factors, delta, rank=rank, **numbers) for delta in change.deltas]
        b, a = join_factors(self.view, [(b, a) for b, a in made]) if change.is_stacked else made[0]
        ends = ("lora_A.weight", "lora_B.weight")
        if self.model.is_table(change.pair.module):
            ends = ("lora_embedding_A", "lora_embedding_B")
        for end, x, shape in zip(ends, (a, b), change.shapes(rank), strict=True):
            shaped = x if x.aval.shape == shape else self.view.apply(with_shape, x, shape=shape)
            found.tensors[f"{HEAD}{module}{nested}.{end}"] = self.view.apply(in_dtype, shaped, dtype=self.dtype)
        adapted = f"{module}.{change.pair.parameter}" if change.is_stacked else module
        found.ranks[adapted] = rank
        if change.is_stacked:
            found.stacks.append(adapted)

    def _save_whole(self, found: AdapterParts, module: str, changed: str) -> None:
        """All tensors of a module, as the tuned model has them: PEFT loads such modules as a whole."""
        if self.model.shares_otherwise(module):
            hint = "Leave it out by naming the tensors that are meant: `of: PATTERN`."
            message = f"'{module}' differs, and other modules share it: PEFT would change it alone"
            raise Refusal("adapter-extract", message, key="tuned", hint=hint)
        tensors = self._tensors_of(module)
        split = ".parametrizations." in changed or changed.endswith((".weight_g", ".weight_v"))
        if split or not module or any("." in name[len(module) + 1 :] for name in tensors):
            hint = "Leave it out by naming the tensors that are meant: `of: PATTERN`."
            message = f"'{changed}' differs, and is the parameter of no module that PEFT could save as a whole"
            raise Refusal("adapter-extract", message, key="tuned", hint=hint)
        own = self.model.module_of(module)
        for name, expr in tensors.items():
            found.tensors[f"{HEAD}{own}{name[len(module) :]}"] = expr
        found.whole.append(own)

    def _save_classifier(self, found: AdapterParts) -> None:
        """The modules that PEFT saves whole for the task, changed or not: it does not load an adapter without them."""
        looked_at = {name for names in self._looked_at().values() for name in names}
        for name, ours in self._tensors(self.base).items():
            if (module := self.model.whole_of(name)) is not None:
                expr = self._theirs.get(name, ours) if name in looked_at else ours
                found.tensors[f"{HEAD}{self.model.module_of(name)}"] = expr
                found.whole.append(self.model.module_of(module))
        found.whole = [*dict.fromkeys(found.whole)]

    def _tensors_of(self, module: str) -> dict[str, TensorExpr]:
        """The tensors of a module in the tuned model by name. A head that is its table has that one's, and the bias
        that is called otherwise."""
        theirs = self._theirs
        tensors = {name: expr for name, expr in theirs.items() if name.startswith(f"{module}.")}
        for table, head in self.model.tables:
            if head is not None and module == head:
                tensors.setdefault(f"{head}.weight", theirs[f"{table}.weight"])
                if (bias := tied_bias(head, theirs)) is not None:
                    tensors[f"{head}.bias"] = theirs[bias]
        return tensors

    def _nothing(self, changed: Sequence[ModelPair], changes: Mapping[str, WeightChange]) -> Refusal:
        """That there is nothing to factorize. `changed`: all that differs; `changes`: of what LoRA may factorize."""
        if changes and (beside := self._beside(changed, changes)):
            names = few([repr(name) for name in beside])
            message = f"{names} differ, so that their modules are kept whole, and no matrix is left to factorize"
            hint = "Leave them out by naming the tensors that are meant: `of: PATTERN`. Or use the models as they are."
            return Refusal("adapter-extract", message, key="tuned", hint=hint)
        if changes and self.extent.least is not None:
            message = f"no singular value of a matrix that differs is above {self.extent.least:g}"
            return Refusal("adapter-extract", message, key="least", hint="Give a lower bound, or none.")
        if changes:
            message = f"of every matrix that differs, factors with {self.extent} take more than the matrix itself"
            hint = "Ask for less, or name a rank: `rank: 16`."
            return Refusal("adapter-extract", message, key="energy", hint=hint)
        message = f"no matrix of '{self.tuned}' differs from that of '{self.base}'"
        hint = "An adapter of LoRA needs one. Is `tuned` the model that is meant? If it is, use the models as they are."
        if matrices := [pair for pair in changed if len(pair.tuned.aval.shape) == 2]:
            message = f"LoRA adds factors to none of the matrices that differ: {few([pair.name for pair in matrices])}"
            hint = (
                "A router, a table of positions, a table that is the head as well, and what `whole` names have none: "
                "use the models as they are."
            )
            if any(pair.parameter != "weight" for pair in matrices):
                hint = "It does to parameters called `weight`: rename others in both models before, by `move`."
        return Refusal("adapter-extract", message, key="tuned", hint=hint)

    def _beside(self, changed: Sequence[ModelPair], changes: Mapping[str, WeightChange]) -> list[str]:
        """The parameters that differ, and for which modules of every matrix are kept whole."""
        modules = {change.pair.module for change in changes.values()}
        others = [p for p in changed if p.name not in changes and p.parameter != "bias" and p.module in modules]
        return [p.name for p in others] if modules <= {p.module for p in others} else []

    # --- its config

    def _config(self, found: AdapterParts) -> dict[str, object]:
        """The adapter_config.json: a scale of 1 for every module."""
        names = {self.model.module_of(name) for name in self.model.shapes}
        modules = {name.rpartition(".")[0] for name in names}
        low = [name for name in found.ranks if name not in found.stacks]
        usual = max(Counter(found.ranks.values()).items(), key=lambda item: (item[1], item[0]))[0]
        pattern = patterns_of({module: rank for module, rank in found.ranks.items() if rank != usual}, found.ranks)
        transposed = any(self.model.is_transposed(module) for module in found.ranks)
        stacked = {"target_parameters": words_of(found.stacks, names, anywhere=False)} if found.stacks else {}
        return {
            "peft_type": "LORA",
            "task_type": self.model.task,
            "base_model_name_or_path": self.model.config.get("_name_or_path") or self.view.origin(self.base),
            "r": usual,
            "lora_alpha": usual,
            "rank_pattern": pattern,
            "alpha_pattern": pattern,
            "target_modules": words_of(low, modules, anywhere=False),
            **stacked,
            "modules_to_save": words_of(found.whole, modules, anywhere=True),
            "fan_in_fan_out": transposed,
            "bias": "all" if found.biased else "none",
            "lora_dropout": 0.0,
            "use_rslora": False,
            "use_dora": False,
            "inference_mode": True,
        }
