"""Everything in one go, on one machine with a GPU: text, vocabulary, samples, training, export.

`PYTHONPATH=training python -m demo_k2.pipeline --out DIR [--teacher FILE]`. Each phase writes a
file and is passed over where the file is there, so a run that was stopped is started again as it
was. What matters is written first: the model before its evaluation, and that before the race with
the dense baseline. The time limit holds for all of it. `--resume GGUF
--vocabulary JSON` trains an exported model further.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from demo_k2 import dialogues, distil, export, report, vocabulary, world
from demo_k2.encode import Encoder
from demo_k2.samples import Batches, Samples
from demo_k2.shape import CONFIG, VOCAB_SIZE, dense_baseline
from demo_k2.train import Recipe, Training, mean_loss, write_curve
from hybrid_k2.demo_model.build_vocabulary import NUM_CONTROL_IDS

logger = logging.getLogger("pipeline")
HELD_OUT_TOLD = 40  # every so manieth conversation of the teacher's is kept for evaluation
CHUNK = 2000
EVALUATION_S = 50
OVERRUN_S = 30  # of a teacher, before it is stopped
MOST_REPEATS = 6  # of what a slow teacher wrote


def main() -> None:
    options = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d %(name)s %(message)s")
    torch.backends.cuda.matmul.allow_tf32 = True
    deadline = time.monotonic() + options.limit_s
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)
    options.out.mkdir(parents=True, exist_ok=True)

    tokens = make_samples(options)
    if options.until == "text":
        return
    train_set = Samples.load(*sorted(work.glob("train-*.npz")))
    held_out = Samples.load(*sorted(work.glob("held-*.npz")))
    logger.info(
        "%d samples, %d tokens; held out %d", len(train_set), train_set.num_tokens, len(held_out)
    )
    device = options.device
    batches = Batches(train_set, options.tokens_per_batch, device)
    judged_on = Batches(held_out, 65536, device)
    recipe = Recipe(
        budget_s=max(5, min(options.train_s, deadline - time.monotonic() - EVALUATION_S)),
        learning_rate=options.learning_rate,
        decay_from=options.decay_from,
        quantised_from=options.quantised_from,
        graphs=options.graphs,
    )
    training = Training(CONFIG, recipe, device)
    found: dict[str, Any] = {"train_tokens": train_set.num_tokens}
    if options.resume:
        _, weights = export.read_gguf(options.resume)
        training.load(weights)
        found["perplexity_before"] = math.exp(
            mean_loss(training.model, training.weights, judged_on)
        )
        logger.info("before the first step: perplexity %.4f", found["perplexity_before"])
    checkpoint = work / "training.pt"
    if checkpoint.is_file():
        training.resume(checkpoint)
    training.run(batches)
    export.write_gguf(training.weights, CONFIG, tokens, work / "demo.gguf")
    in_pieces(work / "demo.gguf", options.out)
    vocabulary.save(tokens, options.out / "vocabulary.json")
    write_curve(training.curve, options.out / "curve.csv")
    logger.info("exported")
    training.save(checkpoint)
    if options.until == "model":
        return

    found |= {
        "trained_tokens": training.num_tokens,
        "steps": training.num_steps,
        "seconds": training.used_s,
    }
    found |= report.measure(training, tokens, judged_on, options.judged)
    write_json(found, options.out / "figures.json")
    for name, value in found.items():
        if not isinstance(value, list | dict):
            print(f"{name:32} {value}")
    if options.race_tokens:
        found["race"] = race(options, batches, judged_on)
        write_json(found, options.out / "figures.json")
        print(found["race"])


def race(options: argparse.Namespace, batches: Batches, judged_on: Batches) -> dict[str, Any]:
    """The model and the dense baseline, both anew, on the same text for as many tokens."""
    recipe = Recipe(
        budget_s=options.limit_s,
        budget_tokens=options.race_tokens,
        quantised_from=2,
        graphs=options.graphs,
    )
    found = {}
    for name, config in (("dense", dense_baseline()), ("experts", CONFIG)):
        racer = Training(config, recipe, options.device)
        racer.run(batches)
        found[name] = report.of_racer(racer, judged_on)
        write_curve(racer.curve, options.out / f"curve-race-{name}.csv")
        logger.info("race, %s: %s", name, found[name])
    return found


def make_samples(options: argparse.Namespace) -> list[str]:
    """Makes what is not there yet of text, vocabulary and samples; returns the vocabulary."""
    work: Path = options.work
    spawned = multiprocessing.get_context("spawn")  # a fork would copy locks that threads hold
    told, teacher = work / "told.jsonl", None
    if options.teacher and not told.is_file():
        teacher = subprocess.Popen(
            [sys.executable, "-m", "demo_k2.pipeline", "--teach", *sys.argv[1:]]
        )
        stop_teaching_at = time.monotonic() + options.teach_s + OVERRUN_S
    file = work / "vocabulary.json"
    if options.vocabulary:
        shutil.copyfile(options.vocabulary, file)
    if not file.is_file():
        wait_for_lines(told, options.vocabulary_lines, teacher)
        with spawned.Pool(options.processes) as pool:
            parts = pool.map(template_texts, range(options.vocabulary_parts))
        texts = [text for part in parts for text in part]
        texts += [text for turns in told_turns(told) for turn in turns for text in turn]
        vocabulary.save(vocabulary.train(texts, VOCAB_SIZE - NUM_CONTROL_IDS), file)
        logger.info("vocabulary from %d texts", len(texts))
    tokens = vocabulary.load(file)
    wanted = ["dialogues", "told"] if options.teacher or told.is_file() else ["dialogues"]
    if all((work / f"train-{name}.npz").is_file() for name in wanted):
        return tokens
    counts = ((False, options.dialogues), (True, options.dialogues // HELD_OUT_TOLD))
    jobs = [
        (range(first, min(first + CHUNK, count)), held_out)
        for held_out, count in counts
        for first in range(0, count, CHUNK)
    ]
    with spawned.Pool(options.processes, start_encoder, (file,)) as pool:
        encode_all(pool, encode_dialogues, jobs, work, "dialogues")
        if teacher is not None and not has_finished(teacher, stop_teaching_at):
            logger.warning("the teacher failed; going on with what it wrote")
        # What is answered by hand is not to be learnt in another way, and what refers to an
        # earlier answer is rare.
        kept = [turns for turns in told_turns(told) if not world.answers(turns[0][0])]
        lines = [json.dumps(turns) for turns in kept]
        lines += [json.dumps(turns) for turns in kept if len(turns) > 1]
        repeats = min(MOST_REPEATS, math.ceil(options.told / max(1, len(lines))))
        logger.info("the teacher's %d conversations, %d times", len(lines), repeats)
        parts = [
            (first, lines[first : first + CHUNK], repeat)
            for repeat in range(repeats)
            for first in range(0, len(lines), CHUNK)
        ]
        encode_all(pool, encode_told, parts, work, "told")
    return tokens


def encode_all(pool, encode, jobs, work: Path, name: str) -> None:
    """Encodes in all processes and writes one file for training and one held out."""
    if (work / f"train-{name}.npz").is_file() or not jobs:
        return
    sides: dict[bool, list] = {False: [], True: []}
    for part in pool.imap_unordered(encode, jobs):
        for held_out, samples in part.items():
            sides[held_out].append(samples)
    for held_out, parts in sides.items():
        if parts:
            whole = Samples.concatenated(parts)
            whole.save(work / f"{'held' if held_out else 'train'}-{name}.npz")
            logger.info("%s held out %s: %d tokens", name, held_out, whole.num_tokens)


# Of a worker process, which serves one vocabulary.
_encoder: list[Encoder] = []
_pieces: list[str] = []


def start_encoder(file: Path) -> None:
    torch.set_num_threads(1)
    tokens = vocabulary.load(file)
    _encoder[:] = [Encoder(vocabulary.tokenizer_of(tokens))]
    _pieces[:] = vocabulary.pieces_of(tokens)


def encode_dialogues(job: tuple[range, bool]) -> dict[bool, Samples]:
    """The dialogues of these numbers."""
    numbers, held_out = job
    pieces = () if held_out else _pieces
    made = [_encoder[0].sample(dialogues.dialogue(number, held_out, pieces)) for number in numbers]
    return {held_out: Samples.of(made)}


def encode_told(job: tuple[int, list[str], int]) -> dict[bool, Samples]:
    """A chunk of the teacher's conversations, of which some are held out; those only once."""
    first, lines, repeat = job
    sides: dict[bool, list] = {False: [], True: []}
    for number, line in enumerate(lines, first):
        held_out = number % HELD_OUT_TOLD == 0
        if not (held_out and repeat):
            made = dialogues.told(json.loads(line), number, repeat)
            sides[held_out].append(_encoder[0].sample(made))
    return {held_out: Samples.of(made) for held_out, made in sides.items() if made}


