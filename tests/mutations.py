"""Break the code on purpose, one small change at a time, and see that the tests named for it fail.

    python -m tests.mutations              # all of them, a quarter of an hour on one core
    python -m tests.mutations kill fault   # those of some kinds of tests

Works on a copy; docs/reliability.md has the result. A change that no longer fits the code ends the command.
"""

import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.checkout import environment, second_checkout
from wsss_lib.parameters import PROJECT_ROOT


class Mutation(NamedTuple):
    """A change of one place in one file, and the tests (pytest's words) of which at least one must fail then."""

    kind: str
    file: str
    before: str
    after: str
    tests: str


MUTATIONS = [
    # What a killed or repeated run relies on.
    Mutation(
        "kill", "wsss_lib/core/files.py", "        write(temporary)\n", "        write(path)\n", "tests/test_kill.py -k chain"
    ),
    Mutation(
        "kill",
        "wsss_lib/core/training.py",
        '    torch.set_rng_state(tensors["random.cpu"])\n',
        "",
        "tests/test_training.py -k killed or second_call",
    ),
    Mutation("kill", "wsss_lib/core/training.py", "    optimizer.load_state_dict(state)\n", "", "tests/test_kill.py -k chain"),
    Mutation("kill", "wsss_lib/core/training.py", '["step"] <= done:', '["step"] <= 10**9:', "tests/test_kill.py -k chain"),
    Mutation(
        "kill",
        "wsss_lib/core/training.py",
        "batches(samples, batch_size, parts, done, steps,",
        "batches(samples, batch_size, parts, 0, steps,",
        "tests/test_kill.py -k chain",
    ),
    Mutation(
        "kill",
        "wsss_lib/core/store.py",
        '        _remove_leftovers(folder, ".writing-*")',
        "        None",
        "tests/test_files.py tests/test_stage.py -k unfinished",
    ),
    Mutation(
        "determinism",
        "wsss_lib/data/samples.py",
        'f"{seed}/{epoch}/{index}"',
        'f"{epoch}/{index}"',
        "tests/test_transforms.py tests/test_data.py tests/test_training.py tests/test_determinism.py",
    ),
    Mutation(
        "determinism",
        "wsss_lib/core/stage.py",
        "_hash([parameters, hashes])",
        "_hash([parameters])",
        "tests/test_files.py tests/test_stage.py tests/test_determinism.py",
    ),
    Mutation(
        "determinism", "wsss_lib/core/stage.py", "_hash([parameters, hashes])", "_hash([hashes])", "tests/test_determinism.py"
    ),
    Mutation("determinism", "wsss_lib/core/store.py", '"order_of_sums": {', '"sums": {', "tests/test_determinism.py"),
    # Faults of the machine.
    Mutation(
        "fault", "wsss_lib/core/store.py", "        lock.acquire(timeout=WAIT)\n", "", "tests/test_faults.py -k second_run"
    ),
    Mutation("fault", "wsss_lib/core/store.py", "WAIT = 20.0", "WAIT = 0.0", "tests/test_faults.py -k ending"),
    Mutation(
        "fault",
        "wsss_lib/core/parallel.py",
        "    threading.Thread(target=_end_with_parent, daemon=True).start()\n",
        "",
        "tests/test_faults.py -k parent",
    ),
    Mutation(
        "fault",
        "wsss_lib/core/parallel.py",
        "        except BrokenProcessPool:\n",
        "        except ZeroDivisionError:\n",
        "tests/test_faults.py -k worker",
    ),
    Mutation(
        "fault",
        "wsss_lib/core/stage.py",
        "time.monotonic() - started",
        "time.time() - started",
        "tests/test_faults.py -k clock",
    ),
    Mutation(
        "fault",
        "wsss_lib/core/files.py",
        "            temporary.unlink(missing_ok=True)",
        "            pass",
        "tests/test_files.py tests/test_stage.py tests/test_faults.py -k disk or middle",
    ),
    Mutation(
        "fault",
        "wsss_lib/core/training.py",
        '        raise OSError(\n            f"{name}: a loader process',
        '        raise RuntimeError(\n            f"{name}: a loader process',
        "tests/test_faults.py -k loader",
    ),
    Mutation(
        "fault",
        "wsss_lib/core/store.py",
        "    if status.is_file():",
        "    if False:",
        "tests/test_files.py tests/test_stage.py -k memory",
    ),
    # Hostile and damaged files.
    Mutation(
        "fuzz", "data_prep/voc_xml.py", "from defusedxml.ElementTree", "from xml.etree.ElementTree", "tests/test_voc_labels.py"
    ),
    Mutation("fuzz", "wsss_lib/core/files.py", "> LARGEST_MAPS:", "> 10**15:", "tests/test_fuzz.py -k bomb"),
    Mutation(
        "fuzz",
        "wsss_lib/core/files.py",
        "    except (ValueError, RecursionError):\n",
        "    except ValueError:\n",
        "tests/test_faults.py -k record",
    ),
    Mutation(
        "fuzz",
        "wsss_lib/core/files.py",
        "    if not all(np.isfinite(values).all() for values in arrays.values()):\n        raise DataError(",
        "    if False:\n        raise DataError(",
        "tests/test_files.py tests/test_stage.py -k maps",
    ),
    Mutation("security", "data_prep/unpack.py", '".." in path.parts or ', "", "tests/test_unpack.py -k outside"),
    Mutation(
        "security",
        "data_prep/unpack.py",
        'if member.kind not in ("file", "folder"):',
        "if False:",
        "tests/test_unpack.py -k links",
    ),
    Mutation(
        "security",
        "data_prep/unpack.py",
        "        if position > self.limit:\n",
        "        if False:\n",
        "tests/test_unpack.py -k bomb",
    ),
    # Images of extreme size or content.
    Mutation(
        "extreme images",
        "wsss_lib/ops/merging.py",
        "for view in views if len(total) else ():",
        "for view in views:",
        "tests/test_extreme_images.py tests/test_cam.py",
    ),
    Mutation(
        "extreme images", "wsss_lib/ops/merging.py", "keepdim=True) + 1e-5)", "keepdim=True))", "tests/test_extreme_images.py"
    ),
    Mutation(
        "extreme images", "wsss_lib/methods/rib.py", "finite = torch.isfinite(maps).all()", "finite = True", "tests/test_rib.py"
    ),
    Mutation(
        "extreme images",
        "wsss_lib/core/files.py",
        "json.dumps(content, indent=1, allow_nan=False)",
        "json.dumps(content, indent=1)",
        "tests/test_extreme_images.py",
    ),
    # Numbers: by hand, as properties, and against the official programs.
    Mutation(
        "by hand",
        "wsss_lib/ops/metrics.py",
        "truth * num_classes + prediction",
        "prediction * num_classes + truth",
        "tests/test_metrics.py",
    ),
    Mutation(
        "by hand",
        "wsss_lib/ops/metrics.py",
        "iou = _ratio(hits, row + column - hits)",
        "iou = _ratio(hits, row + column)",
        "tests/test_metrics.py -k hand",
    ),
    Mutation(
        "by hand",
        "wsss_lib/ops/merging.py",
        "return (size[0] - 1) // 4 + 1, (size[1] - 1) // 4 + 1",
        "return size[0] // 4 + 1, size[1] // 4 + 1",
        "tests/test_cam.py",
    ),
    Mutation(
        "by hand",
        "wsss_lib/methods/sccam.py",
        "return float(sum(commonest) / len(truth))",
        "return float(max(commonest) / len(truth))",
        "tests/test_sccam.py",
    ),
    Mutation("property", "wsss_lib/ops/random_walk.py", "TRUNCATION = 1e-7", "TRUNCATION = 1e-2", "tests/test_random_walk.py"),
    Mutation(
        "property",
        "wsss_lib/ops/random_walk.py",
        "pair_graph(affinity**beta, radius)",
        "pair_graph(affinity, radius)",
        "tests/test_random_walk.py",
    ),
    Mutation(
        "property",
        "wsss_lib/ops/merging.py",
        "join(pair[0], pair[1].flip(-1))",
        "join(pair[0], pair[1])",
        "tests/test_cam.py",
    ),
    Mutation(
        "property",
        "wsss_lib/core/parallel.py",
        "items[config.shard - 1 :: config.shards]",
        "items[config.shard :: config.shards]",
        "tests/test_launch.py -k shard",
    ),
    Mutation(
        "golden",
        "wsss_lib/methods/rib.py",
        "return -(labels * logits.clamp(max=margin)).sum()",
        "return -(labels * logits.clamp(max=margin)).mean()",
        "tests/test_golden.py -k rib",
    ),
    Mutation(
        "golden",
        "wsss_lib/methods/drs.py",
        "maps * (maps == maps.amax(-3, keepdim=True))",
        "maps",
        "tests/test_golden.py -k drs",
    ),
    Mutation(
        "golden",
        "wsss_lib/methods/amn.py",
        "scatter_(1, labels[:, None], 1 - smoothing)",
        "scatter_(1, labels[:, None], 1)",
        "tests/test_golden.py -k amn",
    ),
    Mutation(
        "by hand",
        "wsss_lib/methods/vwe.py",
        "(1 - rho) * codebook\n",
        "rho * codebook\n",
        "tests/test_vwe.py -k hand",
    ),
    Mutation(
        "property",
        "wsss_lib/ops/crf.py",
        "        crf.setUnaryEnergy(unary.reshape(num_labels, -1))",
        "        crf.setUnaryEnergy(unaries[0].reshape(num_labels, -1).astype(np.float32))",
        "tests/test_crf.py",
    ),
    Mutation(
        "golden",
        "wsss_lib/ops/crf.py",
        "unary = -np.log(np.maximum(probabilities, 1e-5))",
        "unary = 1 - np.maximum(probabilities, 1e-5)",
        "tests/test_golden.py tests/test_crf.py",
    ),
    # Bad input: one sentence.
    Mutation("bad input", "wsss_lib/parameters.py", "    if isinstance(value, bool):", "    if False:", "tests/test_config.py"),
    Mutation(
        "bad input", "wsss_lib/data/saliency.py", '    if mode != "L":', "    if False:", "tests/test_drs_stages.py -k fit"
    ),
    Mutation(
        "bad input",
        "wsss_lib/comparison.py",
        "        if conditions != reference:",
        "        if False:",
        "tests/test_comparison.py -k mixed",
    ),
    Mutation(
        "bad input",
        "wsss_lib/comparison.py",
        "                if value != reference[parameter]:",
        "                if False:",
        "tests/test_comparison.py -k settings",
    ),
    # Several processes, the graph, records.
    Mutation(
        "several processes",
        "wsss_lib/core/training.py",
        "losses_of, accumulate = together, together.no_sync",
        "pass",
        "tests/test_launch.py -k two_processes",
    ),
    Mutation(
        "several processes",
        "wsss_lib/core/training.py",
        "accumulate() if number + 1 < parts else nullcontext()",
        "accumulate()",
        "tests/test_launch.py -k state_outside",
    ),
    Mutation(
        "several processes",
        "wsss_lib/methods/vwe.py",
        "            broadcast(self.codebook)\n",
        "",
        "tests/test_launch.py -k state_outside",
    ),
    Mutation(
        "several processes",
        "wsss_lib/methods/vwe.py",
        "rho * all_reduce_sum(sums) / (all_reduce_sum(counts) + 1e-4)",
        "rho * sums / (counts + 1e-4)",
        "tests/test_launch.py -k state_outside",
    ),
    Mutation(
        "several processes",
        "wsss_lib/core/distributed.py",
        "    dist.all_reduce(values)\n",
        "",
        "tests/test_launch.py -k two_processes",
    ),
    Mutation(
        "several processes",
        "wsss_lib/core/distributed.py",
        'open(first_failure, "x"',
        'open(first_failure, "w"',
        "tests/test_launch.py -k cause",
    ),
    Mutation(
        "pipeline",
        "Snakefile",
        "getattr(checked, name) for name in given}",
        "getattr(checked, name) for name in ()}",
        "tests/test_pipeline_graph.py -k refinement or command_line",
    ),
    # The form of notebooks and documents.
    Mutation(
        "form", "notebooks/10_cam.py", "The mean IoU has one peak", "The mean IoU has a peak", "tests/test_notebooks.py -k step"
    ),
    Mutation("form", "notebooks/10_cam.ipynb", '"*The mean IoU has one peak', '"*A peak', "tests/test_notebooks.py -k figure"),
    Mutation("form", "wsss_lib/methods/cam.py", "        images: N RGB images of one size.\n", "", "tests/test_docstrings.py"),
    Mutation("form", "environment.yml", "papermill", "papermil", "tests/test_environment.py"),
    Mutation(
        "form", "notebooks/solutions/10_cam.py", "(label == 1)).sum()", "(label == 0)).sum()", "tests/test_exercises.py -k 10"
    ),
]


