"""Several adapters on one model as rows of one forward pass: the same as each of them merged into a copy of it."""

from __future__ import annotations

import copy
import gc
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from mpf_chains.errors import InvalidInput, NotSupportedError  # noqa: E402
from mpf_chains.local.experts import ExpertEnsemble, ExpertPair  # noqa: E402
from mpf_chains.local.experts.files.adapter import Adapter, read_adapter  # noqa: E402
from mpf_chains.local.experts.models.products import OneDNN  # noqa: E402
from mpf_chains.local.experts.models.variants import Variants, linear_head  # noqa: E402

TEXT = [1, 7, 9, 4, 20, 11]


def last(model: Any, ids: list[int]) -> Any:
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0, -1]


def test_each_row_is_what_its_merged_model_gives(setting: Any) -> None:
    names = [None, "e1", "a1", "e2"]
    variants = Variants(setting.small, [name and read_adapter(setting.folders[name]) for name in names])
    ids = torch.tensor([TEXT, TEXT[::-1]])
    states = variants.read(ids, None, variants.new_cache(), keep=3)
    for i, name in enumerate(names):
        logits = variants.logits(states, torch.eye(4)[i])
        with torch.no_grad():
            expected = setting.copies[name or "small"](ids).logits[:, -3:]
        torch.testing.assert_close(logits, expected, atol=2e-5, rtol=1e-5)
    assert linear_head(setting.small) is not None


def test_the_model_itself_is_untouched_and_hooks_go_with_their_owner(llama: Any) -> None:
    def hooks() -> set[int]:
        last(llama.small, TEXT)  # those without an owner take themselves off
        return {id(hook) for module in llama.small.modules() for hook in module._forward_hooks.values()}

    gc.collect()
    others, before = hooks(), last(llama.small, TEXT)  # other tests may have left some
    variants = Variants(llama.small, [read_adapter(llama.folders["e1"])])
    variants.read(torch.tensor([TEXT]), None, variants.new_cache())
    assert torch.equal(last(llama.small, TEXT), before)
    assert hooks() - others
    del variants
    assert not hooks() - others


def test_ranks_and_modules_may_differ_between_adapters(llama: Any, make_adapter: Any, tmp_path: Any) -> None:
    wide = make_adapter(tmp_path / "wide", llama.small, ["gate_proj", "q_proj", "lm_head"], 5, rank=7)
    pair = ExpertPair("g", wide, llama.folders["a1"], base=llama.small, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair])  # one adapter changes the head, so heads cannot be shared
    contrast = ensemble.logits(ensemble.reader().read(torch.tensor([TEXT])), torch.tensor([1.0]))[0, 0]
    expected = last(llama.merged(wide), TEXT) - last(llama.copies["a1"], TEXT)
    torch.testing.assert_close(contrast, expected, atol=5e-5, rtol=1e-5)


def test_strengths_may_differ_between_rows_and_the_untuned_model_may_be_part_of_the_sum(setting: Any) -> None:
    ensemble = ExpertEnsemble([setting.pair(), setting.pair("race", None, "a2")], untuned=True)
    assert [len(member) for member in ensemble.members] == [4]  # untuned (also for the missing half), e1, a1, a2
    alphas = torch.tensor([[0.5, -1.0], [0.0, 2.0]])
    logits = ensemble.logits(ensemble.reader().read(torch.tensor([TEXT] * 2)), alphas, untuned=1)[:, 0]
    small, e1, a1, a2 = (last(setting.copies[name], TEXT) for name in ("small", "e1", "a1", "a2"))
    for row, (one, two) in zip(logits, alphas, strict=True):
        torch.testing.assert_close(row, small + one * (e1 - a1) + two * (small - a2), atol=5e-5, rtol=1e-5)


