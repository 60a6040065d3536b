"""Plans: totals against K2's published sizes, what does not fit, the table and the dictionary."""

import json
import time
from dataclasses import replace

import pytest
from k2_modules import REAL_K2, TINY_K2, k2_modules

from hybrid_k2.backends.footprint import CUDA_CONTEXT_BYTES, PROCESS_RAM_BYTES
from hybrid_k2.config import RuntimeConfig
from hybrid_k2.errors import PlanError, RuleError
from hybrid_k2.rules import Gpu, Hardware, Plan, load_rules, make_plan, plan_dict, plan_table
from hybrid_k2.rules.files import parse_rule_text

REAL_MODULES = k2_modules(REAL_K2, experts="Q4_0")
WORKSTATION = Hardware(
    ram_bytes=768 << 30,
    ram_available=740 << 30,
    cpus=64,
    gpus=(Gpu("cuda:0", "Fake 24 GB", 24 << 30, int(23.4 * 2**30)),),
    huge_pages="madvise",
)


def gpu(gib: int) -> Hardware:
    """The workstation with another GPU, of whose memory a desktop takes some."""
    return replace(
        WORKSTATION, gpus=(Gpu("cuda:0", f"Fake {gib} GB", gib << 30, int(gib * 0.97 * 2**30)),)
    )


def plan_k2(
    rules: str = "cpu",
    hardware: Hardware = WORKSTATION,
    context: int = 4096,
    allow_disk: bool = False,
    **runtime: int,
) -> Plan:
    """The real K2's plan under a shipped rule file, or under a text that has a line break."""
    rule_set = parse_rule_text(rules.encode(), "my.yaml") if "\n" in rules else load_rules(rules)
    settings = RuntimeConfig(context=context, **runtime)
    return make_plan(REAL_MODULES, REAL_K2, rule_set, settings, hardware, allow_disk=allow_disk)


def entry_bytes(plan: Plan, suffix: str) -> int:
    """Stored bytes of the modules whose name ends so."""
    return sum(e.module.num_bytes for e in plan.entries if e.module.name.endswith(suffix))


def test_the_totals_are_kimi_k2s_published_sizes() -> None:
    plan = plan_k2("1gpu-48gb", context=131072, hardware=gpu(48))
    # at 4.5 bits: all experts 570.76 GB, of which a token reads 11.89 GB; KV 9.21 GB at 128K
    assert entry_bytes(plan, ".mlp.experts") == 570_760_888_320
    assert plan.kv_bytes == plan.cache_tokens * 70272
    experts_read = 60 * 8 * 24_772_608
    embedding_row = 7168 * 34 // 32
    assert plan.reads_per_token["cpu"] == experts_read + embedding_row


def test_a_plan_of_the_real_model_takes_well_under_a_second() -> None:
    start = time.process_time()
    plan_table(plan_k2("1gpu-24gb"))
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("rules", "gib", "context"),
    [("1gpu-24gb", 24, 32768), ("1gpu-48gb", 48, 131072), ("1gpu-96gb", 96, 262144)],
)
def test_each_shipped_file_holds_the_context_it_promises(
    rules: str, gib: int, context: int
) -> None:
    config = replace(REAL_K2, max_position_embeddings=262144)
    settings = RuntimeConfig(context=context)
    plan = make_plan(REAL_MODULES, config, load_rules(rules), settings, gpu(gib))
    assert plan.context == context
    assert 0 < plan.vram_bytes["cuda:0"] <= plan.vram_limits["cuda:0"]


def test_the_cache_holds_as_many_whole_sequences_as_fit_and_one_at_least() -> None:
    sequence = 131072 + 64  # and a page for one that is shared when it is written to
    assert plan_k2("1gpu-96gb", gpu(96), 131072).cache_tokens == 4 * sequence
    assert plan_k2("1gpu-96gb", gpu(52), 131072).cache_tokens == 2 * sequence
    assert plan_k2("1gpu-48gb", gpu(48), 131072, max_sequences=1).cache_tokens == sequence
    assert plan_k2("1gpu-96gb", gpu(96), 1000).cache_tokens == 4 * (1024 + 64)


def test_prompts_go_in_large_steps_where_experts_are_sent_to_a_gpu_and_memory_allows() -> None:
    assert plan_k2("cpu").prefill_chunk == 512
    assert plan_k2("1gpu-24gb", context=32768).prefill_chunk == 8192
    assert plan_k2("1gpu-24gb", gpu(19), 32768).prefill_chunk in (1024, 2048, 4096)
    assert plan_k2("1gpu-24gb", context=32768, prefill_chunk=700).prefill_chunk == 700