def main(kinds: list[str]) -> int:
    """Try the changes of some kinds, or all; return how many no test has noticed."""
    chosen = [mutation for mutation in MUTATIONS if not kinds or mutation.kind in kinds]
    for mutation in chosen:
        if mutation.before not in (PROJECT_ROOT / mutation.file).read_text(encoding="utf-8"):
            raise SystemExit(f"{mutation.file}: {mutation.before!r} is not there; bring the list in step with the code")
    unnoticed, counts = [], Counter()
    with tempfile.TemporaryDirectory() as folder:
        root = second_checkout(Path(folder))

        def run(tests: str) -> int:
            files, _, names = tests.partition(" -k ")
            command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *files.split()]
            command += ["-k", names] if names else []
            return subprocess.run(command, cwd=root, env=environment(root), stdout=subprocess.DEVNULL).returncode

        for tests in dict.fromkeys(mutation.tests for mutation in chosen):
            if run(tests):
                raise SystemExit(f"{tests}: fails on the code as it is")
        for mutation in chosen:
            path = root / mutation.file
            text, started = path.read_text(encoding="utf-8"), time.monotonic()
            path.write_text(text.replace(mutation.before, mutation.after, 1), encoding="utf-8")
            status = run(mutation.tests)
            path.write_text(text, encoding="utf-8")
            noticed = status in (1, 2)  # pytest: a test has failed, or a file could not be imported
            counts[mutation.kind, noticed] += 1
            unnoticed += [] if noticed else [mutation]
            print(
                f"{'noticed' if noticed else 'NOT NOTICED'} ({time.monotonic() - started:.0f} s): {mutation.kind}, "
                f"{mutation.file}: {mutation.before.strip()!r} -> {mutation.after.strip()!r}",
                flush=True,
            )
    for kind in dict.fromkeys(mutation.kind for mutation in chosen):
        print(f"{kind}: {counts[kind, True]} of {counts[kind, True] + counts[kind, False]} noticed")
    return len(unnoticed)


if __name__ == "__main__":
    sys.exit(min(main(sys.argv[1:]), 1))