def test_contributions_add_up(setting: Any) -> None:
    ensemble = ExpertEnsemble([setting.pair(), setting.pair("race", "e2", "a1")])
    assert [len(member) for member in ensemble.members] == [3]  # a1 is read once for both
    states = ensemble.reader().read(torch.tensor([TEXT]))
    parts, alphas = ensemble.contributions(states), torch.tensor([0.7, 0.3])
    torch.testing.assert_close(torch.einsum("rpcv,p->rcv", parts, alphas), ensemble.logits(states, alphas))


def test_full_models_are_experts_too(llama: Any, make_model: Any) -> None:
    other = make_model("gpt2", 8, width=24)
    pair = ExpertPair("g", other, llama.folders["a1"], base=llama.small, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair])
    assert len(ensemble.members) == 2
    contrast = ensemble.logits(ensemble.reader().read(torch.tensor([TEXT])), torch.tensor([2.0]))[0, 0]
    expected = 2 * (last(other, TEXT) - last(llama.copies["a1"], TEXT))
    torch.testing.assert_close(contrast, expected, atol=5e-5, rtol=1e-5)


def test_a_pair_on_the_base_itself_needs_one_forward_and_one_head(setting: Any, shapes: Any) -> None:
    """E(h_b + α (h_e − h_a)) is z + α (z⁺ − z⁻); base, expert and anti-expert are rows of one pass."""
    ensemble = ExpertEnsemble([setting.pair()], untuned=True)
    read, heads = shapes(setting.small.get_input_embeddings()), shapes(setting.small.get_output_embeddings())
    reader, ids = ensemble.reader(), [1, 7, 9]
    for _ in range(4):
        z = ensemble.logits(reader.read(torch.tensor([ids])), torch.tensor([0.8]), untuned=1)[0, 0]
        small, e1, a1 = (last(setting.copies[name], ids) for name in ("small", "e1", "a1"))
        torch.testing.assert_close(z, small + 0.8 * (e1 - a1), atol=5e-5, rtol=1e-5)
        ids.append(int(z.argmax()))
    assert [shape for shape in read if shape[0] == 3] == [(3, 3), (3, 1), (3, 1), (3, 1)]
    assert [shape[:3] for shape in heads if len(shape) == 4] == [(1, 1, 1)] * 4  # (rows, sums, columns)
    assert reader.positions == 3 + 3


def test_a_bias_of_the_head_counts_as_often_as_the_weights_say(make_model: Any, llama: Any) -> None:
    model = make_model("llama", 3)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.lm_head.out_features))
    variants = Variants(model, [None, read_adapter(llama.folders["e1"])])
    assert variants._head is not None
    states = variants.read(torch.tensor([TEXT]), None, variants.new_cache())
    one, two = (variants.logits(states, weights) for weights in torch.eye(2))
    torch.testing.assert_close(variants.logits(states, torch.tensor([-0.5, 2.0])), 2 * two - 0.5 * one)


def test_scaled_logits_are_not_taken_for_linear_ones(make_model: Any, llama: Any) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    capped = Gemma2ForCausalLM(Gemma2Config(
        vocab_size=29, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8, max_position_embeddings=32, final_logit_softcapping=3.0,
    )).eval()  # fmt: skip
    assert linear_head(capped) is None
    pair = ExpertPair("g", capped, llama.folders["a1"], base=llama.small, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair])
    contrast = ensemble.logits(ensemble.reader().read(torch.tensor([TEXT])), torch.tensor([1.0]))[0, 0]
    expected = last(capped, TEXT) - last(llama.copies["a1"], TEXT)
    torch.testing.assert_close(contrast, expected, atol=5e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft 0.21 under transformers 5
def test_what_peft_saves_gives_what_peft_computes(setting: Any, tmp_path: Any) -> None:
    peft = pytest.importorskip("peft")
    model, targets = copy.deepcopy(setting.small), ["q_proj", "v_proj", "c_attn"]
    targets = [name for name in targets if any(each.endswith(name) for each, _ in model.named_modules())]
    config = peft.LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, rank_pattern={targets[0]: 2}, alpha_pattern={"0.*" + targets[0]: 3},
        target_modules=targets, init_lora_weights=False, fan_in_fan_out="c_attn" in targets,
    )  # fmt: skip
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(tmp_path / "peft")
    variants = Variants(setting.small, [read_adapter(tmp_path / "peft")])
    states = variants.read(torch.tensor([TEXT]), None, variants.new_cache())
    expected = last(tuned.eval(), TEXT)
    torch.testing.assert_close(variants.logits(states, torch.ones(1))[0, 0], expected, atol=2e-5, rtol=1e-5)
    assert not torch.allclose(expected, last(setting.small, TEXT), atol=1e-2)