def test_mapped_and_allocated_bytes_add_up_over_the_entries() -> None:
    plan = plan_k2("cpu", context=1000)
    costs = [entry.footprint for entry in plan.entries]
    scratch = max(cost.scratch.get("cpu", 0) for cost in costs)
    assert plan.mapped_bytes == sum(cost.mapped for cost in costs)
    assert plan.ram_bytes == PROCESS_RAM_BYTES + sum(cost.ram for cost in costs) + scratch
    assert plan.vram_bytes == {}
    assert plan.kv_bytes == 61 * plan.cache_tokens * 576 * 4


def test_a_device_that_is_used_at_all_costs_its_cuda_context() -> None:
    text = "- match: {name: ^model.norm$}\n  replace: {backend: norm, kwargs: {device: cuda}}\n"
    assert plan_k2(text).vram_bytes == {"cuda:0": CUDA_CONTEXT_BYTES + 4 * 7168}


def test_more_mapped_weights_than_ram_name_the_rule_and_what_to_change() -> None:
    small = replace(WORKSTATION, ram_available=512 << 30)
    with pytest.raises(PlanError) as caught:
        plan_k2("cpu", small)
    message = str(caught.value)
    assert message.startswith("cpu.yaml:7: does not fit: 570.8 GB for model.layers.1.mlp.experts")
    assert "and 59 more" in message and "549.8 GB is available" in message
    assert "--allow-disk" in message and "smaller quantisation" in message


@pytest.mark.parametrize("by_file", [False, True])
def test_allow_disk_turns_that_error_into_a_note_about_the_speed(by_file: bool) -> None:
    small = replace(WORKSTATION, ram_available=300 << 30)
    text = (
        "allow_disk: true\nrules:\n- match: {class: Experts}\n  replace: {backend: experts_cpu}\n"
    )
    rules = text if by_file else text.partition("\n")[2]
    plan = plan_k2(rules, small, allow_disk=not by_file)
    assert "below 1 token/s" in plan.notes[-1]
    share = plan.disk_reads_per_token / plan.reads_per_token["cpu"]
    missing = plan.mapped_bytes + plan.ram_bytes - small.ram_available
    assert share == pytest.approx(missing / plan.mapped_bytes, rel=1e-6)
    assert "from disk none" not in plan_table(plan)


def test_allow_disk_is_no_excuse_for_memory_that_must_be_allocated() -> None:
    tiny = replace(WORKSTATION, ram_available=8 << 30)
    with pytest.raises(PlanError, match=r"cpu\.yaml:19: .* kv_dtype.*--context 32768 would fit"):
        plan_k2("cpu", tiny, context=131072, allow_disk=True)


def test_too_little_vram_names_the_rule_the_limit_and_a_context_that_fits() -> None:
    with pytest.raises(PlanError) as caught:
        plan_k2("1gpu-24gb", gpu(20), 131072)
    message = str(caught.value)
    assert message.startswith("1gpu-24gb.yaml:26: does not fit: ")
    assert "may use 20.8 GB" in message
    suggested = int(message.partition("--context ")[2].split()[0])
    plan_k2("1gpu-24gb", gpu(20), suggested)


@pytest.mark.parametrize(
    ("rules", "runtime", "limit"),
    [
        ("vram: 2GiB\nrules:\n", {}, "2.1 GB"),
        ("vram: 20GiB\nrules:\n", {"vram_bytes": 3 << 30}, "3.2 GB"),
        ("", {"vram_bytes": 4 << 30}, "4.3 GB"),
    ],
)
def test_the_smallest_of_the_vram_limits_holds(
    rules: str, runtime: dict[str, int], limit: str
) -> None:
    text = "- match: {class: Linear}\n  replace: {backend: linear_gpu}\n"
    with pytest.raises(PlanError, match=f"may use {limit}"):
        plan_k2(rules + text, **runtime)


@pytest.mark.parametrize("runtime", [{}, {"ram_bytes": 64 << 30}])
def test_the_smallest_of_the_ram_limits_holds(runtime: dict[str, int]) -> None:
    text = "ram: 100GiB\nrules:\n- match: {class: Norm}\n  replace: {backend: norm}\n"
    with pytest.raises(PlanError, match="68.7 GB" if runtime else "107.4 GB"):
        plan_k2(text, **runtime)