def template_texts(part: int) -> list[str]:
    """All text of 250 dialogues, for the vocabulary."""
    texts = []
    for number in range(part * 250, part * 250 + 250):
        made = dialogues.dialogue(number)
        for message in made.messages:
            texts += [message["content"], message.get("reasoning_content", "")]
            texts += [call["function"]["arguments"] for call in message.get("tool_calls", ())]
            texts += [call["id"] for call in message.get("tool_calls", ())]
        texts.append(json.dumps(made.tools, separators=(",", ":"), sort_keys=True))
    return texts


def told_turns(file: Path) -> Iterator[list[list[str]]]:
    """The conversations written so far; the last line may be half written."""
    if file.is_file():
        for line in file.read_text(encoding="utf-8").split("\n")[:-1]:
            yield json.loads(line)


def wait_for_lines(file: Path, count: int, writer: subprocess.Popen | None) -> None:
    """Waits until so many lines are there, or nobody writes any more."""
    while writer is not None and writer.poll() is None:
        if sum(1 for _ in told_turns(file)) >= count:
            return
        time.sleep(2)


def has_finished(teacher: subprocess.Popen, stop_at: float) -> bool:
    """Waits for the teacher until then, and stops it; whether it ended by itself and well."""
    try:
        return teacher.wait(max(1, stop_at - time.monotonic())) == 0
    except subprocess.TimeoutExpired:
        teacher.terminate()
        return teacher.wait() == 0


