"""Training the demo model: a toy learns, and what was trained is what hybrid-k2 then runs."""

from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from demo_k2 import evaluate, export, report
from demo_k2.model import TrainingK2, init_weights
from demo_k2.optimiser import balance, orthogonal
from demo_k2.samples import Batches, Samples
from demo_k2.shape import CONFIG, dense_baseline
from demo_k2.train import Recipe, Training, mean_loss, q4_0
from gguf_factory import transformers_model

from hybrid_k2 import Engine
from hybrid_k2.checkpoint.gguf_writer import tensor_shapes
from hybrid_k2.config import K2Config
from hybrid_k2.demo_model.build_vocabulary import NUM_CONTROL_IDS

TOKENS = [chr(0x100 + i) for i in range(68)] + [  # GPT-2's letters for the 256 bytes
    chr(i) for i in [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
]
VOCAB_SIZE = len(TOKENS) + NUM_CONTROL_IDS


def toy(**changes) -> K2Config:
    shape = dict(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=64,
        n_routed_experts=12,
        num_experts_per_tok=4,
        num_hidden_layers=3,
        num_attention_heads=2,
        q_lora_rank=32,
        kv_lora_rank=32,
        v_head_dim=32,
    )
    return replace(CONFIG, **(shape | changes))


def echoes(count: int, seed: int = 0) -> Samples:
    """Sequences whose second half repeats the first."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(0, 16, (count, 10))
    return Samples.of([([*half, *half], [0] * 10 + [100] * 10) for half in halves])


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_toy_learns_and_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    batches = Batches(echoes(64), 128 * 8, "cpu")
    training = Training(toy(), Recipe(budget_s=1e9, warm_up=0, decay_from=1), "cpu")
    losses = [training.step(batch).item() for _ in range(3) for batch in batches.epoch(None)]
    assert losses[-1] < 0.8 * losses[0]
    before = mean_loss(training.model, training.weights, batches)
    training.save(tmp_path / "training.pt")
    again = Training(toy(), Recipe(budget_s=1e9), "cpu")
    again.resume(tmp_path / "training.pt")
    assert again.num_steps == training.num_steps and again.num_tokens == training.num_tokens
    assert mean_loss(again.model, again.weights, batches) == pytest.approx(before)


def test_training_goes_on_from_an_exported_file(tmp_path: Path) -> None:
    config, batches = toy(), Batches(echoes(64), 128 * 8, "cpu")
    first = Training(config, Recipe(budget_s=1e9, warm_up=0, decay_from=1, quantised_from=0), "cpu")
    for _ in range(3):
        for batch in batches.epoch(None):
            first.step(batch)
    export.write_gguf(first.weights, config, TOKENS, tmp_path / "toy.gguf")
    stored = export.rounded(first.weights, {"Q4_0": q4_0, "Q8_0": report.q8_0})
    again = Training(config, Recipe(budget_s=1e9, warm_up=0), "cpu")
    again.load(export.read_gguf(tmp_path / "toy.gguf")[1])
    losses = [mean_loss(again.model, w, batches) for w in (again.weights, stored)]
    # kv_b is stored as two tensors, one of them transposed, so its blocks of 32 are others.
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert losses[0] < 0.9 * mean_loss(again.model, init_weights(config, 9), batches)
    for batch in batches.epoch(None):
        again.step(batch)
    assert mean_loss(again.model, again.weights, batches) < losses[0]


def test_the_schedule_rises_stays_and_falls() -> None:
    recipe = Recipe(budget_s=100, learning_rate=1.0)
    rates = [recipe.rate_at(share) for share in (0, 0.01, 0.1, 0.39, 0.7, 0.999)]
    assert rates[0] == 0 and rates[2] == rates[3] == 1.0
    assert rates[0] < rates[1] < rates[2] and rates[3] > rates[4] > rates[5] > 0


def test_hybrid_k2_computes_what_was_trained(tmp_path: Path) -> None:
    config, torch_generator = toy(), torch.Generator().manual_seed(1)
    weights = init_weights(config, 3)
    for name, weight in weights.items():
        noise = torch.randn(weight.shape, generator=torch_generator)
        weights[name] = weight + 0.1 * noise
    file = tmp_path / "toy.gguf"
    export.write_gguf(weights, config, TOKENS, file, lambda name: "F32")
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE, 70).tolist()
    with torch.no_grad():
        expected = TrainingK2(config).logits(weights, torch.tensor([ids, ids[::-1]])).numpy()
    with Engine.open(file) as engine:
        logits = engine.logits(ids)
    assert np.abs(logits - expected[:70]).max() <= 1e-4 * expected.std()
    read_config, read = export.read_gguf(file)
    assert replace(read_config, eos_token_ids=()) == config
    assert all(torch.equal(weights[name], read[name]) for name, _ in tensor_shapes(config))


def test_gradients_are_those_of_transformers() -> None:
    pytest.importorskip("transformers")
    config = toy()
    weights = init_weights(config, 3)
    for name, weight in weights.items():
        if name.endswith("down_proj.weight"):  # or what experts do would hardly show
            weight *= 5
        weight.requires_grad_(not name.endswith("e_score_correction_bias"))
    whole = {
        part: values
        for name, weight in weights.items()
        for part, values in expert_by_expert(name, weight.detach().numpy())
    }
    oracle = transformers_model(config, whole)
    ids = torch.randint(0, VOCAB_SIZE, (2, 40), generator=torch.Generator().manual_seed(4))
    targets = ids.roll(-1, 1)
    loss, _ = TrainingK2(config).loss(weights, ids, targets, torch.ones(ids.shape))
    loss.backward()
    theirs = torch.nn.functional.cross_entropy(oracle(ids).logits.flatten(0, 1), targets.flatten())
    theirs.backward()
    assert loss.item() == pytest.approx(theirs.item(), rel=1e-5)
    expected = {name: parameter.grad for name, parameter in oracle.named_parameters()}
    for name, weight in weights.items():
        if weight.grad is None:
            continue
        if ".mlp.experts." in name:
            layer, _, key = name.removesuffix(".weight").rpartition(".")
            gate_up = expected.get(f"{layer}.gate_up_proj")
            halves = dict(zip(("gate_proj", "up_proj"), gate_up.chunk(2, 1), strict=True))
            grad = halves.get(key, expected[f"{layer}.down_proj"])
        else:
            grad = expected[name]
        assert (weight.grad - grad).norm() <= 1e-3 * grad.norm(), name


def expert_by_expert(name: str, values: np.ndarray):
    """Hugging Face's names: one tensor an expert."""
    if ".mlp.experts." not in name:
        yield name, values
        return
    prefix, rest = name.split(".experts.")
    for expert_id, expert in enumerate(values):
        yield f"{prefix}.experts.{expert_id}.{rest}", expert


def test_the_stored_types_are_those_of_a_k2_file(tmp_path: Path) -> None:
    config = toy()
    file = tmp_path / "toy.gguf"
    export.write_gguf(init_weights(config, 1), config, TOKENS, file)
    types = {t.name: t.tensor_type.name for t in gguf.GGUFReader(file).tensors}
    assert types["blk.1.ffn_down_exps.weight"] == types["blk.2.ffn_up_exps.weight"] == "Q4_0"
    assert types["blk.1.ffn_gate_inp.weight"] == types["blk.0.attn_norm.weight"] == "F32"
    assert types["blk.0.attn_k_b.weight"] == types["output.weight"] == "Q8_0"


@pytest.mark.parametrize("name, ours", [("Q4_0", q4_0), ("Q8_0", report.q8_0)])
def test_rounding_is_what_the_gguf_package_stores(name: str, ours) -> None:
    weights = np.random.default_rng(0).standard_normal((40, 96), np.float32)
    weights[3] = 0
    kind = gguf.GGMLQuantizationType[name]
    stored = gguf.quants.dequantize(gguf.quants.quantize(weights, kind), kind)
    assert np.array_equal(ours(torch.from_numpy(weights)).numpy(), stored)


def test_balancing_moves_tokens_to_idle_experts() -> None:
    config = toy(num_hidden_layers=2)
    weights = init_weights(config, 1)
    # One direction that every token has makes three experts everybody's first choice.
    weights["model.embed_tokens.weight"] += 1
    weights["model.layers.1.mlp.gate.weight"][:3] += 0.2
    model = TrainingK2(config)
    ids = torch.randint(0, VOCAB_SIZE, (4, 64), generator=torch.Generator().manual_seed(0))

    def spread() -> float:
        _, loads = model.hidden(weights, ids)
        balance(weights, config, loads, torch.tensor(0.02))
        return (loads[0].max() / loads[0].float().mean()).item()

    spreads = [spread() for _ in range(60)]
    assert spreads[-1] < 0.75 * spreads[0]


def test_orthogonal_updates_have_singular_values_near_one() -> None:
    matrices = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    for update in (orthogonal(matrices), orthogonal(matrices.mT)):
        values = torch.linalg.svdvals(update)
        assert 0.6 < values.min() and values.max() < 1.3


def test_rows_start_at_a_dialogue_and_count_nothing_behind_it() -> None:
    samples = Samples.of([([1, 2, 3], [0, 100, 100]), ([4] * 300, [100] * 300), ([7] * 2000, [])])
    assert len(samples) == 2  # longer than any row: left out
    short, long = Batches(samples, 256, "cpu").epoch(None)
    assert short.ids[0, :2].tolist() == [1, 2] and short.targets[0, :2].tolist() == [2, 3]
    assert short.target_weights.sum() == 2
    assert long.ids.shape == (1, 512) and long.target_weights.sum() == 299


def test_the_baseline_costs_a_token_what_the_model_costs() -> None:
    def per_token(config: K2Config) -> int:
        sizes = {name: int(np.prod(shape)) for name, shape in tensor_shapes(config)}
        share = config.num_experts_per_tok / config.n_routed_experts
        return sum(
            round(size * share) if ".mlp.experts." in name else size for name, size in sizes.items()
        )

    assert per_token(dense_baseline()) == pytest.approx(per_token(CONFIG), rel=0.03)


def test_batched_answers_are_those_of_the_engine(tmp_path: Path) -> None:
    config = toy()
    weights = init_weights(config, 5)
    file = tmp_path / "toy.gguf"
    export.write_gguf(weights, config, TOKENS, file, lambda name: "F32")
    prompts = [[3, 7, 1], [9, 2, 5, 8, 4, 1, 1, 60]]
    with Engine.open(file) as engine:
        from hybrid_k2 import SamplingParams

        params = SamplingParams(temperature=0, max_tokens=12)
        expected = [list(engine.generate(prompt, params)) for prompt in prompts]
        answer = evaluate.TorchAnswerer(
            TrainingK2(config), weights, engine.tokenizer.eos_ids, "cpu"
        )
    assert answer(prompts, 12) == expected
