"""How near steered SmolLM2 comes to target shares: ``python tests/benchmarks/steering.py --data DATA --out DIR``.

The targets are the shares of women in 60 occupations (US labour statistics, as in Winogender). 10 occupations, drawn
with a fixed seed, are held out: nothing is trained or fitted on their targets. Two new tokens are trained once, on
one-word answers, and two on beginnings of stories that the model itself wrote about persons of a known gender; their
output rows are then fitted to the targets. Stories are asked for in phrasings that were not trained on. Parts, each of
which stores what it found and is not done again: see ``--parts``. Take a fresh folder where the code has changed.
Some two hours on a free CPU core (OMP_NUM_THREADS=1); ``--quick`` takes a few minutes and proves nothing.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpf_chains import ChatTransformers
from mpf_chains.benchmarks import read_benchmark
from mpf_chains.evaluation import VerbalizedSampling, evaluate, measure_shares, prompted_target
from mpf_chains.features import attribute_feature
from mpf_chains.local import load_smollm2
from mpf_chains.local.prompt import write_prompt
from mpf_chains.local.steering import (
    GENDER_PROBES,
    Answer,
    Readings,
    Steered,
    SteeringAdapter,
    SteeringData,
    SteeringTokens,
    SteeringTrainer,
    calibrate,
    infer_targets,
    prompts_about,
    read_contrasts,
    read_states,
    refit,
    write_answers,
)
from mpf_chains.local.steering.calibration.states import last_states
from mpf_chains.targets import Prompt, TargetTable, fill, fit_joint, phrasings, read_winogender_targets

SEED = 0
HELD_OUT = 10
SPLITS = 20
PARTS = ("answers", "stories", "held_out", "baselines", "settings", "ablations", "retention", "speed")
GENDER = {"gender": ("female", "male")}
RACES = ("white", "black", "asian", "hispanic", "indigenous")
US = {"white": 0.62, "black": 0.12, "asian": 0.06, "hispanic": 0.18, "indigenous": 0.02}  # rounded, for the joint table
SENTIMENTS = {
    "positive": [
        "The {context} loves the work and had a wonderful, happy day.",
        "It was a great day: the {context} did excellent work and everybody was pleased.",
        "With joy and pride the {context} helped a good friend.",
    ],
    "neutral": [
        "The {context} arrived at nine and left at five.",
        "The {context} works in a building near the river.",
        "At noon the {context} read a report and went to another room.",
    ],
    "negative": [
        "The {context} had a terrible day and went home sad and angry.",
        "It was an awful mistake, and the {context} was blamed for the damage.",
        "Nobody liked the lonely {context}, who hated the miserable work.",
    ],
}
ASK = phrasings("answers", GENDER, "train")
ASK_OTHERWISE = phrasings("answers", GENDER, "held_out")
TELL = phrasings("stories", GENDER, "train")
TELL_OTHERWISE = phrasings("stories", GENDER, "held_out")
PERSONS = {name: [f"{name} {{context}}"] for name in GENDER["gender"]}
SETTINGS: dict[str, Any] = {
    "loss": "kto", "rank": None, "sft_steps": 20, "steps": 140, "learning_rate": 1e-2, "batch": 6, "sft_weight": 0.3,
    "longest": 24, "held_out": 0.06, "progress": False,
}  # fmt: skip
SHORT: dict[str, Any] = {"sft_steps": 20, "steps": 30, "batch": 8, "longest": 16}  # for answers of one word
LONGER: dict[str, Any] = {"sft_steps": 60, "steps": 140, "batch": 8, "longest": 16}  # of several, and of many classes
ABLATIONS: dict[str, dict[str, Any]] = {
    "sft": {"loss": "sft", "sft_steps": 50}, "dpo": {"loss": "dpo", "batch": 4}, "kl": {"loss": "kl"},
    "kl+kto": {"loss": "kl+kto"}, "kl+kto, LoRA": {"loss": "kl+kto", "rank": 8, "learning_rate": 1e-3},
}  # fmt: skip


class Experiment:
    """The stages, each of which stores what it has found."""

    def __init__(self, data: Path, out: Path, *, quick: bool) -> None:
        self.data, self.out, self.quick = data, out, quick
        self.targets = read_winogender_targets(data / "winogender")
        order = np.random.default_rng(SEED).permutation(len(self.targets))
        names = [self.targets.contexts[i] for i in order]
        self.known = self.targets.select(names[: 12 if quick else -HELD_OUT])
        self.held_out = self.targets.select(names[-2 if quick else -HELD_OUT :])
        self.model, self.tokenizer = load_smollm2(dtype="float32", device="cpu")

    def stored(self, name: str, make: Callable[[], Any]) -> Any:
        """What was found, or what is found now."""
        file = self.out / f"{name}.json"
        if not file.is_file():
            started = time.process_time()
            found = make()
            file.parent.mkdir(parents=True, exist_ok=True)
            draft = file.with_suffix(".draft")
            draft.write_text(json.dumps({"cpu_s": time.process_time() - started, "found": found}, indent=1), "utf-8")
            draft.replace(file)
        return json.loads(file.read_text("utf-8"))["found"]

    def chat(self, **settings: Any) -> ChatTransformers:
        """The model, steered or not."""
        own: dict[str, Any] = {"temperature": 0.7, "top_p": 0.9, "max_tokens": 48, "max_batch_size": 50}
        return ChatTransformers(model=self.model, tokenizer=self.tokenizer, **own | settings)

    # Training

    def written(self) -> list[Answer]:
        """Beginnings of stories by the model itself, about persons of a known gender."""
        classify = attribute_feature("gender", self.known.classes, "stories").classify
        writer = self.chat(max_tokens=SETTINGS["longest"] + 4)
        found = self.stored(
            "written",
            lambda: write_answers(writer, self.known.contexts, TELL, PERSONS, classify, whole=False),
        )
        return [Answer(*each) for each in found]

    def answers(self) -> SteeringData:
        """One-word answers in all phrasings that are for training."""
        words = {"female": ["Female"], "male": ["Male"]}
        return SteeringData.build(self.known, ASK, words, per_context=1, classes="even")

    def answers_by_target(self) -> SteeringData:
        """One-word answers whose classes are as frequent as the targets say, for losses that need it."""
        words = {"female": ["Female"], "male": ["Male"]}
        return SteeringData.build(self.known, ASK[:2], words, per_context=4, classes="target")

    def stories(self) -> SteeringData:
        """Beginnings of stories, most with one about a person of another gender beside it."""
        return SteeringData.of_answers(self.known, self.written())

    def adapter(self, name: str, data: SteeringData, tokens: SteeringTokens, **settings: Any) -> SteeringAdapter:
        """Train, or take what was trained."""
        few = {"sft_steps": 2, "steps": 2} if self.quick else {}
        trainer = SteeringTrainer(self.model, self.tokenizer, **SETTINGS | settings | few)
        started = time.process_time()
        trained = trainer.train(data, tokens, self.out / "adapters" / name)
        used = time.process_time() - started
        print(f"{name}: {len(data.rows)} rows, {used:.0f} s of CPU (now)")
        self.stored(f"adapters/{name}", lambda: {"cpu_s": used, "rows": len(data.rows)})
        return trained.adapter

    @cached_property
    def answering(self) -> SteeringAdapter:
        """Tokens that decide a one-word answer."""
        return self.adapter("answers", self.answers(), SteeringTokens("gender", GENDER["gender"]), **SHORT)

    @cached_property
    def telling(self) -> SteeringAdapter:
        """Tokens that decide a story."""
        settings = {"plain_opening": True, "sft_weight": 1.0}
        return self.adapter("stories", self.stories(), SteeringTokens("gender", GENDER["gender"]), **settings)

    # Held-out occupations

    def readings(self, name: str) -> Readings:
        """What the model knows about all occupations: "contrasts", or "states" where an answer begins."""
        file, names = self.out / f"{name}.npz", self.targets.contexts
        fields = ("states", "rest", "logits")
        if not file.is_file():
            if name == "contrasts":
                found = read_contrasts(self.chat(), names, GENDER_PROBES)
            else:
                tokens = SteeringTokens("gender", GENDER["gender"])
                found = read_states(self.model, self.tokenizer, prompts_about(names, ASK[:1]), tokens)
            self.out.mkdir(parents=True, exist_ok=True)
            np.savez(file.with_suffix(".draft.npz"), **{key: getattr(found, key) for key in fields})
            file.with_suffix(".draft.npz").replace(file)
        with np.load(file) as stored:
            return Readings(stored["states"], stored["rest"], stored["logits"], names)

    def part_held_out(self) -> Any:
        """Errors of the shares themselves, in many splits."""
        contrasts, states, table = self.readings("contrasts"), self.readings("states"), self.targets
        women = table.flat[:, 0]
        zero = self.zero_shot_shares()
        found: dict[str, dict[str, list[float]]] = {}
        for size in (30, 50):
            generator, errors = np.random.default_rng(SEED), found.setdefault(f"{size} known", {})
            for _ in range(2 if self.quick else SPLITS):
                order = generator.permutation(len(table))
                inside, outside = order[:size], order[30:40] if size == 30 else order[50:]
                known = table.select([table.contexts[i] for i in inside])

                def add(name: str, shares: Any, judged: Any = outside, errors: Any = errors) -> None:
                    errors.setdefault(name, []).append(float(np.abs(np.asarray(shares) - women[judged]).mean()))

                add("constant", np.full(len(outside), women[inside].mean()))
                for name, shares in zero.items():
                    add(name, shares[outside])
                inferred, _ = infer_targets(contrasts, known)
                by_name = {name: inferred[name]["female"] for name in inferred.contexts}
                guessed = np.array([by_name[table.contexts[i]] for i in outside])
                add("inferred from contrasts", guessed)
                rows = calibrate(states.take(inside), known, ridge=1e-4).fit.rows
                add("draw=model, occupation unknown when fitted", states.take(outside).shares(rows)[:, 0])
                add("draw=model, trained occupations", states.take(inside).shares(rows)[:, 0], inside)
                both = np.concatenate([inside, outside])
                names = [table.contexts[i] for i in outside]
                wider = joined(known, TargetTable(GENDER, names, np.column_stack([guessed, 1 - guessed])))
                rows = calibrate(states.take(both), wider, ridge=1e-4).fit.rows
                add("draw=model, target inferred", states.take(outside).shares(rows)[:, 0])
        return {
            layout: {name: [float(np.mean(each)), float(np.std(each))] for name, each in errors.items()}
            for layout, errors in found.items()
        }

    def zero_shot_shares(self) -> dict[str, Any]:
        """Shares of women by the probabilities of words for them where the plain model begins its answer."""
        words = [["female", "woman", "she", "Female", "Woman", "She"], ["male", "man", "he", "Male", "Man", "He"]]
        found = {}
        for number, template in enumerate(ASK[: 1 if self.quick else 3]):
            prompts = prompts_about(self.targets.contexts, [template])
            ids = [[self.tokenizer.encode(word, add_special_tokens=False)[0] for word in some] for some in words]
            scores = self.stored(f"zero_shot/{number}", lambda p=prompts, i=ids: self._first(p, i))  # type: ignore[misc]
            found[f"zero-shot, phrasing {number + 1}"] = np.array(scores)
        return found

    def _first(self, prompts: Sequence[Prompt], ids: Sequence[Sequence[int]]) -> list[float]:
        shares: list[float] = []
        written = [write_prompt(self.tokenizer, [{"role": "user", "content": prompt.text}]) for prompt in prompts]
        for start in range(0, len(written), 20):
            with torch.inference_mode():
                _, logits = last_states(self.model, written[start : start + 20])
            women, men = (logits[:, list(each)].double().logsumexp(-1) for each in ids)
            shares += torch.sigmoid(women - men).tolist()
        return shares

    # Generations

    def asked(self, name: str, model: Any, table: TargetTable, template: str, count: int) -> dict[str, Any]:
        """Ask often about every context; what is stored are texts and, where steered, the classes drawn."""

        def make() -> Any:
            prompts = [fill(template, context) for context in table.contexts for _ in range(count)]
            replies = model.batch(prompts)
            texts = [str(reply.text) for reply in replies]
            drawn = [reply.response_metadata.get("steering", {}).get("class") for reply in replies]
            parts = {each: slice(i * count, (i + 1) * count) for i, each in enumerate(table.contexts)}
            return {each: {"texts": texts[part], "drawn": drawn[part]} for each, part in parts.items()}

        return dict(self.stored(f"texts/{name}", make))

    def measured(self, texts: Mapping[str, Any], table: TargetTable, kind: Any = "answers") -> dict[str, Any]:
        """Errors of shares, how many answers express a class, and how many of those have the one that was drawn."""
        names = list(table.attributes)
        features = [attribute_feature(name, table.attributes[name], kind) for name in names]
        found: dict[str, Any] = {}
        bound = [0, 0]
        for context, stored in texts.items():
            columns = [feature.classify(stored["texts"]) for feature in features]
            found[context] = columns[0] if len(names) == 1 else [list(each) for each in zip(*columns, strict=True)]
            for drawn, each in zip(stored["drawn"], zip(*columns, strict=True), strict=True):
                if drawn is not None and None not in each:
                    bound[0] += drawn == ", ".join(map(str, each))
                    bound[1] += 1
        result = measure_shares(found, table.select(texts))
        error, expressed = result["target_mae"], result["expressed"]
        every = [text for stored in texts.values() for text in stored["texts"]]
        return {
            "mae": error.value, "low": error.low, "high": error.high,
            "floor": error.floor.mean if error.floor else None,
            "expressed": expressed.value, "bound": bound[0] / bound[1] if bound[1] else None,
            "empty": float(np.mean([not text.strip() for text in every])), "generations": len(every),
            "distinct": [distinct(every, n) for n in (1, 2, 3)],
            "openings": Counter(" ".join(text.split()[:2]) for text in every).most_common(3),
        }  # fmt: skip

    @property
    def many(self) -> int:
        """Answers for each occupation."""
        return 4 if self.quick else 100

    def part_answers(self) -> Any:
        """One-word answers: drawn by quota and by the model, of known and of held-out occupations."""
        table = joined(self.known, self.inferred())
        prompts = prompts_about(table.contexts, ASK[:2])
        adapter, fit = refit(self.model, self.tokenizer, self.answering, prompts, targets=table)
        chat = self.chat(steering=adapter, max_tokens=6, max_batch_size=100)
        both = joined(self.known, self.held_out)
        quota = self.asked("answers_quota", chat.bind(draw="quota"), self.known, ASK[0], self.many)
        found = {"quota, known": self.measured(quota, self.known)}
        other = self.asked("answers_other", chat.bind(draw="quota"), self.known, ASK_OTHERWISE[0], self.many // 4)
        found["quota, known, other phrasing"] = self.measured(other, self.known)
        own = self.asked("answers_model", chat.bind(draw="model"), both, ASK[0], self.many)
        for name, table in (("model, known", self.known), ("model, held out", self.held_out)):
            found[name] = self.measured({context: own[context] for context in table.contexts}, table)
        steered = self.shares(adapter, ASK[0])
        otherwise = self.shares(adapter, ASK_OTHERWISE[0])
        for name, shares in (("trained", steered), ("other", otherwise)):
            for which, table in (("known", self.known), ("held out", self.held_out)):
                found[f"shares of draw=model, {name} phrasing, {which}"] = {"mae": self.error(shares, table)}
        found["fitted"] = {"mae": fit.fitted.mae, "mass": fit.fitted.mass}
        return found

    def shares(self, adapter: SteeringAdapter, template: str) -> dict[str, float]:
        """The model's own share of women in every occupation."""
        names = [*self.known.contexts, *self.held_out.contexts]
        ids = [write_prompt(self.tokenizer, [{"role": "user", "content": fill(template, each)}]) for each in names]
        steered = Steered(self.model, self.tokenizer, adapter)
        rows = np.concatenate([steered.shares(ids[start : start + 20]) for start in range(0, len(ids), 20)])
        return dict(zip(names, rows[:, 0].tolist(), strict=True))

    def inferred(self) -> TargetTable:
        """Targets of the held-out occupations, from contrasts and the known ones."""
        readings = self.readings("contrasts")
        names = [*self.known.contexts, *self.held_out.contexts]
        return infer_targets(readings.take([self.targets.contexts.index(name) for name in names]), self.known)[0]

    def part_stories(self) -> Any:
        """Stories in a phrasing that was not trained on, of known and of held-out occupations."""
        adapter, count = self.telling, 2 if self.quick else 16
        some = self.some
        # of held-out occupations the targets are known to the user who draws by quota, and to nothing that was trained
        chat = self.chat(steering=with_targets(adapter, joined(self.known, self.held_out)), draw="quota")
        found = {}
        for which, table in (("known", some), ("held out", self.held_out)):
            texts = self.asked(f"stories_{which}", chat, table, TELL_OTHERWISE[0], count)
            plain = self.asked(f"stories_{which}_plain", self.chat(), table, TELL_OTHERWISE[0], count)
            for name, each in ((f"quota, {which}", texts), (f"zero-shot, {which}", plain)):
                found[name] = self.measured(each, table, "stories") | {"perplexity": self.perplexity(each)}
            found[f"perplexity, {which}"] = self.ratio(texts, plain)
        return found

    def perplexity(self, texts: Mapping[str, Any]) -> float:
        """Of stories, by the plain model, behind their prompts; each token with the same weight."""
        return float(np.exp(np.concatenate(self.losses(texts)).mean()))

    def losses(self, texts: Mapping[str, Any]) -> list[Any]:
        """Of each occupation's stories: −log p of every token."""
        found = []
        for context, stored in texts.items():
            head = self.tokenizer.apply_chat_template(
                [{"role": "user", "content": fill(TELL_OTHERWISE[0], context)}],
                tokenize=False,
                add_generation_prompt=True,
            )
            pairs = [(str(head), text) for text in stored["texts"] if text.strip()]
            found.append(-np.concatenate([each for _, each in self.chat().log_likelihoods(pairs)]))
        return found

    def ratio(self, texts: Mapping[str, Any], plain: Mapping[str, Any]) -> dict[str, float]:
        """Of perplexities, with a 95 % interval over occupations."""
        ours, theirs = self.losses(texts), self.losses(plain)

        def mean(losses: Sequence[Any], some: Any) -> Any:
            return np.concatenate([losses[i] for i in some]).mean()

        def of(some: Any) -> float:
            return float(np.exp(mean(ours, some) - mean(theirs, some)))

        generator, n = np.random.default_rng(SEED), len(ours)
        low, high = np.quantile([of(generator.integers(0, n, n)) for _ in range(2000)], [0.025, 0.975])
        return {"ratio": of(range(n)), "low": float(low), "high": float(high)}

    @property
    def some(self) -> TargetTable:
        """Some of the known occupations, where all would take too long."""
        return self.known.select(self.known.contexts[: 2 if self.quick else 12])

    def part_baselines(self) -> Any:
        """The same question without steering."""
        plain = self.chat(max_tokens=8, temperature=1.0, top_p=1.0, max_batch_size=100)
        listing = VerbalizedSampling(model=plain.model_copy(update={"max_tokens": 48}))
        models = {
            "zero-shot": (plain, self.many), "prompted target": (prompted_target(plain, self.some), self.many // 2),
            "verbalized sampling": (listing, self.many // 10 + 1),
        }  # fmt: skip
        found = {}
        for name, (model, count) in models.items():
            found[name] = self.measured(self.asked(f"baseline {name}", model, self.some, ASK[0], count), self.some)
        found["verbalized sampling"]["fallback"] = listing.fallback_share
        return found

    def part_ablations(self) -> Any:
        """What other losses come to, without the fit of the rows: real answers, and stories; SFT and DPO among them."""
        found: dict[str, Any] = {}
        data, tokens = self.answers_by_target(), SteeringTokens("gender", GENDER["gender"])
        for name, settings in ABLATIONS.items():
            adapter = self.adapter(f"answers {name}", data, tokens, **SHORT | settings)
            shares = self.shares(adapter, ASK[0])
            for which, table in (("known", self.known), ("held out", self.held_out)):
                found[f"{name}, shares, {which}"] = {"mae": self.error(shares, table)}
            chat = self.chat(steering=adapter, max_tokens=6, max_batch_size=100)
            texts = self.asked(f"answers_{name}", chat.bind(draw="model"), self.some, ASK[0], self.many)
            found[f"{name}, answers, known"] = self.measured(texts, self.some)
        both = {answer.context for answer in self.written() if answer.cls == "female"} & {
            answer.context for answer in self.written() if answer.cls == "male"
        }
        paired = SteeringData.of_answers(self.known, [each for each in self.written() if each.context in both])
        dpo = self.adapter("stories dpo", paired, tokens, **{**SETTINGS, "loss": "dpo", "batch": 3})
        for name, adapter in (("sft", SteeringAdapter.load(self.out / "adapters" / "stories" / "sft")), ("dpo", dpo)):
            for which, table in (("known", self.some), ("held out", self.held_out)):
                chat = self.chat(steering=with_targets(adapter, joined(self.known, self.held_out)), draw="quota")
                texts = self.asked(f"stories_{name}_{which}", chat, table, TELL_OTHERWISE[0], 2 if self.quick else 8)
                figures = self.measured(texts, table, "stories") | {"perplexity": self.perplexity(texts)}
                found[f"stories, {name}, {which}"] = figures
        return found

    def error(self, shares: Mapping[str, float], table: TargetTable) -> float:
        """Mean absolute error of shares of women."""
        return float(np.mean([abs(shares[each] - table[each]["female"]) for each in table.contexts]))

    def part_settings(self) -> Any:
        """Other attributes and targets, one-word answers or sentences, of some occupations."""
        some = self.some
        names, found = some.contexts, {}
        race = TargetTable.uniform(names, {"race": RACES})
        us = TargetTable.constant(names, US, "race")
        sentiment = TargetTable.uniform(names, {"sentiment": tuple(SENTIMENTS)})
        tables = {
            "gender, uniform": TargetTable.uniform(names, GENDER), "race, uniform": race,
            "gender x race, joint": fit_joint([some, us]).table, "sentiment, uniform": sentiment,
        }  # fmt: skip
        for name, table in tables.items():
            ask = phrasings("answers", table.attributes, "train")
            answers = SENTIMENTS if "sentiment" in name else {each: [each.title()] for each in table.classes}
            data = SteeringData.build(table, ask, answers, per_context=2 * len(table.classes) // 2, classes="even")
            tokens = SteeringTokens(table.attribute, table.classes)
            settings = SHORT if len(table.attributes) == 1 and "sentiment" not in name else LONGER
            start = self.answering if name == "gender, uniform" else self.adapter(name, data, tokens, **settings)
            prompts = prompts_about(names, ask[:1])
            adapter, fit = refit(self.model, self.tokenizer, start, prompts, targets=table)
            chat = self.chat(steering=adapter, max_tokens=24 if "sentiment" in name else 8, max_batch_size=100)
            sentences = "sentiment" in name
            for draw in ("quota",) if sentences else ("quota", "model"):
                count = self.many // 4 if sentences else self.many
                texts = self.asked(f"{name}_{draw}", chat.bind(draw=draw), table, ask[0], count)
                found[f"{name}, {draw}"] = self.measured(texts, table)
            found[f"{name}, fitted"] = {"mae": fit.fitted.mae}
        return found

    def part_retention(self) -> Any:
        """WikiText-2 and StereoSet, before and after; rows alone touch no text without steering tokens."""
        found = {}
        lora = self.adapter(
            "answers kl+kto, LoRA", self.answers_by_target(), SteeringTokens("gender", GENDER["gender"]),
            **SHORT | ABLATIONS["kl+kto, LoRA"],
        )  # fmt: skip
        articles = read_benchmark("wikitext2", self.data / "wikitext2").items
        passages = [("", str(item.text)[:600]) for item in articles[: 2 if self.quick else 40]]
        clusters = read_benchmark("stereoset", self.data / "stereoset")
        for name, adapter in (("plain", None), ("rows alone", self.telling), ("LoRA", lora)):
            model = self.chat(steering=adapter)
            losses = np.concatenate([each for _, each in model.log_likelihoods(passages)])
            result = evaluate(model, clusters, method="likelihood", limit=8 if self.quick else 100, progress=False)
            found[name] = {
                "perplexity": float(np.exp(-losses.mean())), "tokens": len(losses),
                **{f"lm, {part}": result[f"{part}/stereoset_lm"].value for part in ("intrasentence", "intersentence")},
            }  # fmt: skip
        return found

    def part_speed(self) -> Any:
        """Seconds of CPU: to fit, and to write K stories of one prompt."""
        started = time.process_time()
        adapter, _ = refit(self.model, self.tokenizer, self.telling, prompts_about(self.known.contexts, TELL[:1]))
        found: dict[str, Any] = {"refit, one phrasing": time.process_time() - started}
        chat = self.chat(steering=adapter, draw="quota", max_tokens=32, max_batch_size=100)
        for count in (1, 8, 32):
            started = time.process_time()
            chat.batch([fill(TELL[0], self.known.contexts[0])] * count)
            found[f"{count} stories of a prompt, each"] = (time.process_time() - started) / count
        return found


def joined(one: TargetTable, other: TargetTable) -> TargetTable:
    """Both tables' contexts."""
    return TargetTable(one.attributes, [*one.contexts, *other.contexts], np.concatenate([one.joint, other.joint]))


def with_targets(adapter: SteeringAdapter, table: TargetTable) -> SteeringAdapter:
    """The adapter, drawn from another table."""
    return replace(adapter, targets=table)


def distinct(texts: Sequence[str], n: int) -> float:
    """Different n-grams of words by all of them."""
    grams = [
        tuple(words[i : i + n]) for words in (text.lower().split() for text in texts) for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / max(1, len(grams))


def show(name: str, found: Mapping[str, Any]) -> None:
    """Print a part's table."""
    print(f"\n== {name}")
    for row, figures in found.items():
        text = figures if not isinstance(figures, dict) else ", ".join(
            f"{key} {value:.3f}" if isinstance(value, float) else f"{key} {value}" for key, value in figures.items()
        )  # fmt: skip
        print(f"{row:50} {text}")


def main() -> None:
    """Run the parts and print what they found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with winogender, wikitext2, stereoset")
    parser.add_argument("--out", type=Path, required=True, help="folder for adapters, texts and figures")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--quick", action="store_true", help="a trial run: a little of everything")
    args = parser.parse_args()
    experiment = Experiment(args.data, args.out, quick=args.quick)
    for part in args.parts:
        show(part, experiment.stored(part, getattr(experiment, f"part_{part}")))


if __name__ == "__main__":
    main()
