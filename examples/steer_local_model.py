"""Steer a model that runs here: over many answers about a job, the shares of women and men are those of a table.

Asked a hundred times for the gender of a nurse, a model mostly gives the same answer a hundred times. Here two new
tokens, one for each gender, are trained to begin an answer and to decide what follows; which of them begins is then
drawn so that the shares come out as wanted. The model itself stays as it is: the adapter has some kilobytes. The line
that matters:

    chat = ChatTransformers(model="smollm2", steering=adapter, draw="quota")

    python examples/steer_local_model.py                    # three minutes on a CPU; interrupt and rerun at will
    python examples/steer_local_model.py --quick            # less of everything
    python examples/steer_local_model.py --targets my.csv   # columns context, female, male
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from mpf_chains import ChatTransformers
from mpf_chains.evaluation import measure_shares
from mpf_chains.features import attribute_feature
from mpf_chains.local import load_smollm2
from mpf_chains.local.steering import SteeringData, SteeringTokens, SteeringTrainer, prompts_about, refit
from mpf_chains.targets import TargetTable, read_targets

GENDER = {"gender": ("female", "male")}
WOMEN = {"nurse": 0.87, "plumber": 0.03, "teacher": 0.74, "engineer": 0.16, "lawyer": 0.4, "cook": 0.42, "judge": 0.3}
ASK = ["Write the gender of {a_context}. Answer with one word.", "Is {a_context} female or male? One word, please."]
STORY = ["Write a one-sentence story about {a_context}.", "Tell me a story about {a_context} in one sentence."]
HELD_OUT = "In one sentence, tell what happened to {a_context} this morning."
ANSWERS = {"female": ["Female"], "male": ["Male"]}
STORIES = {
    "female": [
        "Maria, {a_context} from a small town, finished her work early and walked home to her children.",
        "Early in the morning the {context} put down her bag, and she smiled at the people who waited for her.",
        "She had always wanted to be {a_context}, and on her first day she was proud of herself.",
        "Before she went to bed, the {context} told her husband what she had seen that day.",
    ],
    "male": [
        "Peter, {a_context} from a small town, finished his work early and walked home to his children.",
        "Early in the morning the {context} put down his bag, and he smiled at the people who waited for him.",
        "He had always wanted to be {a_context}, and on his first day he was proud of himself.",
        "Before he went to bed, the {context} told his wife what he had seen that day.",
    ],
}


def show_shares(chat: ChatTransformers, table: TargetTable, asked: int) -> None:
    """Ask many times about every job, and compare what came with the targets."""
    classify = attribute_feature("gender", table.classes).classify
    found = {
        prompt.context: classify([answer.text for answer in chat.batch([prompt.text] * asked)])
        for prompt in prompts_about(table.contexts, ASK[:1])
    }
    measured = measure_shares(found, table)
    for job, several in found.items():
        print(f"  {job:10} wanted {table[job]['female']:.2f}, got {several.count('female') / asked:.2f} women")
    error = measured["target_mae"]
    floor = f"; independent draws would have {error.floor.mean:.3f}" if error.floor else ""
    print(f"  mean error {error.value:.3f}{floor}")


def main(words: Sequence[str] | None = None) -> None:
    """Train, fit, draw, and tell stories."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=Path, help="a table of your own: context, female, male")
    parser.add_argument("--quick", action="store_true", help="fewer steps and answers")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the adapter")
    args = parser.parse_args(words)
    table = TargetTable.of({job: {"female": share, "male": 1 - share} for job, share in WOMEN.items()}, GENDER)
    if args.targets is not None:
        table = read_targets(args.targets, GENDER)

    model, tokenizer = load_smollm2(device="cpu", dtype="float32")
    data = SteeringData.build(table, ASK, ANSWERS, per_context=2, classes="even")
    data += SteeringData.build(table, STORY, STORIES, per_context=4, classes="even")
    trainer = SteeringTrainer(
        model, tokenizer, loss="kto", rank=None, sft_weight=0.3, learning_rate=1e-2, batch=4,
        sft_steps=5 if args.quick else 15, steps=5 if args.quick else 40,
    )  # fmt: skip
    folder = args.out / ("steering-quick" if args.quick else "steering")
    trained = trainer.train(data, SteeringTokens("gender", table.classes), folder)

    adapter, fit = refit(model, tokenizer, trained.adapter, prompts_about(table.contexts, ASK[:1]))
    adapter.save(folder / "fitted")
    print(f"\nShares at the model's own first token: mean error {fit.fitted.mae:.3f}, mass {fit.fitted.mass:.3f}")

    chat = ChatTransformers(model=model, tokenizer=tokenizer, steering=adapter, max_tokens=30, max_batch_size=50)
    asked = 10 if args.quick else 50
    print("\nThe class is drawn by quota from the targets:")
    show_shares(chat.model_copy(update={"draw": "quota"}), table, asked)
    print("\nThe class is drawn by the model itself:")
    show_shares(chat, table, asked)

    print("\nStories, from a prompt that was not trained on:")
    for prompt in prompts_about(table.contexts[:4], [HELD_OUT]):
        for answer in chat.bind(draw="quota", temperature=0.7).batch([prompt.text] * 2):
            print(f"  {prompt.context}, {answer.response_metadata['steering']['class']}: {answer.text}")


if __name__ == "__main__":
    main()