def in_pieces(file: Path, folder: Path, piece_bytes: int = 15 << 20) -> None:
    """Writes FILE.00, FILE.01, ...; `cat` puts them together again."""
    data = file.read_bytes()
    for index, first in enumerate(range(0, len(data), piece_bytes)):
        (folder / f"{file.name}.{index:02}").write_bytes(data[first : first + piece_bytes])


def write_json(found: dict, file: Path) -> None:
    file.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    made.add_argument("--out", type=Path, required=True, help="where results go")
    made.add_argument("--work", type=Path, default=Path("build/demo"), help="intermediate files")
    made.add_argument("--resume", type=Path, help="GGUF of this pipeline to train further")
    made.add_argument("--vocabulary", type=Path, help="its vocabulary.json")
    made.add_argument("--teacher", type=Path, help="GGUF of SmolLM2-135M-Instruct")
    made.add_argument("--teach", action="store_true", help="only ask the teacher")
    made.add_argument("--teach-s", type=float, default=110)
    made.add_argument("--teach-seed", type=int, default=1)
    made.add_argument("--teach-rows", type=int, default=4096)
    made.add_argument("--teach-questions", type=int, default=60_000)
    made.add_argument("--vocabulary-lines", type=int, default=20_000)
    made.add_argument("--vocabulary-parts", type=int, default=40)
    made.add_argument("--told", type=int, default=150_000, help="of its conversations, repeated")
    made.add_argument("--dialogues", type=int, default=300_000)
    made.add_argument("--processes", type=int, default=max(1, (os.cpu_count() or 2) - 2))
    made.add_argument("--limit-s", type=float, default=560, help="of everything")
    made.add_argument("--train-s", type=float, default=300)
    made.add_argument("--race-tokens", type=int, default=0, help="against the dense baseline")
    made.add_argument("--until", choices=["text", "model", "figures"], default="figures")
    made.add_argument("--tokens-per-batch", type=int, default=65536)
    made.add_argument("--learning-rate", type=float, default=4e-3)
    made.add_argument("--decay-from", type=float, default=Recipe.decay_from)
    made.add_argument("--quantised-from", type=float, default=Recipe.quantised_from)
    made.add_argument("--graphs", action="store_true", help="CUDA graphs")
    made.add_argument("--judged", type=int, default=500, help="held-out tool prompts")
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return made


def teach() -> None:
    options = parser().parse_args()
    logging.basicConfig(level=logging.INFO, format="%(relativeCreated)7d %(name)s %(message)s")
    options.work.mkdir(parents=True, exist_ok=True)
    distil.distil(
        options.teacher,
        options.work / "told.jsonl",
        options.teach_s,
        seed=options.teach_seed,
        num_questions=options.teach_questions,
        rows=options.teach_rows,
        device=options.device,
    )


if __name__ == "__main__":
    teach() if "--teach" in sys.argv else main()