def test_rows_that_a_module_does_not_see_are_an_error(make_model: Any) -> None:
    model = make_model("llama", 3)
    name = "model.layers.0.self_attn.q_proj"
    adapter = Adapter("a", {name: (torch.ones(1, 32), torch.ones(32, 1))})
    one, two = Variants(model, [adapter]), Variants(model, [None, adapter])
    with one._lora.active(5):  # there is nothing to tell apart
        model.get_submodule(name)(torch.ones(1, 3, 32))
    with pytest.raises(NotSupportedError, match="q_proj"), two._lora.active(5):
        model.get_submodule(name)(torch.ones(2, 2, 32))


def test_bfloat16_rows_are_as_close_as_bfloat16_copies(llama: Any) -> None:
    small = copy.deepcopy(llama.small).bfloat16()
    pair = ExpertPair("g", llama.folders["e1"], llama.folders["a1"], small, tokenizer=llama.tokenizer)
    ensemble = ExpertEnsemble([pair])
    contrast = ensemble.logits(ensemble.reader().read(torch.tensor([TEXT])), torch.tensor([1.0]))[0, 0]
    exact = last(llama.copies["e1"], TEXT) - last(llama.copies["a1"], TEXT)
    expert, anti_expert = (copy.deepcopy(llama.copies[name]).bfloat16() for name in ("e1", "a1"))
    rounded = last(expert, TEXT).float() - last(anti_expert, TEXT).float()
    assert contrast.dtype == torch.float32
    assert (contrast - exact).norm() < 1.5 * (rounded - exact).norm() < 0.1 * exact.norm()


def test_products_are_the_models_own_and_leave_it_as_it_was(make_model: Any) -> None:
    model = make_model("llama", 3)
    model.lm_head.bias = torch.nn.Parameter(torch.randn(model.lm_head.out_features))
    models = {"float32": model, "bfloat16": copy.deepcopy(model).bfloat16(), "hooked": copy.deepcopy(model)}
    models["hooked"].lm_head.forward = models["hooked"].lm_head.forward  # as accelerate does
    for name, each in models.items():
        products, ids = OneDNN(each), torch.tensor([TEXT, TEXT[::-1]])
        modules = [module for module in each.modules() if type(module) is torch.nn.Linear]
        before = [vars(module).get("forward") for module in modules]
        with torch.inference_mode():
            expected = each(ids).logits
            with products.active():
                changed = sum(
                    vars(module).get("forward") is not old for module, old in zip(modules, before, strict=True)
                )
                torch.testing.assert_close(each(ids).logits, expected, atol=2e-5, rtol=1e-5)
        with products.active():
            assert each(ids).logits.requires_grad  # whoever trains it meanwhile
        assert changed == {"float32": len(modules), "bfloat16": 0, "hooked": len(modules) - 1}[name]
        assert [vars(module).get("forward") for module in modules] == before


def test_names_are_checked(llama: Any) -> None:
    ensemble = ExpertEnsemble([llama.pair()])
    with pytest.raises(InvalidInput, match=r"'age'.*gender"):
        ensemble.only(["age"])
    with pytest.raises(InvalidInput, match="'gender'"):
        ExpertEnsemble([llama.pair(), llama.pair()])