@pytest.mark.parametrize("gpus", [(), WORKSTATION.gpus])
def test_a_device_that_is_not_there_is_an_error_that_names_those_that_are(
    gpus: tuple[Gpu, ...],
) -> None:
    text = "- match: {class: Linear}\n  replace: {backend: linear_gpu, kwargs: {device: cuda:1}}\n"
    with pytest.raises(PlanError) as caught:
        plan_k2(text, replace(WORKSTATION, gpus=gpus))
    found = "found cuda:0 (Fake 24 GB)" if gpus else "no CUDA device was found"
    assert str(caught.value).startswith("my.yaml:1: cuda:1 for ") and found in str(caught.value)


def test_a_module_left_to_a_default_is_blamed_on_the_file_without_a_line() -> None:
    text = "- match: {class: Norm}\n  replace: {backend: norm}\n"
    with pytest.raises(PlanError, match=r"^my\.yaml: placed by default: does not fit: 5"):
        plan_k2(text, replace(WORKSTATION, ram_available=64 << 30))


def test_a_context_of_zero_or_beyond_the_model_is_the_models_own() -> None:
    whole = plan_k2("cpu", context=0)
    assert whole.context == 131072 and not whole.notes
    beyond = plan_k2("cpu", context=200_000)
    assert beyond.context == 131072 and "131072" in beyond.notes[0]


def test_layers_that_are_placed_alike_share_a_line_of_the_table() -> None:
    rules = (
        "- match: {class: Experts, layers: 7}\n  replace: {backend: reference}\n"
        "- match: {class: Experts}\n  replace: {backend: experts_cpu}\n"
    )
    lines = [line.split() for line in plan_table(plan_k2(rules)).splitlines()]
    by_name = {words[0]: words for words in lines if words}
    rest = "model.layers.[1-6,8-60].mlp.experts"
    assert by_name[rest][1:3] == ["experts_cpu", "Q4_0"]
    assert by_name[rest][-1] == "my.yaml:3"
    assert by_name["model.layers.7.mlp.experts"][1:3] == ["reference", "cpu"]
    assert by_name["model.norm"][-1] == "default"
    assert len(lines) < 30


def test_types_that_mix_within_a_group_are_all_named() -> None:
    modules = k2_modules(REAL_K2, experts="Q4_K", experts_down="Q6_K")
    plan = make_plan(modules, REAL_K2, load_rules("cpu"), RuntimeConfig(), WORKSTATION)
    (line,) = [line for line in plan_table(plan).splitlines() if ".mlp.experts" in line]
    assert "Q4_K/Q6_K" in line and "614.4 GB mapped" in line


def test_the_table_has_the_totals_and_the_ceiling_where_bandwidth_is_known() -> None:
    text = plan_table(plan_k2("1gpu-24gb", replace(WORKSTATION, ram_bandwidth=400e9)))
    for part in ("cuda:0 ", "mapped from the file", "KV      1.2 GB for 16640 tokens"):
        assert part in text
    assert "decode at most 33.6 tokens/s at 400.0 GB/s" in text  # 400 / 11.89
    assert "decode at most" not in plan_table(plan_k2("1gpu-24gb"))


def test_the_dictionary_survives_json_and_has_every_module_once() -> None:
    plan = plan_k2("1gpu-24gb")
    data = json.loads(json.dumps(plan_dict(plan)))
    assert data["schema_version"] == 1
    assert [m["name"] for m in data["modules"]] == [m.name for m in REAL_MODULES]
    assert data["totals"]["kv"] == plan.kv_bytes == sum(m["kv"] for m in data["modules"])
    assert data["totals"]["vram"]["cuda:0"] <= data["limits"]["vram"]["cuda:0"]
    lines = {m["rule_line"] for m in data["modules"] if m["class"] == "Experts"}
    assert lines == {8}


def test_a_tiny_model_fits_in_a_gigabyte() -> None:
    small = replace(WORKSTATION, ram_available=1 << 30)
    plan = make_plan(k2_modules(TINY_K2), TINY_K2, load_rules("cpu"), RuntimeConfig(), small)
    assert plan.disk_reads_per_token == 0


def test_a_mistake_in_the_rules_is_found_before_memory_is_counted() -> None:
    text = "- match: {name: nothing}\n  replace: {backend: norm}\n"
    with pytest.raises(RuleError, match=r"my\.yaml:1: the rule matches nothing"):
        plan_k2(text, replace(WORKSTATION, ram_available=1))
