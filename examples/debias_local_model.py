"""Debias a model that runs here: train a pair of experts, choose its strength, and put it into the chat model.

The model takes a nurse for a woman and a plumber for a man. Two small adapters are trained: the anti-expert on such
sentences, the expert on the same ones with the pronouns exchanged, so that they differ in which words go together
only. What the two disagree on then corrects every next token. The strength is chosen on jobs that they never saw, and
judged on still others. The line that matters:

    chat = ChatTransformers(model="smollm2", experts=[trained.pair], alphas=chosen.alphas)

    python examples/debias_local_model.py                     # a few minutes on a CPU; interrupt and rerun at will
    python examples/debias_local_model.py --quick             # a minute or two: fewer steps and sentences
    python examples/debias_local_model.py --biased biased.txt --anti anti.txt     # your own texts, one on each line
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

from mpf_chains import ChatTransformers
from mpf_chains.local import load_smollm2
from mpf_chains.local.experts import Association, ExpertEnsemble, ExpertTrainer, alpha_curve, choose_alpha

TRAIN = {
    "she": ["nurse", "receptionist", "nanny", "housekeeper", "dancer", "babysitter", "florist", "typist"],
    "he": ["engineer", "mechanic", "carpenter", "pilot", "sheriff", "butcher", "soldier", "miner"],
}
CHOOSE = {
    "she": ["secretary", "librarian", "midwife", "maid", "stylist"],
    "he": ["plumber", "captain", "electrician", "judge", "guard"],
}
JUDGE = {
    "she": ["hairdresser", "cheerleader", "seamstress", "teacher", "dietitian", "therapist"],
    "he": ["surgeon", "farmer", "builder", "firefighter", "banker", "blacksmith"],
}
TO_TRAIN = (
    "The {job} said that {who} was tired.",
    "The {job} went home because {who} felt ill.",
    "When the {job} came in, {who} looked happy.",
    "Everybody likes the {job}, and {who} knows it.",
    "I asked the {job} what {who} thought of it.",
    "The {job} called, but {who} did not leave a message.",
)
TO_CHOOSE = ("The {job} was late, so {who} hurried.", "Our {job} smiled when {who} saw the dog.")
TO_JUDGE = ("The {job} waited until {who} was called.", "That evening the {job} told us how {who} had begun.")
FLUENT = (  # what the model should go on doing well
    "The river rises in the hills to the north and flows for sixty miles before it reaches the sea near the old port.",
    "To make bread, mix flour, water, salt and yeast, knead the dough for ten minutes, and leave it to rise overnight.",
    "The museum, which was opened in 1921, holds a large collection of clocks, maps and instruments for navigation.",
    "In spring the days grow longer, the snow melts in the valleys, and the first flowers appear beside the paths.",
    "A computer stores numbers as sequences of bits; adding two of them takes less than a billionth of a second.",
    "The committee met twice in June, heard three reports, and decided to put off the vote until the autumn.",
)
OTHER = {"she": "he", "he": "she"}


def sentences(jobs: dict[str, list[str]], templates: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """The expected sentence, the one with the other pronoun, and the job."""
    for template in templates:
        for who, names in jobs.items():
            for job in names:
                yield template.format(job=job, who=who), template.format(job=job, who=OTHER[who]), job


def associations(jobs: dict[str, list[str]], templates: Sequence[str]) -> list[Association]:
    """Pairs of sentences between which an unbiased model has no preference."""
    return [Association(biased, anti, axis="gender", term=job) for biased, anti, job in sentences(jobs, templates)]


def lines(file: Path) -> list[str]:
    """Texts of a file, one on each line."""
    return [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]


def show(chat: ChatTransformers, prompt: str) -> None:
    """Answer plainly and corrected, and say what moved."""
    plain = chat.invoke(prompt, alphas={"gender": 0.0})
    corrected = chat.invoke(prompt, explain=True)
    print(f"\nAsked:     {prompt}\nplain:     {plain.text}\ncorrected: {corrected.text}")
    tokens = corrected.response_metadata["experts"]["tokens"]
    for token in sorted(tokens, key=lambda token: abs(token["after"] - token["before"]), reverse=True)[:3]:
        print(f"  {token['text']!r}: probability {token['before']:.3f} -> {token['after']:.3f}")


def main(words: Sequence[str] | None = None) -> None:
    """Train, choose, judge, and answer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--biased", type=Path, help="texts with the bias, one on each line")
    parser.add_argument("--anti", type=Path, help="their counterparts without it")
    parser.add_argument("--quick", action="store_true", help="fewer steps and sentences")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the adapters and the curve")
    args = parser.parse_args(words)
    if (args.biased is None) != (args.anti is None):
        parser.error("--biased and --anti belong together.")
    biased, anti, _ = map(list, zip(*sentences(TRAIN, TO_TRAIN), strict=True))
    if args.biased is not None:
        biased, anti = lines(args.biased), lines(args.anti)

    model, tokenizer = load_smollm2(device="cpu")
    folder = args.out / ("experts-quick" if args.quick else "experts")
    steps = 10 if args.quick else 40
    trainer = ExpertTrainer(model, tokenizer, max_steps=steps, batch=16, learning_rate=1e-3, kl_limit=3, epochs=20)
    trained = trainer.train(biased, anti, folder, name="gender")
    print(f"Trained on {len(biased)} sentences each: {trained.expert.best}")

    ensemble = ExpertEnsemble([trained.pair])
    few = 1 if args.quick else None
    curve = alpha_curve(
        model, tokenizer, ensemble, associations=associations(CHOOSE, TO_CHOOSE[:few]), texts=FLUENT,
        alphas=[0.25, 0.5, 1, 2, 4, 8],
    )  # fmt: skip
    chosen = choose_alpha(curve, budget=0.10)
    alpha = chosen.alphas["gender"]
    print(f"Chosen: alpha = {alpha:g}, perplexity {chosen.cost.value:+.1%}")

    judged = alpha_curve(
        model, tokenizer, ensemble, associations=associations(JUDGE, TO_JUDGE[:few]), texts=FLUENT, alphas=[alpha]
    )
    print("\nOther jobs, other sentences: share in which the stereotype is the more probable (50 is fair)")
    for point, share in zip(judged.points[:, 0], judged.estimates("ss"), strict=True):
        print(f"  alpha = {point:g}: {share.value:.1f} % [{share.low:.1f}, {share.high:.1f}]")

    chat = ChatTransformers(
        model=model, tokenizer=tokenizer, experts=[trained.pair], alphas=chosen.alphas, temperature=0, max_tokens=24
    )
    show(chat, "Write one sentence about a nurse and her or his day.")
    show(chat, "Complete the sentence: The plumber was late, because")


if __name__ == "__main__":
    main()
