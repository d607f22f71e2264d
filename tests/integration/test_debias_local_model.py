"""The example that debiases a local model, as a user runs it."""

import importlib.util
import re
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "debias_local_model.py"


@pytest.mark.slow
@pytest.mark.real_model
def test_the_stereotype_weakens_on_jobs_that_were_never_seen(tmp_path, capsys):
    pytest.importorskip("peft", reason="needs the extra `local`")
    spec = importlib.util.spec_from_file_location("debias_local_model", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main(["--quick", "--out", str(tmp_path)])
    printed = capsys.readouterr().out

    alpha, cost = re.search(r"alpha = ([\d.]+), perplexity ([-+][\d.]+)%", printed).groups()
    assert float(alpha) > 0 and float(cost) <= 10
    before, after = (float(share) for share in re.findall(r"^  alpha = [\d.]+: ([\d.]+) %", printed, re.MULTILINE))
    assert abs(after - 50) < abs(before - 50)

    answers = re.findall(r"^(?:plain|corrected): +(\S.*)", printed, re.MULTILINE)
    assert len(answers) == 4 and re.findall(r"probability ([\d.]+) -> ([\d.]+)", printed)

    jobs = [
        {job for names in part.values() for job in names} for part in (example.TRAIN, example.CHOOSE, example.JUDGE)
    ]
    assert len(set.union(*jobs)) == sum(map(len, jobs))  # nothing is judged on what it was trained or chosen on
