"""Steer a model that runs here: over many answers about a job, the shares of women and men are those of a table.

Asked a hundred times for the gender of a nurse, a model mostly gives the same answer a hundred times. Here two new
tokens, one for each gender, are trained to begin an answer and to decide what follows; which of them begins is then
drawn so that the shares come out as wanted. The model itself stays as it is: the adapter has some kilobytes. The line
that matters:

    chat = ChatTransformers(model="smollm2", steering=adapter, draw="quota")

    python examples/steer_local_model.py                    # a minute or two on a CPU; interrupt and rerun at will
    python examples/steer_local_model.py --quick            # fewer answers
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
ANSWERS = {"female": ["Female"], "male": ["Male"]}


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
    """Train, fit, and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", type=Path, help="a table of your own: context, female, male")
    parser.add_argument("--quick", action="store_true", help="fewer answers")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the adapter")
    args = parser.parse_args(words)
    table = TargetTable.of({job: {"female": share, "male": 1 - share} for job, share in WOMEN.items()}, GENDER)
    if args.targets is not None:
        table = read_targets(args.targets, GENDER)

    model, tokenizer = load_smollm2(device="cpu", dtype="float32")
    data = SteeringData.build(table, ASK, ANSWERS, per_context=2, classes="even")
    trainer = SteeringTrainer(
        model, tokenizer, loss="kto", rank=None, sft_weight=0.3, learning_rate=1e-2, sft_steps=20, steps=15
    )
    folder = args.out / "steering"
    trained = trainer.train(data, SteeringTokens("gender", table.classes), folder)

    adapter, fit = refit(model, tokenizer, trained.adapter, prompts_about(table.contexts, ASK[:1]))
    adapter.save(folder / "fitted")
    print(f"\nShares at the model's own first token: mean error {fit.fitted.mae:.3f}, mass {fit.fitted.mass:.3f}")

    chat = ChatTransformers(model=model, tokenizer=tokenizer, steering=adapter, max_tokens=4, max_batch_size=50)
    asked = 20 if args.quick else 100
    print("\nThe class is drawn by quota from the targets:")
    show_shares(chat.model_copy(update={"draw": "quota"}), table, asked)
    print("\nThe class is drawn by the model itself:")
    show_shares(chat, table, asked)


if __name__ == "__main__":
    main()
